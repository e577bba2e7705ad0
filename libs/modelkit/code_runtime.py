"""A model whose owner wrote its code: a class `Model` that answers in the sandbox, never in this process. Its answers are checked here."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libs.errors import AppError, Invalid, Violation
from libs.modelkit.custom import requirements
from libs.modelkit.raw import Raw
from libs.modelkit.records import MAX_ERRORS, RecordReader
from libs.modelkit.sandbox import Sandbox
from libs.modelkit.signature import Field, Signature, read_signature
from libs.modelkit.writing import Embed, Generate, bounded

# Of addresses, not of memory: libraries map more than they use. What is used is bounded by who started this process.
LEAST_BYTES = 2 << 30
_RECORD = "record"
_NUMBER = Field("number", "double")
_TYPES: Mapping[str, tuple[type, ...]] = {"double": (int, float), "integer": (int,), "boolean": (bool,), "string": (str,)}


class CodeRuntime:
    """Answers by the class of one package. Safe to call from one thread at a time."""

    engine = "python"

    def __init__(
        self, signature: Signature | None, sandbox: Sandbox, labels: Sequence[str] = (), packages: ExitStack | None = None
    ) -> None:
        """`labels`: classes, in the order of the probabilities; empty for what is no ONNX file whose classes have names."""
        self.signature = signature or Signature((), ())
        self.labels = labels
        inputs = self.signature.inputs
        self._nested = any(field.shape and field.type != "image" for field in inputs)
        self._reader = RecordReader([field.as_json() for field in inputs]) if inputs and not self._nested else None
        self._sandbox, self._packages = sandbox, packages or ExitStack()
        # What the class has beside `predict`; None where it has it not. Each may be called from any thread.
        offers = sandbox.offers
        self.generate: Generate | None = self._generate if "generate" in offers else None
        self.embed: Embed | None = self._embed if "embed" in offers else None

    def read(self, records: Sequence[Any]) -> Raw:
        """Checks records as far as a signature says what they are; raises `Invalid` ("invalid_record") that names each wrong field."""
        if self._reader:
            self._reader.read(records)
        if self._nested:
            _require_nested(self.signature.inputs, records)
        try:
            json.dumps(records, allow_nan=False)
        except (RecursionError, ValueError) as error:
            words = "a number is not finite" if isinstance(error, ValueError) else "they are nested too deeply"
            raise Invalid.of([Violation("instances", words)], code="invalid_record") from error
        return Raw(np.empty((len(records), 0)), {_RECORD: np.fromiter(records, object, len(records))})

    def answer(self, raw: Raw) -> NDArray[np.object_]:
        """What the class answers, one JSON value a record. Raises `AppError` in words where these are not what its signature says."""
        given = self._sandbox.predict(raw.strings[_RECORD].tolist())
        for answer in given:
            if words := _wrong(self.signature.outputs, answer):
                raise AppError(f"The model's code answered what its signature does not say: {words}", code="upstream_failed")
        return np.fromiter(given, object, len(given))

    def word(self, answers: NDArray[np.object_]) -> list[Any]:
        """As they came; probabilities by their class, as of any classifier."""
        given = answers.tolist()
        if not self.labels:
            return given
        return [{**answer, "probabilities": dict(zip(self.labels, answer["probabilities"], strict=True))} for answer in given]

    def _generate(self, prompt: str, *, max_tokens: int, temperature: float, stop: list[str]) -> Iterator[str]:
        """At most so many pieces of text. Raises `AppError` ("upstream_failed") where they are anything else, or too long together."""
        pieces = self._sandbox.stream("generate", prompt, max_tokens=max_tokens, temperature=temperature, stop=stop)
        return bounded(pieces, max_tokens)

    def _embed(self, texts: list[str]) -> list[list[float]]:
        """A list of as many numbers for each text. Raises `AppError` ("upstream_failed") where it is anything else."""
        found = self._sandbox.call("embed", texts)
        shape = (len(found[0]),) if found and isinstance(found[0], list) else (0,)
        if not all(_fits(_NUMBER, each, shape) for each in found):
            raise AppError("The model's code must embed each text as a list of numbers, all of one length", code="upstream_failed")
        return [[float(number) for number in each] for each in found]

    def close(self) -> None:
        """Ends the process; the packages that came with the model go, too."""
        self._sandbox.stop()
        self._packages.close()


def load(folder: Path, data: Mapping[str, Any], memory_bytes: int) -> CodeRuntime:
    """Raises `AppError` with the code's own last words where its `load` fails, and `Invalid` for packages that are not here.

    memory_bytes: that this process may take; the code may map as much, or LEAST_BYTES where that is more.
    """
    signature = read_signature(data["signature"]) if data.get("signature") else None
    with ExitStack() as stack:
        code = packages = None
        if data.get("kind") == "onnx":
            code = Path(__file__).with_name("onnx_model.py")
        elif requirements(folder):
            from libs.modelkit import image, wheels  # what reads wheels takes a tenth of a second to load

            found = wheels.needed(folder, image.installed)
            packages = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lepton-packages-")))
            wheels.unpack(found, packages)
        sandbox = Sandbox(folder, code=code, packages=packages, memory_bytes=max(memory_bytes, LEAST_BYTES))
        sandbox.start()
        return CodeRuntime(signature, sandbox, data.get("classes") or (), stack.pop_all())


def _require_nested(inputs: Sequence[Field], records: Sequence[Any]) -> None:
    names = {field.name for field in inputs}
    wrong = []
    for at, record in enumerate(records):
        surplus = record.keys() - names if isinstance(record, dict) else ()
        words = f"the model takes no field '{min(surplus)[:60]}'" if surplus else _wrong(inputs, record)
        if words:
            wrong.append(Violation(f"instances[{at}]", words))
    if wrong:
        raise Invalid.of(wrong[:MAX_ERRORS], code="invalid_record")


def _wrong(fields: Sequence[Field], record: Any) -> str:
    """What of a record, or of an answer, is not as the fields say; empty where all is."""
    if not fields:
        return ""
    if not isinstance(record, dict):
        return f"a {type(record).__name__} where an object with {', '.join(field.name for field in fields[:20])} is due"
    for field in fields:
        value = record.get(field.name)
        if value is None and field.optional:
            continue
        if not _fits(field, value, field.shape):
            shape = f" of the shape {list(field.shape)}" if field.shape else ""
            return f"'{field.name}' is no {field.type}{shape}"
    return ""


def _fits(field: Field, value: Any, shape: tuple[int, ...]) -> bool:
    if field.type == "image":
        return isinstance(value, str | list)
    if shape:
        return isinstance(value, list) and len(value) == shape[0] and all(_fits(field, item, shape[1:]) for item in value)
    return isinstance(value, _TYPES[field.type]) and (field.type == "boolean" or not isinstance(value, bool))
