"""Use cases about registered models."""

import asyncio
from collections.abc import Collection

from lepton.deployment.v1.deployment_service_pb2 import GetEndpointRequest
from libs.db import Database, Unit
from libs.errors import Conflict, NotFound, Transient
from libs.rpc import Client
from services.training import repository, wire
from services.training.tables import Model

# Of a model that more endpoints serve, none but these are asked about.
MOST_ASKED = 20


async def endpoints_gone(database: Database, deployment: Client, *, workspace: str, name: str) -> set[str]:
    """Endpoints that serve the model by what events have told so far, and do not by what deployment says now. Awaits the network."""
    async with database.read() as session:
        told = await repository.endpoints_of_model(session, workspace, name)

    async def serves(endpoint: str) -> bool:
        try:
            now = await deployment.GetEndpoint(GetEndpointRequest(name=endpoint))
            return bool(now.model.partition("@")[0] == name)
        except NotFound:
            return False
        except Transient:
            return True

    asked = told[:MOST_ASKED]
    return {endpoint for endpoint, still in zip(asked, await asyncio.gather(*map(serves, asked)), strict=True) if not still}


async def named_model(unit: Unit, workspace: str, name: str, now: float) -> Model:
    """The model, locked; made where there is none."""
    model = await repository.find_model(unit.session, workspace, name, lock=True)
    if model is None:
        return await unit.insert(Model(workspace=workspace, name=name, create_time=now))
    if model.deleted:
        # The name lives again; its numbers go on, because name@n has meant something else before.
        model.deleted, model.create_time = False, now
    return model


async def delete_model(unit: Unit, *, workspace: str, name: str, gone: Collection[str] = ()) -> None:
    """Deletes every version; their files are swept once nothing names them. Raises Conflict while an endpoint serves one, but `gone`."""
    model = await repository.get_model(unit.session, workspace, name, lock=True)
    endpoints = [endpoint for endpoint in await repository.endpoints_of_model(unit.session, workspace, name) if endpoint not in gone]
    if endpoints:
        named = ", ".join(endpoints[:5]) + (", …" if len(endpoints) > 5 else "")
        raise Conflict(f"model '{name}' is served by {named}; delete the endpoint first, or let it serve another model")
    model.deleted = True
    await repository.delete_model_versions(unit.session, workspace, name)
    await unit.emit(wire.model_deleted(workspace, name))


async def on_endpoint_changed(unit: Unit, *, workspace: str, endpoint: str, model: str) -> None:
    """An endpoint wants a version of `model` ("name@n"), or is gone (empty)."""
    await repository.set_served_model(unit.session, workspace, endpoint, model.partition("@")[0])
