"""A model package that answers: by ONNX Runtime where model.onnx is there, else by torch, which only then is loaded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libs.modelkit import code_runtime, custom
from libs.modelkit import package as packages
from libs.modelkit.code_runtime import CodeRuntime
from libs.modelkit.package import Package
from libs.modelkit.raw import Raw
from libs.modelkit.signature import Signature
from libs.modelkit.writing import Embed, Generate, write

Model = Callable[[NDArray[Any]], NDArray[np.floating]]
# Attention takes memory for each row.
_EMBEDDED_AT_ONCE = 64


class Runtime:
    """Answers for one package. Safe to call from one thread at a time; `generate` and `embed` from a second one beside it.

    These two are None where the model does not offer them.
    """

    def __init__(self, package: Package, model: Model, engine: str, vectors: Model | None = None) -> None:
        self.package = package
        self.engine = engine
        self.generate: Generate | None = self._generate if package.task == "text_generation" else None
        self.embed: Embed | None = self._embed if vectors is not None and len(package.preprocessing.inputs) == 1 else None
        self._model = model
        self._vectors = vectors
        self._dtype = np.int64 if package.preprocessing.tokens else np.dtype(package.dtype)

    @property
    def signature(self) -> Signature:
        return self.package.signature

    @property
    def labels(self) -> list[str]:
        """Classes as texts, in the order of the probabilities; empty for regression."""
        return self.package.target.labels

    def read(self, records: Sequence[Mapping[str, Any]]) -> Raw:
        """Checks raw records; raises `Invalid` ("invalid_record") that names each wrong field."""
        return self.package.preprocessing.reader.read(records)

    def answer(self, raw: Raw) -> NDArray[np.float64]:
        """Numbers [N] for regression, probabilities [N, K] for classification."""
        rows = self.package.preprocessing.transform(raw).astype(self._dtype, copy=False)
        outputs = self._model(rows)
        target = self.package.target
        return target.numbers(outputs) if target.classes is None else target.probabilities(outputs)

    def blank(self, rows: int) -> Raw:
        """Rows that say nothing, for a warm-up."""
        return self.package.preprocessing.blank(rows)

    def word(self, answers: NDArray[np.float64]) -> list[dict[str, Any]]:
        """Answers as records: {"prediction": 1.5}, or {"prediction": "M", "probabilities": {"B": 0.1, "M": 0.9}}."""
        classes, labels = self.package.target.classes, self.labels
        if classes is None:
            return [{"prediction": value} for value in answers.tolist()]
        best = answers.argmax(axis=1).tolist()
        return [
            {"prediction": classes[index], "probabilities": dict(zip(labels, row, strict=True))}
            for index, row in zip(best, answers.tolist(), strict=True)
        ]

    def close(self) -> None:
        """Nothing of it outlives this process."""

    def predict_records(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """From raw records to records; see `read` for errors and `word` for the form."""
        return self.word(self.answer(self.read(records))) if records else []

    def _generate(self, prompt: str, *, max_tokens: int, temperature: float, stop: list[str]) -> Iterator[str]:
        return write(self._model, self.package.preprocessing.shape[0], prompt, max_tokens, temperature, stop)

    def _embed(self, texts: list[str]) -> list[list[float]]:
        """What the model's last layer sees of each text."""
        assert self._vectors is not None
        [field] = self.signature.inputs
        rows = self.package.preprocessing.transform(self.read([{field.name: text} for text in texts])).astype(self._dtype, copy=False)
        vectors: list[list[float]] = []
        for start in range(0, len(rows), _EMBEDDED_AT_ONCE):
            vectors += self._vectors(rows[start : start + _EMBEDDED_AT_ONCE]).tolist()
        return vectors


def load(folder: Path | str, threads: int = 1) -> Runtime:
    """Raises `Invalid` where the folder is no model package. One answer is made here: what cannot answer is not loaded."""
    package = packages.read(Path(folder))
    if package.onnx is not None:
        runtime = Runtime(package, *_by_onnx(package, threads))
    else:
        runtime = Runtime(package, *_by_torch(package, threads))
    shape = package.preprocessing.shape
    runtime._model(np.zeros((1, *shape), runtime._dtype))
    return runtime


def load_any(folder: Path | str, threads: int = 1, memory_bytes: int = 0) -> Runtime | CodeRuntime:
    """As `load`, and models whose owner wrote their code; a process that cannot fence it off refuses it in words."""
    data = packages.read_json(Path(folder))
    return code_runtime.load(Path(folder), data, memory_bytes) if data.get("format") == custom.FORMAT else load(folder, threads)


def _by_onnx(package: Package, threads: int) -> tuple[Model, str, Model | None]:
    from libs.modelkit.onnx_session import EMBEDDING, bind, embeds, open_session  # a torch replica does without

    assert package.onnx is not None
    session = open_session(package.onnx.read_bytes(), threads)
    return bind(session), "onnxruntime", bind(session, EMBEDDING) if embeds(session) else None


def _by_torch(package: Package, threads: int) -> tuple[Model, str, Model | None]:
    import torch  # only here: a replica with ONNX takes 65 MB, with torch 530

    torch.set_num_threads(threads)
    module = build_module(package)
    weights = packages.read_weights(package.folder / packages.WEIGHTS)
    module.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    module.to(getattr(torch, package.dtype)).eval()

    def by(call: Callable[[Any], Any]) -> Model:
        def run(rows: NDArray[Any]) -> NDArray[np.floating]:
            with torch.inference_mode():
                return call(torch.from_numpy(rows)).numpy()

        return run

    return by(module), "torch", by(module.pool) if package.preprocessing.kind == "text" else None


def build_module(package: Package) -> Any:
    """The package's torch module with fresh weights."""
    from libs.modelkit.architectures import build  # needs torch

    preprocessing = package.preprocessing
    outputs = package.target.outputs
    return build(package.architecture, package.params, preprocessing.kind, preprocessing.shape, outputs, preprocessing.tokens)
