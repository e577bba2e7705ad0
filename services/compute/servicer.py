"""The gRPC edge of the compute service."""

from collections.abc import Sequence
from typing import Any

from lepton.common.v1.options_pb2 import ROLE_OPERATOR
from lepton.compute.v1 import allocation_pb2, compute_service_pb2, node_pb2
from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceServicer
from libs.db import Database, page_size, page_token, start_after
from libs.errors import NotFound
from libs.rpc import current_call
from libs.service import Edge
from services.compute import repository, wire
from services.compute.handlers import Scheduler, free_rooms, queue_order
from services.compute.tables import QUEUED, Allocation, Node


class ComputeServicer(Edge, ComputeServiceServicer):
    def __init__(self, database: Database, scheduler: Scheduler) -> None:
        super().__init__(database)
        self._scheduler = scheduler

    async def ListNodes(self, request: compute_service_pb2.ListNodesRequest, context: Any) -> compute_service_pb2.ListNodesResponse:
        size = page_size(request.page_size)
        async with self.read() as session:
            rows = await repository.nodes(session, after=start_after(request.page_token), limit=size + 1)
            live = await repository.live(session)
        token = page_token(rows[size - 1].name) if len(rows) > size else ""
        return compute_service_pb2.ListNodesResponse(nodes=self._nodes(rows[:size], live), next_page_token=token)

    async def GetNode(self, request: compute_service_pb2.GetNodeRequest, context: Any) -> node_pb2.Node:
        async with self.read() as session:
            row = await repository.node(session, request.name)
            if row is None:
                raise NotFound.of("node", request.name, [n.name for n in await repository.nodes(session)])
            return self._nodes([row], await repository.live(session))[0]

    async def UpdateNode(self, request: compute_service_pb2.UpdateNodeRequest, context: Any) -> node_pb2.Node:
        async with self.unit(request) as unit:
            row = await self._scheduler.update_node(unit, name=request.name, state=request.state)
            return await unit.reply(self._nodes([row], await repository.live(unit.session))[0])

    async def ListAllocations(
        self, request: compute_service_pb2.ListAllocationsRequest, context: Any
    ) -> compute_service_pb2.ListAllocationsResponse:
        size = page_size(request.page_size)
        async with self.read() as session:
            state, before = wire.STATE_NAMES[request.state], start_after(request.page_token)
            rows = await repository.allocations(session, self.workspace, state=state, before=before, limit=size + 1)
            positions = await _positions(session, rows)
        token = page_token(rows[size - 1].id) if len(rows) > size else ""
        allocations = [wire.allocation(row, positions.get(row.id, 0)) for row in rows[:size]]
        return compute_service_pb2.ListAllocationsResponse(allocations=allocations, next_page_token=token)

    async def GetAllocation(self, request: compute_service_pb2.GetAllocationRequest, context: Any) -> allocation_pb2.Allocation:
        async with self.read() as session:
            row = await repository.allocation(session, request.id, self.workspace)
            if row is None:
                raise NotFound(f"there is no allocation '{request.id}' in this workspace")
            return wire.allocation(row, (await _positions(session, [row])).get(row.id, 0))

    async def CreateAllocation(self, request: compute_service_pb2.CreateAllocationRequest, context: Any) -> allocation_pb2.Allocation:
        async with self.unit(request) as unit:
            row = await self._scheduler.create_allocation(
                unit,
                workspace=request.workspace,
                holder=request.holder,
                resources=request.resources,
                lease_seconds=request.lease_seconds,
                priority=request.priority,
                workers=request.workers,
            )
            return await unit.reply(wire.allocation(row))

    async def BatchGetAllocations(
        self, request: compute_service_pb2.BatchGetAllocationsRequest, context: Any
    ) -> compute_service_pb2.BatchGetAllocationsResponse:
        async with self.read() as session:
            rows = await repository.allocations_by_id(session, request.ids)
        return compute_service_pb2.BatchGetAllocationsResponse(allocations=[wire.allocation(row) for row in rows])

    async def RenewAllocation(self, request: compute_service_pb2.RenewAllocationRequest, context: Any) -> allocation_pb2.Allocation:
        async with self.unit(request) as unit:
            return await unit.reply(wire.allocation(await self._scheduler.renew_allocation(unit, id=request.id)))

    async def ReleaseAllocation(self, request: compute_service_pb2.ReleaseAllocationRequest, context: Any) -> allocation_pb2.Allocation:
        async with self.unit(request) as unit:
            return await unit.reply(wire.allocation(await self._scheduler.release_allocation(unit, id=request.id)))

    async def RegisterNode(self, request: compute_service_pb2.RegisterNodeRequest, context: Any) -> node_pb2.Node:
        async with self.unit(request) as unit:
            row = await self._scheduler.register_node(unit, found=request.node, whole=request.whole if request.HasField("whole") else None)
            return await unit.reply(wire.node(row, row.room(), {}))

    def _nodes(self, rows: Sequence[Node], live: Sequence[Allocation]) -> list[node_pb2.Node]:
        """With what is free, and the holders that the caller may see."""
        identity = current_call().identity
        free = {room.node: room for room in free_rooms(rows, live)}
        seen = [a for a in live if identity.role >= ROLE_OPERATOR or a.workspace == identity.workspace]
        holders = {(node, a.accelerator, index): a.id for a in seen for node, _, devices in a.places for index in devices}
        return [
            wire.node(row, free[row.name], {(kind, index): id for (node, kind, index), id in holders.items() if node == row.name})
            for row in rows
        ]


async def _positions(session: Any, rows: Sequence[Allocation]) -> dict[str, int]:
    """Places in the queue, 1 is next, looked up only where somebody waits."""
    if not any(row.state == QUEUED for row in rows):
        return {}
    return {a.id: place for place, a in enumerate(queue_order(await repository.live(session)), 1)}
