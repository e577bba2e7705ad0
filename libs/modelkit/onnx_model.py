"""An uploaded ONNX file as the class that the sandbox asks: what parses a stranger's bytes sees no secret. Imports nothing of ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(string)": np.object_,
    "tensor(bool)": np.bool_,
    **{f"tensor({sign}int{bits})": getattr(np, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32)},
    "tensor(int64)": np.int64,
}


class Model:
    """One value, or nested lists, by name for each of the graph's inputs and outputs; by what its owner calls them where that is said."""

    batch = True

    def load(self, folder: str) -> None:
        """From bytes, not from a path: a file that names other files finds none."""
        said = json.loads(Path(folder, "model.json").read_bytes())
        self.features, self.classes = said.get("features"), said.get("classes")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False
        content = Path(folder, "model.onnx").read_bytes()
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        given = {each.name: (_TYPES[each.type], each.shape) for each in self.session.get_inputs()}
        self.batch = all(shape[0] != 1 for _, shape in given.values())
        self.inputs = {name: (kind, shape[1:]) for name, (kind, shape) in given.items()}
        self.outputs = [said["probabilities"]] if self.classes else [each.name for each in self.session.get_outputs()]
        if self.classes and all(kind is not np.object_ for kind, _ in self.inputs.values()):
            self._try()

    def predict(self, records: list[dict[str, Any]]) -> list[Any]:
        """One object a record."""
        rows = len(records)
        columns = self._run({name: self._column(name, records).reshape(rows, *sides) for name, (_, sides) in self.inputs.items()}, rows)
        if self.classes:
            [probabilities] = columns
            _require_probabilities(probabilities, self.outputs[0])
            best = probabilities.argmax(axis=1).tolist()
            return [{"prediction": self.classes[at], "probabilities": row} for at, row in zip(best, probabilities.tolist(), strict=True)]
        plain = [column.reshape(rows) if column.shape == (rows, 1) else column for column in columns]
        return [dict(zip(self.outputs, row, strict=True)) for row in zip(*(column.tolist() for column in plain), strict=True)]

    def _column(self, name: str, records: list[dict[str, Any]]) -> np.ndarray:
        kind, _ = self.inputs[name]
        if self.features:
            return np.array([[record[feature] for feature in self.features] for record in records], kind)
        return np.array([record[name] for record in records], kind)

    def _run(self, feeds: dict[str, np.ndarray], rows: int) -> list[np.ndarray]:
        columns = [np.asarray(output) for output in self.session.run(self.outputs, feeds)]
        for name, column in zip(self.outputs, columns, strict=True):
            if len(column) != rows:
                raise ValueError(f"the graph gave {len(column)} rows of '{name}' for {rows}")
        return columns

    def _try(self) -> None:
        """A graph whose numbers are scores is not loaded, rather than failing whoever asks it. One row may be as strange as this one is."""
        [answer] = self._run({name: np.zeros((1, *sides), kind) for name, (kind, sides) in self.inputs.items()}, 1)
        if np.isfinite(answer).all():
            _require_probabilities(answer, self.outputs[0])


def _require_probabilities(rows: np.ndarray, name: str) -> None:
    sums = rows.sum(axis=1, dtype=np.float64)
    for row in np.flatnonzero(~((rows >= -1e-4).all(axis=1) & (np.abs(sums - 1) < 1e-2)))[:1]:
        least, whole = float(rows[row].min()), float(sums[row])
        words = f"these are not probabilities: the least is {least:.4g} and they sum to {whole:.4g}; let the graph end with Softmax"
        raise ValueError(f"the classes have names, and '{name}' gives scores: {words}")
