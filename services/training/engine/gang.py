"""Several workers of one run, by torchrun, which reads in PET_… how many and where."""

import os
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

# A worker that does not end by itself once another one has failed.
KILL_SECONDS = 5


def _first(failed: ChildFailedError) -> tuple[int, ProcessFailure]:
    """One that was killed is why another one lost its peer, whichever of them torchrun has noticed first."""
    killed = [(rank, failure) for rank, failure in failed.failures.items() if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM]
    rank, failure = killed[0] if killed else failed.get_first_failure()
    return rank, failure


def start_workers(folder: Path) -> int:
    """Ends as the worker did that failed first."""
    words = ["--max-restarts", "0", "--shutdown-timeout", str(KILL_SECONDS), "-m", "services.training.engine", str(folder)]
    try:
        run(parse_args(words))
    except ChildFailedError as failed:
        rank, failure = _first(failed)
        how = f"exit code {failure.exitcode}" if failure.exitcode >= 0 else f"signal {-failure.exitcode}"
        print(f"worker {rank} ended first, with {how}", file=sys.stderr, flush=True)  # noqa: T201
        if failure.exitcode == -signal.SIGKILL:
            # Whoever watches this process tells by its end whether it was for memory.
            os.kill(os.getpid(), signal.SIGKILL)
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0
