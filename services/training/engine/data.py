"""From Parquet files to preprocessed arrays in three parts: training, validation, test. Loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from libs.errors import Invalid, Violation
from libs.modelkit.fit import check_data, default_features
from libs.modelkit.package import Package
from libs.modelkit.preprocessing import Preprocessing, choose_shape, decode_column, fit_bytes, fit_images, fit_table, fit_text
from libs.modelkit.raw import Raw
from libs.modelkit.tables import Columns, column_type, read_columns
from libs.modelkit.target import Target, fit_target, next_byte
from libs.modelkit.text import to_bytes
from services.training.engine.spec import RunSpec

MAX_TEXT = 16 << 20
_EVALUATED_BYTES = 1 << 16


@dataclass(frozen=True)
class Part:
    """Rows for the model: x [N, ...] preprocessed, y [N] class indices or standardised numbers; of texts [N, L], a byte after each."""

    x: NDArray[Any]
    y: NDArray[Any]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Prepared:
    """Everything the loop needs."""

    preprocessing: Preprocessing
    target: Target
    train: Part
    validation: Part
    test: Part


def read_tables(splits: Mapping[str, Path]) -> tuple[pa.Table, dict[str, slice]]:
    """All splits as one table, and where each lies in it. "all" stands for training rows."""
    # Not pq.read_table: it loads pandas where that is installed, which takes a second.
    tables = {"train" if name == "all" else name: pq.ParquetFile(path, memory_map=True).read() for name, path in splits.items()}
    if "train" not in tables:
        raise _unusable("data.splits", f'there is no "train" or "all" among the splits {sorted(splits)}')
    order = ["train", *sorted(name for name in tables if name != "train")]
    spans, start = {}, 0
    for name in order:
        spans[name] = slice(start, start + tables[name].num_rows)
        start += tables[name].num_rows
    return pa.concat_tables([tables[name] for name in order], promote_options="permissive"), spans


def prepare(spec: RunSpec, table: pa.Table, spans: Mapping[str, slice], init: Package | None = None) -> Prepared:
    """Splits by the seed, fits preprocessing on the training rows (or takes that of `init`), and transforms all rows."""
    columns = [{"name": field.name, "type": column_type(field.type), "nullable": True} for field in table.schema]
    errors = check_data(spec.task, spec.target, spec.features, columns)
    if errors:
        raise Invalid.of(errors, code="invalid_data")
    types = {column["name"]: column["type"] for column in columns}
    names = default_features(spec.task, spec.target, spec.features, columns)
    names = names[:1] if spec.task == "image_classification" else names
    values = read_columns(table, list(dict.fromkeys([*names, spec.target])))
    if not table.num_rows:
        raise _unusable("data", "there are no rows to train on")
    if spec.task == "text_generation":
        return _prepare_text(spec, values[spec.target], spans, init)
    target = init.target if init else fit_target(spec.target, types[spec.target], values[spec.target], classify=spec.classify)
    y = target.encode(values.pop(spec.target))
    parts = _split(spec, y, spans)
    preprocessing, x = _transform(spec, values, {name: types[name] for name in names}, parts[0], init)
    return Prepared(preprocessing, target, *(Part(x[rows], y[rows]) for rows in parts))


def _transform(
    spec: RunSpec, values: Columns, types: Mapping[str, str], train: NDArray[np.intp], init: Package | None
) -> tuple[Preprocessing, NDArray[Any]]:
    if init:
        fitted = init.preprocessing
        _check_same_columns(fitted, types)
        return fitted, _cast(spec, fitted.transform(fitted.from_columns(values)))
    if spec.task == "image_classification":
        (name,) = types
        shape = choose_shape(name, [values[name][row] for row in train], spec.params["image_size"])
        images = decode_column(values[name], shape)
        fitted = fit_images(name, images[train])
        return fitted, _cast(spec, fitted.transform(Raw(np.empty((0, 0)), {}, images)))
    sample = {name: column[train] for name, column in values.items()}
    if spec.task == "text_classification":
        fitted = fit_text(sample, list(types), spec.params["vocabulary"], spec.params["max_length"])
    else:
        fitted = fit_table(sample, types)
    return fitted, _cast(spec, fitted.transform(fitted.from_columns(values)))


def _prepare_text(spec: RunSpec, texts: NDArray[np.object_], spans: Mapping[str, slice], init: Package | None) -> Prepared:
    """Rows of one length, each from where a text begins or a row before it ended; what is asked of each byte is the next one."""
    if any(each is None for each in texts):
        raise _unusable("target", f"'{spec.target}' has missing values; drop these rows with a transform")
    if sum(map(len, texts)) > MAX_TEXT:
        raise _unusable("data", f"the texts have more than {MAX_TEXT >> 20} Mi characters; use fewer")
    parts = [[to_bytes(text) for text in texts[rows]] for rows in _split(spec, np.zeros(len(texts), np.int64), spans)]
    longest = max(map(len, parts[0]))
    if longest == 1:
        raise _unusable("data", "the training texts are empty")
    length = init.preprocessing.shape[0] if init else min(spec.params["max_length"], longest)
    train, *others = (_cut(part, length) for part in parts)
    preprocessing = init.preprocessing if init else fit_bytes(spec.target, length)
    return Prepared(preprocessing, next_byte(spec.target), train, *map(sample_part, others))


def _cut(texts: Sequence[Sequence[int]], length: int) -> Part:
    """Behind a text the next one begins, and behind the last the first: no row is padded."""
    starts: list[int] = []
    begin = 0
    for text in texts:
        starts += range(begin, begin + len(text), length)
        begin += len(text)
    if len(starts) * length > MAX_TEXT:
        raise _unusable("data", f"rows of {length} bytes make more than {MAX_TEXT >> 20} Mi; use fewer texts, or a smaller max_length")
    stream = np.array([*chain.from_iterable(texts)], np.int64)
    rows = np.array(starts, np.int64)[:, None] + np.arange(length + 1)
    tokens = np.take(stream, rows, mode="wrap") if len(stream) else rows
    return Part(tokens[:, :-1], tokens[:, 1:])


def sample_part(part: Part) -> Part:
    """Of texts: so many rows, spread over it, that what a model says of each byte fits into memory."""
    most = max(1, _EVALUATED_BYTES // part.x.shape[1])
    if len(part) <= most:
        return part
    chosen = np.linspace(0, len(part) - 1, most).astype(int)
    return Part(part.x[chosen], part.y[chosen])


def _cast(spec: RunSpec, x: NDArray[Any]) -> NDArray[Any]:
    return x if x.dtype == np.int64 else x.astype(spec.training.dtype, copy=False)


def _check_same_columns(fitted: Preprocessing, types: Mapping[str, str]) -> None:
    before = {field["name"]: field["type"] for field in fitted.inputs}
    if before != dict(types):
        message = (
            f"the model to start from reads the columns {', '.join(before)}, and this data has {', '.join(types)}; they must be the same"
        )
        raise Invalid.of([Violation("model.init", message)], code="invalid_spec")


def _split(spec: RunSpec, y: NDArray[Any], spans: Mapping[str, slice]) -> list[NDArray[np.intp]]:
    """Row numbers of training, validation and test, each in the table's order."""
    training, rows = spec.training, np.arange(len(y))
    labels = y if spec.classify else None
    train, test, validation = (rows[spans.get(name, slice(0, 0))] for name in ("train", "test", "validation"))
    if "test" not in spans:
        train, test = hold_out(train, labels, training.test_fraction, training.seed, 1)
    if "validation" not in spans:
        train, validation = hold_out(train, labels, training.validation_fraction, training.seed, 2)
    if training.patience and not len(validation):
        message = (
            "early stopping watches the validation loss, and there are no validation rows; use more rows or a larger validation_fraction"
        )
        raise Invalid.of([Violation("training.validation_fraction", message)], code="invalid_spec")
    if not len(train):
        raise _unusable("data", "no rows are left to train on; use more rows or smaller fractions")
    return [train, validation, test]


def hold_out(
    rows: NDArray[np.intp], labels: NDArray[Any] | None, fraction: float, seed: int, purpose: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(kept, held out) by the seed; with labels, each class gives its share, and a class of one row keeps it."""
    wanted = round(len(rows) * fraction)
    if fraction > 0 and len(rows) > 1:
        wanted = min(max(wanted, 1), len(rows) - 1)
    if wanted == 0:
        return rows, rows[:0]
    shuffled = np.random.default_rng([seed, purpose]).permutation(rows)
    if labels is None:
        return np.sort(shuffled[wanted:]), np.sort(shuffled[:wanted])
    return _stratify(shuffled, labels, wanted)


def _stratify(shuffled: NDArray[np.intp], labels: NDArray[Any], wanted: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Ranks each row within its class, at (rank + 1/2) / size, and holds out those that come first: every class its share."""
    _, place, sizes = np.unique(labels[shuffled], return_inverse=True, return_counts=True)
    order = np.argsort(place, kind="stable")
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    rank = np.empty(len(shuffled))
    rank[order] = np.arange(len(shuffled)) - starts
    share = (rank + 0.5) / sizes[place]
    share[(sizes[place] == 1)] = 2  # the only row of its class is for training
    first = np.argsort(share, kind="stable")[:wanted]
    held = np.zeros(len(shuffled), bool)
    held[first] = share[first] < 1
    return np.sort(shuffled[~held]), np.sort(shuffled[held])


def sample_rows(part: Part, count: int = 64) -> NDArray[Any]:
    """Some rows for a comparison of outputs, spread over the part."""
    chosen: Sequence[int] = np.unique(np.linspace(0, len(part) - 1, min(count, len(part))).astype(int)).tolist()
    return part.x[chosen]


def _unusable(at: str, message: str) -> Invalid:
    return Invalid.of([Violation(at, message)], code="invalid_data")
