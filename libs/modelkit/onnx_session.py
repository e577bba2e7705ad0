"""ONNX Runtime, set for a replica that shares its machine: one thread, no spinning, no memory kept beyond need."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

# A second output of graphs for texts.
EMBEDDING = "embedding"
_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}


def open_session(content: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """From bytes, not from a path: a file that names other files finds none."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def embeds(session: onnxruntime.InferenceSession) -> bool:
    """Whether the graph gives its rows' vectors too."""
    return any(output.name == EMBEDDING for output in session.get_outputs())


def bind(session: onnxruntime.InferenceSession, output: str = "y") -> Callable[[NDArray[Any]], NDArray[np.floating]]:
    """Outputs [N, K] for preprocessed rows; they are brought to the type that the graph takes."""
    kind, names = _TYPES[session.get_inputs()[0].type], [output]

    def run(rows: NDArray[Any]) -> NDArray[np.floating]:
        outputs: NDArray[np.floating] = session.run(names, {"x": rows.astype(kind, copy=False)})[0]
        return outputs

    return run
