"""From Arrow batches into the database. Apart from `database`, because Arrow takes 0.1 s to import and most jobs need none."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from services.data.engine.database import Database
from services.data.engine.limits import MIB

MERGED_ROWS, MERGED_BYTES = 16_384, 32 * MIB


def load(database: Database, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Keeps the rows under a name, in their order."""
    database.connection.register("incoming", pa.RecordBatchReader.from_batches(schema, _merged(batches)))
    database.keep(name, "SELECT * FROM incoming", width=len(schema))
    database.connection.unregister("incoming")


def _merged(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Small batches put together: each costs DuckDB as much as 2048 rows."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        waiting.append(_compact(batch))
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= MERGED_ROWS or size >= MERGED_BYTES:
            yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()
            waiting, rows, size = [], 0, 0
    if waiting:
        yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()


def _compact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same without what its readers have reserved: of CSV, each column holds as many bytes as its whole block."""
    return pa.ipc.read_record_batch(batch.serialize(), batch.schema)
