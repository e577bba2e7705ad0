"""A model whose owner wrote its code: a class `Model` that answers in the sandbox, never in this process. Its answers are checked here."""

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libs.errors import AppError, Invalid, Violation
from libs.modelkit.custom import REQUIREMENTS, requirements
from libs.modelkit.raw import Raw
from libs.modelkit.records import RecordReader
from libs.modelkit.sandbox import Sandbox
from libs.modelkit.signature import Field, Signature, read_signature

_RECORD = "record"
_TYPES: Mapping[str, tuple[type, ...]] = {"double": (int, float), "integer": (int,), "boolean": (bool,), "string": (str,)}


class CodeRuntime:
    """Answers by the class of one package. Safe to call from one thread at a time."""

    engine = "python"
    labels: Sequence[str] = ()

    def __init__(self, signature: Signature | None, sandbox: Sandbox) -> None:
        self.signature = signature or Signature((), ())
        self._reader = RecordReader([field.as_json() for field in self.signature.inputs]) if self.signature.inputs else None
        self._sandbox = sandbox

    def read(self, records: Sequence[Any]) -> Raw:
        """Checks records as far as a signature says what they are; raises `Invalid` ("invalid_record") that names each wrong field."""
        if self._reader:
            self._reader.read(records)
        try:
            json.dumps(records)
        except RecursionError as error:
            raise Invalid.of([Violation("instances", "they are nested too deeply")], code="invalid_record") from error
        return Raw(np.empty((len(records), 0)), {_RECORD: np.fromiter(records, object, len(records))})

    def answer(self, raw: Raw) -> NDArray[np.object_]:
        """What the class answers, one JSON value a record. Raises `AppError` in words where these are not what its signature says."""
        given = self._sandbox.predict(raw.strings[_RECORD].tolist())
        for answer in given:
            if words := _wrong(self.signature.outputs, answer):
                raise AppError(f"The model's code answered what its signature does not say: {words}", code="upstream_failed")
        return np.fromiter(given, object, len(given))

    def word(self, answers: NDArray[np.object_]) -> list[Any]:
        """As they came."""
        return answers.tolist()

    def close(self) -> None:
        """Ends the process."""
        self._sandbox.stop()


def load(folder: Path, data: Mapping[str, Any], memory_bytes: int) -> CodeRuntime:
    """Raises `AppError` with the code's own last words where its `load` fails, and `Invalid` for packages that are not here."""
    signature = read_signature(data["signature"]) if data.get("signature") else None
    _require_installed(requirements(folder))
    sandbox = Sandbox(folder, memory_bytes=memory_bytes)
    sandbox.start()
    return CodeRuntime(signature, sandbox)


def _require_installed(wanted: Mapping[str, str]) -> None:
    wrong = []
    for name, version in wanted.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = ""
        if found != version:
            here = f"this platform has {name} {found}" if found else f"this platform does not have {name}, and installs nothing for a model"
            wrong.append(Violation(REQUIREMENTS, f"{name}=={version} is not here: {here}"))
    if wrong:
        raise Invalid.of(wrong, code="invalid_data")


def _wrong(outputs: Sequence[Field], answer: Any) -> str:
    """What of an answer is not as the outputs say; empty where all is."""
    if not outputs:
        return ""
    if not isinstance(answer, dict):
        return f"a {type(answer).__name__} where an object with {', '.join(field.name for field in outputs)} is due"
    for field in outputs:
        value = answer.get(field.name)
        if value is None and field.optional:
            continue
        if not _fits(field, value, field.shape):
            shape = f" of the shape {list(field.shape)}" if field.shape else ""
            return f"'{field.name}' is no {field.type}{shape}"
    return ""


def _fits(field: Field, value: Any, shape: tuple[int, ...]) -> bool:
    if shape:
        return isinstance(value, list) and len(value) == shape[0] and all(_fits(field, item, shape[1:]) for item in value)
    return isinstance(value, _TYPES[field.type]) and (field.type == "boolean" or not isinstance(value, bool))
