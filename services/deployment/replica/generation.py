"""The Open Inference Protocol's requests for texts (its generate extension). Knows no transport and no thread."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from libs.errors import AppError
from services.deployment.replica.oip import parse
from services.deployment.replica.openai import Asked, asked_of, event, wrong
from services.deployment.replica.problems import dump

_PARAMETERS = ("max_tokens", "temperature", "stop")


@dataclass(slots=True)
class Generation(Asked):
    """A text that shall go on, and the name and version of who does it."""

    version: str = ""

    def whole(self, pieces: Sequence[str]) -> bytes:
        return dump(self._said("".join(pieces)))

    def event(self, piece: str, *, first: bool) -> bytes:
        """A piece in a stream. Each event with `text_output` is one: whoever counts may."""
        return event(self._said(piece))

    def end(self) -> bytes:
        return b""

    def broken(self, error: AppError) -> bytes:
        return event({"error": error.detail})

    def _said(self, text: str) -> dict[str, Any]:
        return {"model_name": self.model, "model_version": self.version, "text_output": text}


def read_generation(body: bytes, name: str, version: str, *, stream: bool) -> Generation:
    """Raises `Invalid` that names what is wrong."""
    data = parse(body)
    text, parameters = data.get("text_input"), data.get("parameters") or {}
    if not isinstance(text, str):
        raise wrong("text_input", "it must be a text")
    if not isinstance(parameters, dict):
        raise wrong("parameters", 'it must be an object such as {"max_tokens": 64}')
    for unknown in parameters.keys() - set(_PARAMETERS):
        raise wrong(f"parameters.{unknown}", f"it is not supported here; there are {', '.join(_PARAMETERS)}")
    asked = asked_of({**parameters, "model": name, "stream": stream}, False, text, parameters.get("max_tokens"), 16)
    fields = (asked.prompt, asked.max_tokens, asked.temperature, asked.stop, asked.stream)
    return Generation(False, name, *fields, False, version=version)
