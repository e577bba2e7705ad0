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

    def write_parquet(self, select: str, target: Path, *, compression: str = "zstd") -> int:
        """Writes a query's rows in their order; answers how many. The same rows give the same bytes."""
        sql = f"COPY ({select}) TO {literal(str(target))} (FORMAT parquet, COMPRESSION {compression}, ROW_GROUP_SIZE 122880)"
        return int(self.row(sql)[0])


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
