"""What a version's state may become, and how often making it is tried. Knows no database."""

from enum import StrEnum

MAX_ATTEMPTS = 4
PAUSE_SECONDS = 1.0


class State(StrEnum):
    """Of a version. What is not visible is no version yet, or no longer: nobody is told of it."""

    # Its number is taken, its quota not yet.
    RESERVING = "reserving"
    PROCESSING = "processing"
    READY = "ready"
    FAILED = "failed"
    # The data was refused while the caller waits, who will hear why; then it is removed.
    REFUSED = "refused"

    @property
    def visible(self) -> bool:
        return self in VISIBLE


VISIBLE = (State.PROCESSING, State.READY, State.FAILED)


def pause_after(attempts: int) -> float:
    """Seconds until a version whose making was interrupted is taken up again."""
    return float(PAUSE_SECONDS * 2 ** (attempts - 1))
