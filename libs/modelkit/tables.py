"""Arrow tables to numpy columns. The only module here that loads pyarrow; replicas never do."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Columns = dict[str, NDArray[Any]]


def column_type(kind: pa.DataType) -> str:
    """The platform's name for an Arrow type: double, integer, boolean, timestamp, image (binary) or string."""
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "double"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "timestamp"
    return "image" if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else "string"


def read_columns(table: pa.Table, names: list[str]) -> Columns:
    """Numeric columns as float64 with NaN for null (booleans 0 and 1, times seconds since 1970), others as objects with None."""
    return {name: _read(table.column(name)) for name in names}


def _read(column: pa.ChunkedArray) -> NDArray[Any]:
    kind = column_type(column.type)
    if kind == "timestamp":
        micros = column.cast(pa.timestamp("us")).cast(pa.int64())
        return _numbers(micros) / 1e6
    if kind in ("double", "integer", "boolean"):
        return _numbers(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.to_numpy().astype(object)


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    # Nulls become NaN. Not by fill_null: its scalar looks for pandas, which engines hide, and falls over that.
    return column.cast(pa.float64(), safe=False).to_numpy()
