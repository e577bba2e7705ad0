"""Compute: the machines, who holds a share of them, and why something waits; and the traces of what ran."""

from typing import Any

from leptonai._refs import name_of
from leptonai._session import AsyncPages, AsyncSession, Call, Pages, Session, page_of, path
from leptonai._types import Allocation, Node, Trace


class Compute:
    """`client.compute`. Errors: APIError and its kin."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def nodes(self) -> Pages[Node]:
        """All machines."""
        return Pages(self._session, page_of(("compute", "nodes"), "nodes", Node))

    def node(self, name: Any) -> Node:
        """One machine."""
        return self._session.run(Call("GET", path("compute", "nodes", name_of(name)), Node.from_json))

    def update_node(self, name: Any, state: str) -> Node:
        """Makes a machine "cordoned" (it gets nothing new) or "ready" again; for operators."""
        return self._session.run(Call("PATCH", path("compute", "nodes", name_of(name)), Node.from_json, body={"state": state}))

    def allocations(self, *, state: str = "") -> Pages[Allocation]:
        """The workspace's shares, newest first; only those in `state` where given."""
        return Pages(self._session, page_of(("compute", "allocations"), "allocations", Allocation, state=state))

    def allocation(self, id: Any) -> Allocation:
        """One share."""
        return self._session.run(Call("GET", path("compute", "allocations", name_of(id)), Allocation.from_json))


class AsyncCompute:
    """As Compute, for an event loop."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def nodes(self) -> AsyncPages[Node]:
        """As Compute.nodes."""
        return AsyncPages(self._session, page_of(("compute", "nodes"), "nodes", Node))

    async def node(self, name: Any) -> Node:
        """As Compute.node."""
        return await self._session.run(Call("GET", path("compute", "nodes", name_of(name)), Node.from_json))

    async def update_node(self, name: Any, state: str) -> Node:
        """As Compute.update_node."""
        return await self._session.run(Call("PATCH", path("compute", "nodes", name_of(name)), Node.from_json, body={"state": state}))

    def allocations(self, *, state: str = "") -> AsyncPages[Allocation]:
        """As Compute.allocations."""
        return AsyncPages(self._session, page_of(("compute", "allocations"), "allocations", Allocation, state=state))

    async def allocation(self, id: Any) -> Allocation:
        """As Compute.allocation."""
        return await self._session.run(Call("GET", path("compute", "allocations", name_of(id)), Allocation.from_json))


class Traces:
    """`client.traces`. Errors: APIError and its kin."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, id: str) -> Trace:
        """Everything that one request set going. Ids come with jobs, model versions, errors, and as `client.last_trace_id`."""
        return self._session.run(Call("GET", path("traces", id), Trace.from_json))


class AsyncTraces:
    """As Traces, for an event loop."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, id: str) -> Trace:
        """As Traces.get."""
        return await self._session.run(Call("GET", path("traces", id), Trace.from_json))
