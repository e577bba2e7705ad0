"""The child process: reads SPEC.json, binds itself to its limits, does one job, writes result.json beside it.

Exit 0: the result says what was made or what is wrong with the data. Anything else: the process itself failed.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from libs.errors import AppError
from services.data.engine.limits import Limits, confine


def main(spec_path: Path) -> None:
    spec = json.loads(spec_path.read_bytes())
    limits = Limits(**spec["limits"])
    folder = spec_path.parent
    threading.Thread(target=_end_with_parent, daemon=True).start()
    confine(limits)
    answer: dict[str, Any]
    try:
        answer = {"done": _work(spec["kind"], spec["job"], folder, limits)}
    except AppError as error:
        answer = {"problem": _problem(error)}
    except Exception as error:
        # Loaded with the first job only.
        from services.data.engine.database import translate

        if not (known := translate(error)):
            raise
        answer = {"problem": _problem(known)}
    unfinished = folder / "result.json.part"
    unfinished.write_text(json.dumps(answer, allow_nan=False))
    unfinished.replace(folder / "result.json")


def _work(kind: str, job: dict[str, Any], folder: Path, limits: Limits) -> dict[str, Any]:
    """Each job loads only what it needs: a preview should not wait for Arrow."""
    if kind == "ingest":
        from services.data.engine.ingest import ingest

        return ingest(job, folder, limits)
    if kind == "preview":
        from services.data.engine.preview import preview

        return preview(job, folder, limits)
    if kind in ("transform", "check"):
        from services.data.engine import transform

        return transform.transform(job, folder, limits) if kind == "transform" else transform.check(job, folder, limits)
    raise ValueError(f"unknown kind of job: {kind}")


def _problem(error: AppError) -> dict[str, Any]:
    errors = [{"field": item.field, "message": item.message, "suggestions": list(item.suggestions)} for item in error.errors]
    return {"code": error.code, "detail": error.detail, "errors": errors, "meta": error.meta}


def _end_with_parent() -> None:
    """The parent holds the other end of standard input: when it is gone, however it died, so is this process."""
    while os.read(0, 4096):
        pass
    os._exit(70)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    # Straight out: freeing gigabytes one by one is of no use to anybody.
    sys.stdout.flush()
    os._exit(0)
