"""The first prediction of a replica, before anybody else asks it: one record that its model's own signature describes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import structlog

from libs.modelkit.custom import FORMAT

log = structlog.get_logger()

MODEL = "model.json"
# A grey pixel as PNG: a model makes of any picture the size that it takes.
_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgAB5Sfe/AAAAABJRU5ErkJggg=="
# A text that is a time too: a signature does not tell them apart.
_TEXT = "2025-01-31T12:00:00Z"
_VALUES = {"double": 0.0, "integer": 0, "boolean": False, "string": _TEXT, "image": _PICTURE}
_LONGEST_HEAD = 4096


def record_of(package: Path) -> dict[str, Any] | None:
    """A record that the model in `package` takes; None where it does not say what it takes."""
    try:
        said = json.loads((package / MODEL).read_bytes())
        if said.get("format") == FORMAT:
            # Its owner wrote the code: a record without meaning may make it fail, and it need not answer one.
            return None
        inputs = said["signature"]["inputs"]
        return {field["name"]: (field.get("categories") or [_VALUES[field["type"]]])[0] for field in inputs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


async def why_not(host: str, port: int, token: str, record: dict[str, Any], seconds: float) -> str:
    """Why the replica does not answer the record; empty where it does.

    A record that it refuses in words is our guess gone wrong, not the model: that is logged and counts as an answer.
    """
    body = json.dumps({"instances": [record]}).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: {host}\r\nx-lepton-replica-token: {token}\r\ncontent-type: application/json\r\n"
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port, limit=_LONGEST_HEAD)
            try:
                writer.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
                words = (await reader.readline()).split()
            finally:
                writer.close()
    except TimeoutError:
        return f"it did not answer a first prediction within {seconds:g} s"
    except (OSError, ValueError) as error:
        return f"it broke off at its first prediction: {type(error).__name__}"
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    if 400 <= status < 500:
        log.warning("smoke_record_refused", status=status)
    return "" if 200 <= status < 500 else f"it answered its first prediction with {status or 'nothing'}"
