"""What users hold (records, lists, arrays, frames) as JSON, as rows of an endpoint, and as columns of a table.

pandas, numpy and pyarrow are used where the user has passed such objects, and never imported otherwise.
"""

import base64
import csv
import importlib.util
import io
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from leptonai._errors import InvalidInput

_SCALARS = (str, int, float, bool, bytes, Path, Decimal, date, type(None))


def to_json(value: Any) -> bytes:
    """UTF-8 JSON. Takes numpy and pandas scalars, times (ISO 8601) and bytes or paths of files (base64). Raises InvalidInput."""
    try:
        return json.dumps(value, allow_nan=False, default=_plain, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise InvalidInput("a text holds half of a surrogate pair", "it must be valid Unicode") from None
    except RecursionError:
        raise InvalidInput("the value is nested too deep") from None
    except ValueError as error:
        place = _unsendable(value, "")
        if place is None:
            raise InvalidInput(str(error)) from None
        raise InvalidInput(
            f"{place[0] or 'the value'} is {place[1]}, which is not a number", "use a finite number, or None where it is missing"
        ) from None
    except TypeError as error:
        raise InvalidInput(f"a value cannot be sent: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, datetime | date) or hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, Path):
        return base64.b64encode(read_file(value)).decode()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, set | frozenset | range):
        return sorted(value)
    if is_missing(value):
        return None
    raise TypeError(f"{type(value).__name__} {value!r:.60}")


def _unsendable(value: Any, at: str) -> tuple[str, float] | None:
    """Where in a value a NaN or an infinity is."""
    if isinstance(value, float) and not math.isfinite(value):
        return at, value
    if isinstance(value, Mapping):
        found = (_unsendable(item, f"{at}.{key}" if at else str(key)) for key, item in value.items())
    elif isinstance(value, list | tuple):
        found = (_unsendable(item, f"{at}[{index}]") for index, item in enumerate(value))
    else:
        return None
    return next((place for place in found if place is not None), None)


def read_file(path: Path) -> bytes:
    """A file's bytes; raises InvalidInput."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None


def is_missing(value: Any) -> bool:
    """None, NaN, NaT or pandas.NA."""
    if value is None:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return type(value).__name__ in ("NAType", "NaTType")


# -- rows for an endpoint -------------------------------------------------------------------------------------------------------


def needs_fields(data: Any) -> bool:
    """Whether the rows have no field names of their own, so that the model's signature must lend them."""
    if is_frame(data) or isinstance(data, Mapping):
        return False
    if is_series(data):
        return not (isinstance(data.name, str) or _is_row(data))
    if isinstance(data, list | tuple):
        return not all(isinstance(item, Mapping) for item in data)
    return True


def rows_of(data: Any, fields: Sequence[str] = (), image: str = "") -> list[Any]:
    """Records for `predict`, missing values as None.

    data: a frame; a column (a named Series, or any sequence of scalars where the model takes one field); one record; records; or
    rows of values in the order of `fields`. `image` is the model's picture field: then each item is a picture. Raises InvalidInput.
    """
    if isinstance(data, Mapping):
        return [data]
    if is_frame(data):
        names = [str(name) for name in data.columns]
        _refuse_twins(names)
        columns = [column_values(data.iloc[:, index]) for index in range(len(names))]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] if columns else []
    if is_series(data):
        if _is_row(data):
            return [{str(key): (None if is_missing(value) else value) for key, value in data.items()}]
        name = (
            data.name
            if isinstance(data.name, str) and (not fields or data.name in fields or len(fields) > 1)
            else _only(fields, "a column")
        )
        return [{name: value} for value in column_values(data)]
    if isinstance(data, str | bytes | Path):
        raise InvalidInput("instances are a list of records", f"put the one into a list: [{data!r:.40}]")
    items = data.tolist() if is_array(data) else list(data) if isinstance(data, Iterable) else None
    if not isinstance(items, list):
        raise InvalidInput(f"{type(data).__name__} is not a list of records")
    if image:
        return [item if isinstance(item, Mapping) else {image: item} for item in items]
    return [_record(item, index, fields) for index, item in enumerate(items)]


def _record(item: Any, index: int, fields: Sequence[str]) -> Any:
    if isinstance(item, Mapping):
        return {key: None if is_missing(value) else value for key, value in item.items()}
    if isinstance(item, _SCALARS) or not isinstance(item, Iterable):
        return {_only(fields, f"instances[{index}]"): None if is_missing(item) else item}
    values = [None if is_missing(value) else value for value in item]
    if len(values) != len(fields):
        raise InvalidInput(f"instances[{index}] has {len(values)} values", f"the model takes {len(fields)}: {_listed(fields)}")
    return dict(zip(fields, values, strict=True))


def _only(fields: Sequence[str], what: str) -> str:
    if len(fields) == 1:
        return fields[0]
    raise InvalidInput(f"{what} is one value", f"the model takes {len(fields)} fields: {_listed(fields)}")


def _is_row(series: Any) -> bool:
    return len(series) > 0 and all(isinstance(label, str) for label in series.index)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:12])) + (", …" if len(names) > 12 else "")


# -- columns of a table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """Columns of equal length, as lists of Python values. `index` is a frame's or series' index; `array`: it came from numpy or pandas."""

    names: list[str]
    values: list[list[Any]]
    rows: int
    named: bool = False
    index: Any = None
    array: bool = False
    dtypes: list[str] = field(default_factory=list)


def columns_of(data: Any, what: str) -> Columns:
    """Features out of a frame, series, array (1 or 2 dimensions), a list of numbers, of rows or of records, or a dict of columns.

    `what` names it in errors ("X"). Raises InvalidInput.
    """
    if is_frame(data):
        names = [str(name) for name in data.columns]
        _refuse_twins(names)
        return Columns(names, [column_values(data.iloc[:, i]) for i in range(len(names))], len(data), True, data.index, True)
    if is_series(data):
        named = data.name is not None
        return Columns([str(data.name) if named else "x0"], [column_values(data)], len(data), named, data.index, True)
    if isinstance(data, Mapping):
        columns = {str(name): list(values.tolist() if hasattr(values, "tolist") else values) for name, values in data.items()}
        return _even(list(columns), list(columns.values()), what)
    array = is_array(data)
    if array and data.ndim not in (1, 2):
        raise InvalidInput(f"{what} has {data.ndim} dimensions", "it takes 1 (one feature) or 2 (rows by features)")
    items = data.tolist() if array else _listed_items(data, what)
    if items and isinstance(items[0], Mapping):
        return _from_records(items, what)
    if items and (isinstance(items[0], list | tuple) or is_array(items[0])):
        return _from_rows(items, what, array, data.shape[1] if array else None)
    if array and data.ndim == 2:
        return Columns([f"x{i}" for i in range(data.shape[1])], [[] for _ in range(data.shape[1])], 0, array=True)
    return Columns(["x0"], [[_scalar(item) for item in items]], len(items), array=array)


def _listed_items(data: Any, what: str) -> list[Any]:
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise InvalidInput(f"{what} is {type(data).__name__}", "it takes a DataFrame, Series, array or list")
    return list(data)


def _from_records(items: list[Any], what: str) -> Columns:
    names = [str(name) for name in items[0]]
    for index, item in enumerate(items):
        if not isinstance(item, Mapping) or {str(name) for name in item} != set(names):
            raise InvalidInput(f"{what}[{index}] has other fields than {what}[0]", f"each record takes: {_listed(names)}")
    return Columns(names, [[_scalar({str(k): v for k, v in item.items()}[name]) for item in items] for name in names], len(items), True)


def _from_rows(items: list[Any], what: str, array: bool, width: int | None) -> Columns:
    rows = [list(item.tolist() if is_array(item) else item) if isinstance(item, list | tuple) or is_array(item) else None for item in items]
    width = width if width is not None else len(rows[0] or [])
    for index, row in enumerate(rows):
        if row is None or len(row) != width:
            has = "is one value" if row is None else f"has {len(row)} values"
            raise InvalidInput(f"{what}[{index}] {has}", f"every row must have {width}, as {what}[0] does")
    return Columns(
        [f"x{i}" for i in range(width)],
        [[_scalar(row[i]) for row in rows if row is not None] for i in range(width)],
        len(rows),
        array=array,
    )


def _even(names: list[str], values: list[list[Any]], what: str) -> Columns:
    lengths = {len(column) for column in values}
    if len(lengths) > 1:
        raise InvalidInput(
            f"the columns of {what} have different lengths: {', '.join(f'{n} {len(v)}' for n, v in zip(names, values, strict=True))}"
        )
    return Columns(names, [[_scalar(item) for item in column] for column in values], lengths.pop() if lengths else 0, True)


def _scalar(value: Any) -> Any:
    if hasattr(value, "item") and not isinstance(value, list | tuple):
        value = value.item()
    return float(value) if isinstance(value, Decimal) else value


def column_values(series: Any) -> list[Any]:
    """A series as Python values, None where one is missing."""
    if getattr(series.dtype, "kind", "O") in "iub":
        return list(series.tolist())
    return [None if is_missing(value) else _scalar(value) for value in series.tolist()]


def _refuse_twins(names: Sequence[str]) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise InvalidInput(f"the column {twins[0]!r} is there twice", "give each column a name of its own")


def to_table(names: Sequence[str], values: Sequence[list[Any]]) -> tuple[bytes, str]:
    """Columns as a file: Parquet where pyarrow is loaded, else CSV with every digit. Returns (bytes, file name)."""
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is not None:
        from pyarrow import parquet  # type: ignore[import-untyped,unused-ignore]

        try:
            table = pyarrow.table(dict(zip(names, values, strict=True)))
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
            pass  # a column of mixed types: CSV says them as texts
        else:
            sink = io.BytesIO()
            parquet.write_table(table, sink)
            return sink.getvalue(), "data.parquet"
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows([_cell(value) for value in row] for row in zip(*values, strict=True))
    return text.getvalue().encode(), "data.csv"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return "" if value is None else value.isoformat() if isinstance(value, date) else str(value)


def frame_to_table(frame: Any) -> tuple[bytes, str]:
    """A pandas frame as a file, without its index: Parquet where pyarrow is installed, else CSV with every digit."""
    names = [str(name) for name in frame.columns]
    _refuse_twins(names)
    if not names or not len(frame):
        raise InvalidInput("the frame is empty", "it takes at least one column and one row")
    frame = frame.set_axis(names, axis=1)
    if importlib.util.find_spec("pyarrow") is not None:
        sink = io.BytesIO()
        try:
            frame.to_parquet(sink, engine="pyarrow", index=False)
        except (TypeError, ValueError):
            pass  # a column of mixed types: CSV says them as texts
        else:
            return sink.getvalue(), "data.parquet"
    return frame.to_csv(index=False).encode(), "data.csv"


def is_frame(data: Any) -> bool:
    """A pandas DataFrame."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame)


def is_series(data: Any) -> bool:
    """A pandas Series or Index."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.Series)


def is_array(data: Any) -> bool:
    """A numpy array."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(data, numpy.ndarray)
