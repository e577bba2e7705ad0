"""Endpoints: names that answer predictions."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from leptonai._errors import APIError, InvalidInput, LeptonError, NotFound, error_from_problem, shifted
from leptonai._refs import name_of, parse
from leptonai._session import AsyncPages, AsyncSession, Call, Flow, Pages, Session, page_of, path, until
from leptonai._tabular import needs_fields, rows_of, to_json
from leptonai._types import Endpoint, EndpointScaling, ModelVersion, Replica, Revision

CHUNK_ROWS = 1000
CHUNK_BYTES = 4 << 20
# Whoever fits a model anew asks for its answers next, and nobody else does.
AT_ONCE = {"canary_percents": [100], "prove_seconds": 0}

Rows = list[Any]


class Endpoints:
    """`client.endpoints`. Errors: APIError and its kin."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(
        self,
        name: str,
        model: Any,
        *,
        replicas: int | None = None,
        min_replicas: int | None = None,
        max_replicas: int | None = None,
        scaling: Mapping[str, Any] | None = None,
        resources: Mapping[str, Any] | None = None,
    ) -> Endpoint:
        """Serves a model version ("name@n", or "name" for the newest) under `name`; answers before it is ready: see wait_ready.

        Always `replicas` processes, or as many as its requests need: min_replicas (0 lets it sleep while nobody asks) to max_replicas;
        more of that in scaling: {"target_in_flight": 8, "idle_seconds": 300}. resources of a replica: {"cpu_millis": 100,
        "memory_bytes": 268435456}, by default these.
        """
        return self._session.run(_create(name, model, _scale(replicas, min_replicas, max_replicas, scaling), resources))

    def get(self, name: Any) -> Endpoint:
        """One endpoint."""
        return self._session.run(_get(name))

    def list(self) -> Pages[Endpoint]:
        """All of the workspace."""
        return Pages(self._session, page_of(("endpoints",), "endpoints", Endpoint))

    def update(
        self,
        name: Any,
        *,
        model: Any = None,
        replicas: int | None = None,
        min_replicas: int | None = None,
        max_replicas: int | None = None,
        scaling: Mapping[str, Any] | None = None,
        rollout: Mapping[str, Any] | None = None,
        traffic: Mapping[int, int] | None = None,
    ) -> Endpoint:
        """Another model version, number of replicas (0 stops it), scaling or split of the requests.

        A new model takes over step by step, or is taken back where it fails; rollout: {"canary_percents": [10, 50, 100], "step_seconds":
        10, "max_error_ratio": 0.05, "max_latency_factor": 3, "prove_seconds": 60, "start_seconds": 25, "shadow": False}, by default
        these. traffic: percents by revision.
        """
        return self._session.run(_update(name, model, _scale(replicas, min_replicas, max_replicas, scaling), rollout, traffic))

    def delete(self, name: Any) -> None:
        """Ends an endpoint and its replicas."""
        self._session.run(Call("DELETE", path("endpoints", name_of(name)), _nothing))

    def replicas(self, name: Any) -> Sequence[Replica]:
        """The processes that serve it."""
        return self._session.run(_replicas(name))

    def revisions(self, name: Any) -> Sequence[Revision]:
        """The model versions that it serves and served, newest first."""
        return self._session.run(_revisions(name))

    def scaling(self, name: Any) -> EndpointScaling:
        """The numbers that its scaling goes by, and its last decisions."""
        return self._session.run(_scaling(name))

    def wait_ready(self, name: Any, timeout: float | None = 120) -> Endpoint:
        """Waits until it answers; raises what makes it fail, or Timeout after `timeout` seconds.

        A new model is waited for until it has all requests, or was taken back: then `model` is the old one and `reason` says why.
        """
        return self._session.flow(ready(name_of(name), timeout))

    def predict(self, name: Any, instances: Any, *, chunk_rows: int = CHUNK_ROWS) -> Rows:
        """The answers, one a row, in order.

        instances: records (dicts), a DataFrame, a Series (one column), an array or rows of values in the order of the model's
        inputs; pictures as bytes or paths of PNG and JPEG files. Missing values (NaN, None) go as null. Sent in chunks of at most
        `chunk_rows` rows and 4 MiB. Raises InvalidData naming each wrong field as instances[row].field.
        """
        return self._session.flow(predictions(path("endpoints", name_of(name), "predict"), instances, chunk_rows, name_of(name)))


class AsyncEndpoints:
    """As Endpoints, for an event loop."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def create(
        self,
        name: str,
        model: Any,
        *,
        replicas: int | None = None,
        min_replicas: int | None = None,
        max_replicas: int | None = None,
        scaling: Mapping[str, Any] | None = None,
        resources: Mapping[str, Any] | None = None,
    ) -> Endpoint:
        """As Endpoints.create."""
        return await self._session.run(_create(name, model, _scale(replicas, min_replicas, max_replicas, scaling), resources))

    async def get(self, name: Any) -> Endpoint:
        """As Endpoints.get."""
        return await self._session.run(_get(name))

    def list(self) -> AsyncPages[Endpoint]:
        """As Endpoints.list."""
        return AsyncPages(self._session, page_of(("endpoints",), "endpoints", Endpoint))

    async def update(
        self,
        name: Any,
        *,
        model: Any = None,
        replicas: int | None = None,
        min_replicas: int | None = None,
        max_replicas: int | None = None,
        scaling: Mapping[str, Any] | None = None,
        rollout: Mapping[str, Any] | None = None,
        traffic: Mapping[int, int] | None = None,
    ) -> Endpoint:
        """As Endpoints.update."""
        return await self._session.run(_update(name, model, _scale(replicas, min_replicas, max_replicas, scaling), rollout, traffic))

    async def delete(self, name: Any) -> None:
        """As Endpoints.delete."""
        await self._session.run(Call("DELETE", path("endpoints", name_of(name)), _nothing))

    async def replicas(self, name: Any) -> Sequence[Replica]:
        """As Endpoints.replicas."""
        return await self._session.run(_replicas(name))

    async def revisions(self, name: Any) -> Sequence[Revision]:
        """As Endpoints.revisions."""
        return await self._session.run(_revisions(name))

    async def scaling(self, name: Any) -> EndpointScaling:
        """As Endpoints.scaling."""
        return await self._session.run(_scaling(name))

    async def wait_ready(self, name: Any, timeout: float | None = 120) -> Endpoint:
        """As Endpoints.wait_ready."""
        return await self._session.flow(ready(name_of(name), timeout))

    async def predict(self, name: Any, instances: Any, *, chunk_rows: int = CHUNK_ROWS) -> Rows:
        """As Endpoints.predict."""
        return await self._session.flow(predictions(path("endpoints", name_of(name), "predict"), instances, chunk_rows, name_of(name)))


def _nothing(_: Any) -> None:
    return None


def _scale(replicas: int | None, least: int | None, most: int | None, scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a request says of them, which is nothing where nothing is given."""
    bounds = {"min_replicas": least, "max_replicas": most, **(scaling or {})}
    given = {name: value for name, value in bounds.items() if value is not None}
    return ({"replicas": replicas} if replicas is not None else {}) | ({"scaling": given} if given else {})


def _create(name: str, model: Any, scale: Mapping[str, Any], resources: Mapping[str, Any] | None = None) -> Call[Endpoint]:
    body: dict[str, Any] = {"name": name, "model": name_of(model), **scale}
    if resources:
        body["resources"] = dict(resources)
    return Call("POST", path("endpoints"), Endpoint.from_json, body=body)


def _get(name: Any) -> Call[Endpoint]:
    return Call("GET", path("endpoints", name_of(name)), Endpoint.from_json)


def _update(
    name: Any,
    model: Any,
    scale: Mapping[str, Any],
    rollout: Mapping[str, Any] | None = None,
    traffic: Mapping[int, int] | None = None,
) -> Call[Endpoint]:
    body: dict[str, Any] = dict(scale)
    if model is not None:
        body["model"] = name_of(model)
    if rollout is not None:
        body["rollout"] = dict(rollout)
    if traffic:
        body["traffic"] = [{"revision": revision, "percent": percent} for revision, percent in traffic.items()]
    if not body:
        raise InvalidInput("there is nothing to change", "name a model version or a number of replicas")
    return Call("PATCH", path("endpoints", name_of(name)), Endpoint.from_json, body=body)


def _revisions(name: Any) -> Call[list[Revision]]:
    def read(answer: Any) -> list[Revision]:
        return [Revision.from_json(item) for item in answer.get("revisions") or []]

    return Call("GET", path("endpoints", name_of(name), "revisions"), read)


def _scaling(name: Any) -> Call[EndpointScaling]:
    return Call("GET", path("endpoints", name_of(name), "scaling"), EndpointScaling.from_json)


def _replicas(name: Any) -> Call[list[Replica]]:
    def read(answer: Any) -> list[Replica]:
        return [Replica.from_json(item) for item in answer.get("replicas") or []]

    return Call("GET", path("endpoints", name_of(name), "replicas"), read)


def ready(name: str, timeout: float | None) -> Flow[Endpoint]:
    """Waits until an endpoint is ready; a stopped one never will be."""
    what = f"endpoint {name} was not ready"
    found = yield from until(lambda: _get(name), lambda endpoint: endpoint.state != "starting", timeout, what)
    if found.state == "failed":
        problem = found.error.raw if found.error else {}
        raise error_from_problem(422, problem, fallback=f"endpoint {name} failed: {found.reason or 'it does not say why'}")
    if found.state == "stopped":
        raise InvalidInput(f"endpoint {name} is stopped", "update it with replicas=1 or more")
    return found


def serve(name: str, model: str, *, moved: bool, timeout: float) -> Flow[Endpoint]:
    """Makes an endpoint for a model version (`moved`: moves the one there is), and returns it ready for that version."""
    try:
        yield _update(name, model, {}, AT_ONCE) if moved else _create(name, model, {})
    except NotFound:
        if not moved:
            raise
        yield _create(name, model, {})  # somebody deleted it meanwhile
    found = yield from ready(name, timeout)
    if moved and found.model != model:
        raise LeptonError(f"endpoint {name} serves {found.model} and not {model}: {found.reason}")
    return found


def predictions(predict: str, instances: Any, chunk_rows: int, endpoint: str = "") -> Flow[list[Any]]:
    """Sends rows in chunks, smaller ones where the platform finds them too large. `endpoint` lends field names where rows lack them."""
    if not isinstance(chunk_rows, int) or chunk_rows < 1:
        raise InvalidInput(f"chunk_rows is {chunk_rows!r}", "it takes a whole number of at least 1")
    fields, image = (yield from _fields(endpoint)) if needs_fields(instances) else ((), "")
    # A model that does not say what its records are takes any.
    free = endpoint and isinstance(instances, list) and needs_fields(instances) and not fields
    rows = list(instances) if free else rows_of(instances, fields, image)
    found: list[Any] = []
    rest = [(start, rows[start : start + chunk_rows]) for start in range(0, len(rows), chunk_rows)][::-1]
    while rest:
        start, chunk = rest.pop()
        body = _body(chunk, start)
        try:
            if len(body) > CHUNK_BYTES and len(chunk) > 1:
                raise _TooLarge
            answer = yield Call("POST", predict, _predictions, body=body)
        except (_TooLarge, APIError) as error:
            if isinstance(error, APIError) and (error.status != 413 or len(chunk) < 2):
                raise shifted(error, start) from None
            half = len(chunk) // 2
            rest += [(start + half, chunk[half:]), (start, chunk[:half])]
            continue
        if len(answer) != len(chunk):
            raise LeptonError(f"the endpoint answered {len(answer)} predictions to {len(chunk)} rows")
        found += answer
    return found


class _TooLarge(Exception):
    pass


def _body(chunk: list[Any], start: int) -> bytes:
    try:
        return to_json({"instances": chunk})
    except InvalidInput as error:
        text = re.sub(r"instances\[(\d+)\]", lambda match: f"instances[{int(match[1]) + start}]", error.message)
        raise InvalidInput(text, error.hint) from None


def _predictions(answer: Any) -> list[Any]:
    found = answer.get("predictions") if isinstance(answer, Mapping) else None
    return found if isinstance(found, list) else []


def _fields(endpoint: str) -> Flow[tuple[tuple[str, ...], str]]:
    """The names of the inputs of the model that an endpoint serves, and which one is a picture."""
    if not endpoint:
        raise InvalidInput("these rows have no field names", "send records: [{'field': value, ...}, ...], or a DataFrame")
    serving = yield _get(endpoint)
    name, number = parse(serving.model)
    version = yield Call("GET", path("models", name, "versions", number), ModelVersion.from_json)
    inputs = version.signature.inputs if version.signature else ()
    image = next((item.name for item in inputs if item.type == "image"), "")
    return tuple(item.name for item in inputs), image
