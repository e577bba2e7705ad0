"""What follows when an attempt's process has ended: another attempt, and when, or the job's end and its error."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

MAX_CRASHES = 3
MAX_HANGS = 1
# The worker's end is not the job's fault: kill -9 of the platform must not fail it, a job that takes its worker along must end.
MAX_LOSSES = 10
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
STALLED_PAUSE_SECONDS = 5.0


class Outcome(StrEnum):
    """How an attempt ended."""

    CRASHED = "crashed"
    HUNG = "hung"
    # Nobody has renewed its lease: the worker is gone.
    LOST = "lost"
    # The allocation ended under it.
    EVICTED = "evicted"
    # A part of the platform that it needs is away.
    STALLED = "stalled"
    # The worker was told to stop.
    HANDED_BACK = "handed_back"


@dataclass(frozen=True)
class Tally:
    """Bad ends in a row: a new checkpoint is progress and begins the count again, but for hangs."""

    crashes: int = 0
    losses: int = 0
    hangs: int = 0

    def after_progress(self) -> "Tally":
        return replace(self, crashes=0, losses=0)


@dataclass(frozen=True)
class Verdict:
    """Either another attempt after `pause` seconds, or the job fails with `error` (code, detail)."""

    tally: Tally
    pause: float = 0.0
    error: dict[str, Any] | None = None


def judge(outcome: Outcome, tally: Tally, how: str = "") -> Verdict:
    """`how` says in words how the process ended, e.g. "it was killed by signal 9"."""
    match outcome:
        case Outcome.CRASHED:
            tally = replace(tally, crashes=tally.crashes + 1)
            if tally.crashes > MAX_CRASHES:
                detail = f"the training process ended unexpectedly {tally.crashes} times without getting on: {how or 'no reason was given'}"
                return Verdict(tally, error=_error("process_failed", f"{detail}; its last log lines may say more"))
            return Verdict(tally, pause_before(tally.crashes))
        case Outcome.HUNG:
            tally = replace(tally, hangs=tally.hangs + 1)
            if tally.hangs > MAX_HANGS:
                detail = f"the training process made no progress, {tally.hangs} times: {how}"
                return Verdict(tally, error=_error("process_hung", f"{detail}; smaller batches or a smaller model take shorter steps"))
            return Verdict(tally, FIRST_PAUSE_SECONDS)
        case Outcome.LOST:
            tally = replace(tally, losses=tally.losses + 1)
            if tally.losses > MAX_LOSSES:
                detail = f"the worker was lost {tally.losses} times while it ran this job; it may need more memory than there is"
                return Verdict(tally, error=_error("process_failed", detail))
            return Verdict(tally)
        case Outcome.STALLED:
            return Verdict(tally, STALLED_PAUSE_SECONDS)
        case Outcome.EVICTED | Outcome.HANDED_BACK:
            return Verdict(tally)


def pause_before(retry: int) -> float:
    """Seconds before the retry of this number, from 1: 1, 2, 4, …"""
    return float(min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** max(0, retry - 1)))


def _error(code: str, detail: str) -> dict[str, Any]:
    return {"code": code, "detail": detail, "errors": [], "meta": {}}
