"""What every job that makes a version answers, in JSON."""

from pathlib import Path
from typing import Any

from services.data.engine.columns import Column


def outcome(
    kind: str, columns: list[Column], splits: list[tuple[str, int, Path]], notices: list[str], described: dict[str, Any]
) -> dict[str, Any]:
    """What every job that makes a version answers."""
    repeated = described["duplicate_rows"]
    if repeated:
        what = ("picture repeats another", "pictures repeat others") if kind == "images" else ("row repeats another", "rows repeat others")
        notices = [f"{repeated} {what[repeated > 1]}.", *notices]
    return {
        "kind": kind,
        "columns": [column.to_json() for column in columns],
        "rows": sum(rows for _, rows, _ in splits),
        "splits": [{"name": name, "rows": rows, "file": path.name, "size_bytes": path.stat().st_size} for name, rows, path in splits],
        "notices": notices,
        "profile": described,
    }
