"""A run folder for the engine, and small models from the replica's tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from libs.modelkit.runtime import Runtime
from services.deployment.domain.batch import parts_of
from services.deployment.replica.conftest import numbers, pictures, runtime, ship

__all__ = ["numbers", "pictures", "runtime", "ship"]


def table(rows: int) -> pa.Table:
    """What `runtime` reads, and a number of each row."""
    draw = np.random.default_rng(rows)
    texts = [("x", "y", None, "unknown")[place] for place in draw.integers(0, 4, rows)]
    return pa.table({"id": np.arange(rows), "a": draw.normal(size=rows), "b": pa.array(texts, pa.string())})


def lay_out(folder: Path, model: Runtime | Path, splits: dict[str, pa.Table], *, part_rows: int = 1000, **changed: Any) -> Path:
    """Spec and data of a run of all parts; a row group has 300 rows. `model`: what it loads, or its package's folder."""
    (folder / "data").mkdir(parents=True)
    for number, rows in enumerate(splits.values()):
        pq.write_table(rows, folder / "data" / f"{number}.parquet", row_group_size=300)
    parts = parts_of([(name, rows.num_rows) for name, rows in splits.items()], part_rows)
    spec = {
        "package": str(model if isinstance(model, Path) else model.package.folder),
        "splits": [{"name": name, "path": f"data/{number}.parquet"} for number, name in enumerate(splits)],
        "parts": [{"number": part.number, "split": part.split, "start": part.start, "stop": part.stop} for part in parts],
        "columns": ["id"],
        "probabilities": True,
        "threads": 1,
        "memory_bytes": 0,
        **changed,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def made(folder: Path) -> dict[int, bytes]:
    """Parts by their number."""
    return {int(path.stem): path.read_bytes() for path in sorted((folder / "parts").glob("*.parquet"))}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / "parts").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def spec(tmp_path: Path) -> Any:
    return lambda folder: json.loads((folder / "spec.json").read_bytes())
