"""DuckDB as the engine uses it: in memory, bounded, spilling into the job's folder, and unable to touch anything else.

Knows nothing of datasets.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from libs.errors import AppError, Invalid
from services.data.engine.columns import literal, refuse
from services.data.engine.limits import MIB, Limits

VECTOR_ROWS = 2048
# Of a row group, as far as its cells are not too many.
GROUP_ROWS, GROUP_CELLS = 122_880, 8_000_000
# Columns from which on a table in memory costs too much.
WIDE = 1000
# A picture weighs as much as so many columns.
PICTURE_WIDTH = 2000


class Database:
    """One connection and the folder it may use."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        spill = folder / "spill"
        spill.mkdir(exist_ok=True)
        self.folder = folder
        self.connection = duckdb.connect(
            ":memory:",
            config={
                "threads": limits.threads,
                "memory_limit": f"{limits.memory_bytes // MIB}MiB",
                "temp_directory": str(spill),
                "max_temp_directory_size": f"{limits.file_bytes // MIB}MiB",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "allow_community_extensions": "false",
                "python_enable_replacements": "false",
            },
        )
        self.connection.execute("SET TimeZone = 'UTC'")
        # A profile asks the same file many times.
        self.connection.execute("SET parquet_metadata_cache = true")

    def confine(self, *files: Path) -> None:
        """From now on SQL reads these files, reads and writes the job's folder, and changes no setting. For good."""
        allowed = ", ".join(literal(str(path)) for path in files)
        self.connection.execute(f"SET allowed_paths = [{allowed}]")
        self.connection.execute(f"SET allowed_directories = [{literal(str(self.folder))}]")
        self.connection.execute("SET enable_external_access = false")
        self.connection.execute("SET lock_configuration = true")

    def run(self, sql: str, parameters: Sequence[Any] | None = None) -> None:
        self.connection.execute(sql, parameters)

    def rows(self, sql: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Any] | None = None) -> tuple[Any, ...]:
        return self.rows(sql, parameters)[0]

    def write_parquet(self, select: str, target: Path, *, width: int, compression: str = "zstd") -> int:
        """Writes a query's rows in their order; answers how many. The same rows give the same bytes. `width`: its columns."""
        rows = max(VECTOR_ROWS, min(GROUP_ROWS, GROUP_CELLS // max(width, 1)))
        sql = f"COPY ({select}) TO {literal(str(target))} (FORMAT parquet, COMPRESSION {compression}, ROW_GROUP_SIZE {rows})"
        return int(self.row(sql)[0])

    def keep(self, name: str, select: str, *, width: int) -> None:
        """Computes a query once, under a name. A table takes 256 KiB of memory for every column, however few the rows: wide ones lie in a
        file."""
        if width <= WIDE:
            self.run(f"CREATE OR REPLACE TABLE {name} AS {select}")
            return
        path = self.folder / f"{name}.parquet"
        self.write_parquet(select, path, width=width, compression="uncompressed")
        self.run(f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM read_parquet({literal(str(path))})")

    def drop(self, name: str, *, width: int) -> None:
        """What was kept."""
        self.run(f"DROP {'TABLE' if width <= WIDE else 'VIEW'} {name}")
        (self.folder / f"{name}.parquet").unlink(missing_ok=True)


def translate(error: BaseException) -> AppError | None:
    """What the platform's words for an exception of DuckDB, Arrow or the kernel are; None where it is a bug."""
    text = str(error)
    if isinstance(error, (MemoryError, duckdb.OutOfMemoryException)) or "malloc of size" in text or "realloc of size" in text:
        return Invalid("the data needs more memory than one job may take; split it into smaller files", code="out_of_memory")
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return AppError("the platform's disk is full; nothing was stored", code="storage_full")
    if "File too large" in text:
        return Invalid("the result is larger than one file may be; split the data into smaller files", code="too_large")
    return None


@contextmanager
def damaged(field: str, what: str) -> Iterator[None]:
    """Turns a reader's exception into the refusal of the file."""
    try:
        yield
    except (duckdb.Error, ValueError, OSError, MemoryError) as error:
        if known := translate(error):
            raise known from error
        raise refuse(field, f"{what}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The part of a DuckDB message that says what is wrong."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    head, _, tail = line.partition(" Error: ")
    return (tail or head)[:300]
