"""What a batch prediction is made of, and what is next about it: decided from its row, the model's signature and the dataset's columns."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice, product
from typing import Any, Protocol

from libs.errors import Violation, near

# A part is what is done again when a process dies, and an object each.
PART_ROWS = 65_536
# Of a model that was brought: a row may take it a second.
BROUGHT_PART_ROWS = 1024
MAX_PARTS = 64
MAX_COLUMNS, MAX_NAME, MAX_ERRORS = 2000, 256, 20
# Until its quota is taken; then whoever was making it is gone.
RESERVING_SECONDS = 120.0
# Without a part in between, so many processes may die.
MAX_FAILURES = 3
PREDICTION, PROBABILITY = "prediction", "probability_"
# What a column may hold where the model's signature says …; of times the signature says string.
_FITS = {
    "double": ("double", "integer", "boolean"),
    "integer": ("double", "integer", "boolean"),
    "boolean": ("double", "integer", "boolean"),
    "string": ("string", "timestamp"),
    "image": ("image",),
}


class BatchState(StrEnum):
    """The words are those of the contract, which does not know the first: nobody sees it before its quota is taken."""

    RESERVING = "reserving"
    QUEUED = "queued"
    RUNNING = "running"
    REGISTERING = "registering"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (BatchState.SUCCEEDED, BatchState.FAILED, BatchState.CANCELLED)


UNSETTLED = tuple(state for state in BatchState if not state.ended)


@dataclass(frozen=True)
class Field:
    """An input or output of a model, as its signature says it."""

    name: str
    type: str
    optional: bool = False
    labels: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Column:
    """Of a dataset version."""

    name: str
    type: str
    nullable: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.type, "nullable": self.nullable}


@dataclass(frozen=True)
class Part:
    """Rows of a split, from `start` to before `stop`. Numbers go on over all splits: their order is that of the rows."""

    number: int
    split: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def parts_of(splits: Iterable[tuple[str, int]], part_rows: int) -> list[Part]:
    """The same for the same splits (name, rows), whenever it is asked."""
    found: list[Part] = []
    for name, rows in splits:
        for start in range(0, rows, part_rows):
            found.append(Part(len(found), name, start, min(start + part_rows, rows)))
    return found


def part_rows(rows: int, least: int = PART_ROWS) -> int:
    return max(least, math.ceil(rows / MAX_PARTS))


def wrong_inputs(inputs: Sequence[Field], columns: Sequence[Column], dataset: str) -> list[Violation]:
    """Why the model cannot read the dataset, column by column; none where it can."""
    by_name = {column.name: column for column in columns}
    spare = by_name.keys() - {field.name for field in inputs}
    return [problem for field in inputs if (problem := _wrong_input(field, by_name, spare, dataset))][:MAX_ERRORS]


def _wrong_input(field: Field, columns: dict[str, Column], spare: Collection[str], dataset: str) -> Violation | None:
    if field.shape and field.type != "image":
        words = f"'{field.name}' takes {math.prod(field.shape)} values a row, and a column holds one"
        return Violation("model", f"{words}; name them one by one (an ONNX file is pushed with --features), or ask an endpoint")
    column = columns.get(field.name)
    if column is None:
        if field.optional:
            return None
        close = tuple(near(field.name, spare))
        hint = f"; is '{close[0]}' meant to be it? Rename it with a transform" if close else ""
        return Violation("dataset", f"{dataset} has no column '{field.name}', which the model reads{hint}", close)
    if column.type not in _FITS.get(field.type, ()):
        wanted = " or ".join(_FITS.get(field.type, (field.type,)))
        return Violation("dataset", f"'{field.name}' of {dataset} is {column.type}, and the model reads {wanted}; cast it with a transform")
    if column.nullable and not field.optional:
        return Violation(
            "dataset",
            f"some rows of {dataset} lack '{field.name}', which the model has to be given; drop or impute them with a transform",
        )
    return None


def kept(columns: Sequence[Column], wanted: Sequence[str]) -> tuple[list[Column], list[Violation]]:
    """The columns that are copied, and what is wrong with those that were asked for."""
    by_name = {column.name: column for column in columns}
    if not wanted:
        return [column for column in columns if column.type != "image"], []
    errors = []
    for number, name in enumerate(wanted):
        at = f"columns[{number}]"
        if name not in by_name:
            close = tuple(near(name, by_name))
            hint = f"did you mean '{close[0]}'?" if close else f"it has {_listed(by_name)}"
            errors.append(Violation(at, f"the dataset has no column '{name[:60]}'; {hint}", close))
        elif by_name[name].type == "image":
            errors.append(Violation(at, f"'{name}' holds pictures, which are not copied; label and path tell them apart"))
        elif name in wanted[:number]:
            errors.append(Violation(at, f"'{name}' is named twice"))
    return [by_name[name] for name in wanted if name in by_name], errors


def added(outputs: Sequence[Field], probabilities: bool) -> list[Column]:
    """What predictions add, in order: a column an output; one a class of probabilities, and one a cell of what else has a shape."""
    found: list[Column] = []
    for field in outputs:
        if field.name == "probabilities" and field.labels:
            names = [PROBABILITY + label for label in field.labels] if probabilities else []
        else:
            # One more than a table has is enough to refuse it: large shapes are soon said.
            cells = product(*(range(min(side, MAX_COLUMNS + 1)) for side in field.shape))
            names = ["_".join([field.name, *map(str, cell)]) for cell in islice(cells, MAX_COLUMNS + 1)]
        found += [Column(name, field.type, field.optional) for name in names]
        if len(found) > MAX_COLUMNS:
            break
    return found


def clashes(kept: Collection[Column], new: Sequence[Column]) -> list[Violation]:
    """Why these cannot stand in one table: names are told apart without their case."""
    if len(kept) + len(new) > MAX_COLUMNS:
        message = f"the result would have {len(kept) + len(new)} columns; {MAX_COLUMNS} are allowed: name fewer, or leave probabilities out"
        return [Violation("columns", message)]
    seen = {column.name.casefold() for column in kept}
    errors = []
    for column in new:
        if column.name.casefold() in seen:
            of_dataset = any(column.name.casefold() == other.name.casefold() for other in kept)
            advice = "leave it out by naming the others in columns" if of_dataset else "leave probabilities out, or name outputs otherwise"
            errors.append(Violation("columns", f"there is a column '{column.name}' already; {advice}"))
        elif len(column.name) > MAX_NAME or any(ord(letter) < 32 or ord(letter) == 127 for letter in column.name):
            errors.append(Violation("probabilities", f"no column can be called {column.name[:60]!r}; leave probabilities out"))
        seen.add(column.name.casefold())
    return errors


class Standing(Protocol):
    """What the decision looks at."""

    state: str
    allocation_id: str
    quota_held: bool
    create_time: float
    not_before: float
    lease_holder: str
    lease_expires: float


class Step(StrEnum):
    NOTHING = "nothing"
    # It was never made.
    WITHDRAW = "withdraw"
    # Ask compute for an allocation; asked again it answers the same one, or another where that is over.
    ASK = "ask"
    # Its worker is gone.
    BURY = "bury"
    # Cancel was asked for and nobody has a process of it.
    CANCEL = "cancel"
    # Look whether its dataset version is made.
    LOOK = "look"
    # Over: what it held is given back.
    RELEASE = "release"


def next_step(job: Standing, now: float) -> Step:
    state = BatchState(job.state)
    if state.ended:
        return Step.RELEASE if job.allocation_id or job.quota_held else Step.NOTHING
    if state is BatchState.RESERVING:
        return Step.WITHDRAW if job.create_time < now - RESERVING_SECONDS else Step.NOTHING
    if state is BatchState.REGISTERING:
        return Step.LOOK
    if job.lease_holder:
        return Step.NOTHING if job.lease_expires > now else Step.BURY
    if state is BatchState.CANCELLING:
        return Step.CANCEL
    return Step.ASK if job.not_before <= now else Step.NOTHING


def pause_after(failures: int) -> float:
    """Seconds until the next process, once so many have died."""
    return float(2 ** (failures - 1)) if failures else 0.0


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:20]) or "none"
