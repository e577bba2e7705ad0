"""The first rows of a split as JSON."""

import io
import json
import math
from pathlib import Path
from typing import Any

from services.data.engine.columns import literal
from services.data.engine.database import Database
from services.data.engine.limits import Limits

EXACT_IN_JSON = 1 << 53
TEXT_CHARACTERS = 1000
ANSWER_CHARACTERS = 8_000_000


def preview(job: dict[str, Any], folder: Path, limits: Limits) -> dict[str, Any]:
    """`job`: path, rows. Pictures come as width, height and size in bytes; what JSON numbers cannot hold comes as text; long texts are cut,
    and so are rows where all together would be too much for one answer."""
    path = Path(job["path"])
    database = Database(folder, limits)
    database.confine(path)
    relation = database.connection.execute(f"SELECT * FROM read_parquet({literal(str(path))}) LIMIT {int(job['rows'])}")
    names = [entry[0] for entry in relation.description]
    rows: list[dict[str, Any]] = []
    size = 0
    while (row := relation.fetchone()) and size < ANSWER_CHARACTERS:
        rows.append({name: _json(value) for name, value in zip(names, row, strict=True)})
        size += len(json.dumps(rows[-1]))
    return {"rows": rows}


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        return _picture(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) and abs(value) > EXACT_IN_JSON:
        return str(value)
    if isinstance(value, str) and len(value) > TEXT_CHARACTERS:
        return f"{value[:TEXT_CHARACTERS]}…"
    return value.isoformat() if hasattr(value, "isoformat") else value


def _picture(content: bytes) -> dict[str, int]:
    # Tables are previewed without it.
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        return {"width": image.width, "height": image.height, "bytes": len(content)}
