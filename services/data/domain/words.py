"""What callers are told when something is not there or not ready."""

from collections.abc import Iterable, Sequence

from libs.errors import Conflict, Invalid, NotFound, Violation, near
from services.data.domain.states import State


def no_dataset(name: str, names: Iterable[str]) -> NotFound:
    return NotFound.of("dataset", name, names)


def no_version(dataset: str, number: int, numbers: Sequence[int]) -> NotFound:
    there = f"there are {', '.join(map(str, numbers))}" if numbers else "it has none yet: upload its content first"
    return NotFound(f"dataset '{dataset}' has no version {number}; {there}")


def nothing_ready(dataset: str, states: Sequence[tuple[int, State]]) -> Conflict | NotFound:
    """Version 0 was asked for, and none is ready."""
    if not states:
        return NotFound(f"dataset '{dataset}' has no version yet; upload its content first")
    number, state = states[0]
    return not_ready(dataset, number, state)


def not_ready(dataset: str, number: int, state: State, why: str = "") -> Conflict:
    if state is State.FAILED:
        return Conflict(f"version {dataset}@{number} could not be made{f': {why}' if why else ''}; use another version")
    return Conflict(f"version {dataset}@{number} is still being processed; wait until it is ready")


def no_split(name: str, names: Sequence[str]) -> Invalid:
    return Invalid.of(
        [Violation("split", f"there is no split '{name[:60]}'; there are {', '.join(names)}", tuple(near(name, names) or names))]
    )


def other_kind(dataset: str, has: str, brings: str) -> Invalid:
    words = {"table": "a table", "images": "pictures"}
    return Invalid(f"dataset '{dataset}' holds {words[has]}, and this would bring {words[brings]}; take another name", code="invalid_data")
