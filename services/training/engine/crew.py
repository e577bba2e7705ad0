"""The workers that train one model together, each on its share of every batch: who they are, and all that they say to each other.

Knows no model and no data. One worker alone says nothing, and needs no process group.
"""

import ctypes
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# For a worker that says nothing; one that has died is known at once.
SILENT_SECONDS = 120.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Crew:
    """Worker `rank` of `size`; `place` is its number among those on its machine. Rank 0 alone writes."""

    rank: int = 0
    size: int = 1
    place: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Crew":
        """As torchrun says it; one worker alone where it says nothing."""
        return cls(*(int(environment.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def join(self, device: str) -> None:
        """Returns once all are there."""
        if self.alone:
            return
        import torch
        from torch import distributed

        if device == "cuda":
            torch.cuda.set_device(self.place)
        distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=SILENT_SECONDS))

    def leave(self) -> None:
        """Once all are done with each other: whoever went before would break the last sum of the others."""
        if not self.alone:
            from torch import distributed

            distributed.barrier()
            distributed.destroy_process_group()

    def wrap(self, module: "nn.Module") -> "nn.Module":
        """`module` for training: after each backward pass all have the mean of their gradients. Changes its batch norms to shared ones."""
        if self.alone:
            return module
        from torch.nn.parallel import DistributedDataParallel

        from services.training.engine.batch_norm import share_batch_norms

        share_batch_norms(module)
        return DistributedDataParallel(module, broadcast_buffers=False)

    def share(self, rows: slice) -> slice:
        """Of these rows, those of this worker: shares differ by one row at most, and may be empty."""
        count = rows.stop - rows.start
        return slice(rows.start + count * self.rank // self.size, rows.start + count * (self.rank + 1) // self.size)

    def sum(self, *figures: float, device: str = "cpu") -> list[float]:
        """Of all workers' figures; the same bits at each, so that all decide alike."""
        if self.alone:
            return list(figures)
        import torch
        from torch import distributed

        total = torch.tensor(figures, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return [float(figure) for figure in total]


def end_with_parent() -> None:
    """A worker whose torchrun is killed ends too (Linux): torchrun gives each a session of its own, which nobody would end."""
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(1)
