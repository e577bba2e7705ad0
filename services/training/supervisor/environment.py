"""What a training process sees of its surroundings: nothing of the platform's settings, and no secret."""

import sys
from pathlib import Path

import services
from services.training.tables import TrainingJob

# Where this code was imported from; the engine is imported from there too.
_ROOT = Path(services.__path__[0]).resolve().parent


def environment(job: TrainingJob, folder: Path) -> dict[str, str]:
    """On a node without devices none are looked for."""
    threads = str(max(1, job.resources["cpu_millis"] // 1000))
    devices = ",".join(str(index) for index in job.devices) if job.resources["accelerator"] == "gpu" else ""
    return {
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(_ROOT),
        # What lies in the folder is not imported, nor by the workers that torchrun starts.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": devices,
    }


def engine_command(folder: str) -> list[str]:
    return [sys.executable, "-m", "services.training.engine", folder]
