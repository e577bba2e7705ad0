"""Use cases about registered models."""

from libs.db import Unit
from libs.errors import Conflict
from services.training import repository, wire


async def delete_model(unit: Unit, *, workspace: str, name: str) -> None:
    """Deletes every version; their files are swept once nothing names them. Raises Conflict while an endpoint serves one."""
    model = await repository.get_model(unit.session, workspace, name, lock=True)
    endpoints = await repository.endpoints_of_model(unit.session, workspace, name)
    if endpoints:
        named = ", ".join(endpoints[:5]) + (", …" if len(endpoints) > 5 else "")
        raise Conflict(f"model '{name}' is served by {named}; delete the endpoint first, or let it serve another model")
    model.deleted = True
    await repository.delete_model_versions(unit.session, workspace, name)
    await unit.emit(wire.model_deleted(workspace, name))


async def on_endpoint_changed(unit: Unit, *, workspace: str, endpoint: str, model: str) -> None:
    """An endpoint wants a version of `model` ("name@n"), or is gone (empty)."""
    await repository.set_served_model(unit.session, workspace, endpoint, model.partition("@")[0])
