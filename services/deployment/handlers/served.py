"""A model version that training knows."""

from dataclasses import dataclass
from typing import Any

from services.deployment.domain.resources import Needs, complete
from services.deployment.tables import Revision

ONNX, WEIGHTS = "model.onnx", "weights.safetensors"


@dataclass(frozen=True)
class Served:
    """Its name, its number, its package's files."""

    model: str
    number: int
    files: list[dict[str, Any]]

    def complete(self, needs: Needs) -> Needs:
        """What a replica of it gets where `needs` is asked for."""
        paths = {file["path"]: file["size_bytes"] for file in self.files}
        return complete(needs, onnx=ONNX in paths, weights_bytes=paths.get(WEIGHTS) or paths.get(ONNX, 0))

    def is_of(self, revision: Revision) -> bool:
        """Whether the revision serves it."""
        return (self.model, self.number) == (revision.model, revision.model_version)
