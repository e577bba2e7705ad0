"""`python -m services.deployment.engine.bench [ROWS]`: rows a second of the engine's process, from its start to its end, beside loops that
call the same model in batches of 1,024: one with the table in memory, one that reads and writes Parquet as the engine does."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from libs.modelkit import package as packages
from libs.modelkit.export import export
from libs.modelkit.package import Package
from libs.modelkit.preprocessing import fit_table
from libs.modelkit.runtime import load
from libs.modelkit.tables import read_columns
from libs.modelkit.target import fit_target

FEATURES, BATCH, PART, ROUNDS = 30, 1024, 65_536, 3


def make_model(folder: Path) -> Path:
    """Two classes of 30 numbers by two layers of 64."""
    chance = np.random.default_rng(0)
    fitted = fit_table(
        {f"x{place}": chance.normal(size=100) for place in range(FEATURES)}, {f"x{place}": "double" for place in range(FEATURES)}
    )
    target = fit_target("y", "string", np.array(["B", "M"], object), classify=True)
    module = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    made = Package("classification", "mlp", {}, "float32", fitted, target, {}, folder)
    packages.write(made, {name: tensor.numpy() for name, tensor in module.state_dict().items()})
    if why := export(module, np.ones((2, FEATURES), np.float32), folder):
        raise RuntimeError(why)
    return folder


def bare(package: Path, columns: dict[str, np.ndarray]) -> float:
    """Seconds of the loop alone."""
    runtime, rows = load(package), len(columns["x0"])
    start, found = time.perf_counter(), []
    for begin in range(0, rows, BATCH):
        raw = runtime.package.preprocessing.from_columns({name: values[begin : begin + BATCH] for name, values in columns.items()})
        found.append(runtime.answer(raw))
    np.concatenate(found)
    return time.perf_counter() - start


def with_files(folder: Path, package: Path) -> float:
    """Seconds of what one writes without a platform, its imports and the model's load left out."""
    runtime = load(package)
    start, writer = time.perf_counter(), None
    for batch in pq.ParquetFile(folder / "all.parquet").iter_batches(BATCH):
        table = pa.Table.from_batches([batch])
        columns = read_columns(table, [name for name in table.column_names if name != "id"])
        answers = runtime.answer(runtime.package.preprocessing.from_columns(columns))
        made = {"id": table.column("id"), "prediction": [runtime.labels[place] for place in answers.argmax(axis=1)]}
        result = pa.table({**made, **{f"probability_{label}": answers[:, place] for place, label in enumerate(runtime.labels)}})
        writer = writer or pq.ParquetWriter(folder / "answers.parquet", result.schema)
        writer.write_table(result)
    assert writer
    writer.close()
    return time.perf_counter() - start


def ours(folder: Path, package: Path, rows: int) -> float:
    """Seconds of the process, from its start to its end."""
    parts = [{"number": n, "split": "all", "start": at, "stop": min(at + PART, rows)} for n, at in enumerate(range(0, rows, PART))]
    spec = {"package": str(package), "splits": [{"name": "all", "path": "all.parquet"}], "parts": parts}
    (folder / "spec.json").write_text(json.dumps({**spec, "columns": ["id"], "probabilities": True, "threads": 1, "memory_bytes": 0}))
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "services.deployment.engine", str(folder)], check=True)
    return time.perf_counter() - start


def main(rows: int) -> None:
    torch.manual_seed(0)
    chance = np.random.default_rng(1)
    columns = {f"x{place}": chance.normal(size=rows) for place in range(FEATURES)}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        package = make_model(folder / "package")
        pq.write_table(pa.table({"id": np.arange(rows), **columns}), folder / "all.parquet", row_group_size=122_880)
        rounds = [(bare(package, columns), with_files(folder, package), ours(folder, package, rows)) for _ in range(ROUNDS)]
    plain, filed, mine = (rows / min(times) for times in zip(*rounds, strict=True))  # the least disturbed of each
    print(f"rows/s (best of {ROUNDS}): engine's process {mine:,.0f}; loop with files {filed:,.0f}; loop in memory {plain:,.0f}")  # noqa: T201
    print(f"engine over loop with files: {mine / filed:.2f}; over loop in memory: {mine / plain:.2f}")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
