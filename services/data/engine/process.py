"""The parent's side: starts the child process, watches it, and turns its end into a result or an error.

Imports neither DuckDB nor Arrow: a service that only waits stays small.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from libs.errors import AppError, Invalid, Violation
from services.data.engine.limits import Limits

LOG_TAIL = 2000


class EngineFailed(AppError):
    """The child ended without an answer. The same job may do better on another day; `meta` has the signal and the log's end."""

    default_code = "process_failed"


async def run(
    kind: str, job: Mapping[str, Any], folder: Path, limits: Limits, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Does one job in `folder`, which must exist and be empty, and answers its result. Raises the refusal of the data as Invalid, what the
    platform is to blame for as another AppError. A cancelled call leaves no process."""
    spec = folder / "spec.json"
    spec.write_text(json.dumps({"kind": kind, "job": dict(job), "limits": limits.to_json()}))
    with (folder / "engine.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.data.engine",
            str(spec),
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=_environment(folder, environment or {}),
            start_new_session=True,
        )
        try:
            await asyncio.wait_for(child.wait(), limits.wall_seconds)
        except TimeoutError:
            raise Invalid(
                f"the job took longer than {limits.wall_seconds:g} s; split the data into smaller files", code="time_limit"
            ) from None
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
    return _answer(folder, child.returncode or 0, limits)


def _environment(folder: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the platform's own environment: keys have no business in there."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        # Arenas are mapped by 64 MiB a thread, which the bound on the address space counts.
        "MALLOC_ARENA_MAX": "2",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        **extra,
    }


def _answer(folder: Path, code: int, limits: Limits) -> dict[str, Any]:
    result = folder / "result.json"
    if code == 0 and result.exists():
        answer = json.loads(result.read_bytes())
        if "problem" in answer:
            raise _error(answer["problem"])
        return dict(answer["done"])
    if code == -signal.SIGXCPU:
        raise Invalid(
            f"the job took more than {limits.cpu_seconds} s of processor time; split the data into smaller files", code="time_limit"
        )
    log = (folder / "engine.log").read_text(errors="replace")[-LOG_TAIL:]
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    if "MemoryError" in log or "bad_alloc" in log:
        raise Invalid("the data needs more memory than one job may take; split it into smaller files", code="out_of_memory")
    raise EngineFailed(f"the process that reads the data {how}", meta={"log": log})


def _error(problem: Mapping[str, Any]) -> AppError:
    errors = [Violation(item["field"], item["message"], tuple(item["suggestions"])) for item in problem["errors"]]
    kind = AppError if problem["code"] in ("storage_full", "internal") else Invalid
    return kind(problem["detail"], code=problem["code"], errors=errors, meta=problem["meta"])
