"""What every attempt of a worker works with."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from libs.db import Database
from libs.launcher import Launcher
from libs.storage import ArtifactStore
from services.training.handlers.admission import Peers
from services.training.settings import Settings


@dataclass(frozen=True)
class Stores:
    """The artifact store, a purpose each."""

    datasets: ArtifactStore
    models: ArtifactStore
    checkpoints: ArtifactStore


@dataclass(frozen=True)
class Tools:
    database: Database
    peers: Peers
    stores: Stores
    launcher: Launcher
    settings: Settings
    # Takes a span as the engine writes it.
    record_span: Callable[[Mapping[str, Any]], object]
    # Given the folder, the command of a run; tests run other programs.
    command: Callable[[str], list[str]]
    clock: Callable[[], float] = time.time
