"""What others' facts change here: a listing ends with its endpoint. Knows other services by their events alone."""

from datetime import datetime

from google.protobuf.message import Message

from lepton.deployment.v1.events_pb2 import EndpointDeleted
from libs.db import Unit
from libs.events import Handler, current_event, handles
from services.marketplace import handlers


def reactions() -> dict[type[Message], Handler]:
    """Which fact does what."""
    return handles((EndpointDeleted, on_endpoint_deleted))


async def on_endpoint_deleted(unit: Unit, message: EndpointDeleted) -> None:
    deleted = datetime.fromisoformat(current_event().time).timestamp()
    await handlers.withdraw_endpoint(unit, workspace=message.workspace, endpoint=message.endpoint, deleted=deleted)
