"""A run in a folder of its own, in this process: `train(table, **spec)` gives its events and its package's runtime."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from libs.modelkit.runtime import Runtime, load
from services.training.engine.events import Events
from services.training.engine.run import run
from services.training.engine.spec import read_spec


@dataclass
class Trained:
    """A finished run."""

    folder: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    @property
    def result(self) -> dict[str, Any]:
        return next(event for event in self.events if event["type"] == "result")

    @property
    def weights(self) -> bytes:
        return (self.folder / "package" / "weights.safetensors").read_bytes()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def runtime(self) -> Runtime:
        return load(self.folder / "package")


def lay_out(folder: Path, splits: dict[str, pa.Table], **spec: Any) -> Path:
    """A run folder with spec.json and its Parquet files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in splits.items():
        pq.write_table(table, folder / f"{name}.parquet")
    data = {"kind": "table", "splits": {name: f"{name}.parquet" for name in splits}}
    (folder / "spec.json").write_text(json.dumps({"data": data, "target": "y", "threads": 1, **spec}))
    return folder


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Trained]:
    def start(table: pa.Table | dict[str, pa.Table], name: str = "run", **spec: Any) -> Trained:
        folder = lay_out(tmp_path / name, table if isinstance(table, dict) else {"all": table}, **spec)
        read = read_spec(folder / "spec.json")
        run(folder, read, Events(folder / "events.jsonl", read.traceparent))
        return Trained(folder)

    return start
