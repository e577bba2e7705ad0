"""`python -m services.training.engine RUN_DIR`. Exit codes: 0 done, 3 an error event says why (a retry would not help), else a crash."""

import json
import os
import sys
import time
import traceback
from pathlib import Path

DONE, FAILED, CRASHED = 0, 3, 1
# What a worker cannot do the first one cannot either; it says so, and ends them all, within so long.
FIRST_SECONDS = 10.0


def main(folder: Path) -> int:
    _limit_threads(folder)
    # pyarrow looks whether there is pandas, which takes a second to load; nothing here uses it.
    sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]
    # Only now: numpy and torch read these variables when they are loaded.
    from services.training.engine import faults
    from services.training.engine.crew import Crew, end_with_parent
    from services.training.engine.events import Events
    from services.training.engine.run import run
    from services.training.engine.spec import read_spec

    crew = Crew.of(os.environ)
    if not crew.alone:
        end_with_parent()
    path = folder / "events.jsonl" if crew.first else Path(os.devnull)
    events = Events(path, str(_peek(folder).get("traceparent") or ""))
    events.beat("start")
    try:
        run(folder, read_spec(folder / "spec.json"), events, crew)
    except Exception as error:
        described = faults.describe(error)
        if described is None:
            traceback.print_exc()
            events.log(f"crashed: {type(error).__name__}: {str(error)[:500]}")
            return CRASHED
        events.emit("error", **described)
        if not crew.first:
            time.sleep(FIRST_SECONDS)
            print(described["detail"], file=sys.stderr)  # noqa: T201
        return FAILED
    return DONE


def _limit_threads(folder: Path) -> None:
    threads = str(_peek(folder).get("threads") or 1)
    os.environ.update({"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads})
    # Threads that wait by spinning take the cores from those that work: on 2 busy cores the digits took 24 s, and 3.5 s without.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS gives the same bits again only with this


def _peek(folder: Path) -> dict[str, object]:
    """The spec as it stands, or nothing: `read_spec` says what is wrong with it."""
    try:
        data = json.loads((folder / "spec.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m services.training.engine RUN_DIR")
    run_dir = Path(sys.argv[1]).resolve()
    if "PET_NPROC_PER_NODE" in os.environ and "RANK" not in os.environ:
        from services.training.engine.gang import start_workers

        sys.exit(start_workers(run_dir))
    code = main(run_dir)
    # What was started (threads of torch and BLAS) has nothing left to do: leaving at once saves 0.2 s.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
