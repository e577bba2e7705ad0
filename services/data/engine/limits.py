"""The bounds of one engine job, said once for the parent that passes them and the child that keeps them."""

import resource
from dataclasses import asdict, dataclass
from typing import Any

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """How much one job may take. What a file is refused for is said in its error; what kills the process is said by the parent."""

    # For tables and sorting; beyond it DuckDB spills to the job's folder.
    memory_bytes: int = 1 * GIB
    # Everything the process maps. Libraries and allocator arenas map about 2.5 GiB that they never touch; 2,000 columns take 2 GiB more.
    address_space_bytes: int = 6 * GIB
    cpu_seconds: int = 900
    wall_seconds: float = 900.0
    # Largest single file that is written, and all that is spilled.
    file_bytes: int = 16 * GIB
    threads: int = 2

    max_columns: int = 2000
    max_name_length: int = 256
    max_line_bytes: int = 8 * MIB
    # Rows × columns of a Parquet file, by its metadata.
    max_cells: int = 1_000_000_000
    # Of all entries of a ZIP together, and times its compressed size (asked only beyond 64 MiB).
    max_expanded_bytes: int = 8 * GIB
    max_expansion: int = 100
    max_pictures: int = 200_000
    max_picture_bytes: int = 64 * MIB
    max_picture_pixels: int = 64_000_000

    def to_json(self) -> dict[str, Any]:
        """For the job's specification."""
        return asdict(self)


def confine(limits: Limits) -> None:
    """Binds this process to what the kernel can enforce. Not undone: call it in the child only."""
    for kind, bound in (
        (resource.RLIMIT_AS, limits.address_space_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        _, hard = resource.getrlimit(kind)
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))
