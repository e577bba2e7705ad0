"""The port through which a service runs a program: started with limits, watched, and never left behind.

Knows neither what the program does nor on what it runs.
"""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class LaunchError(Exception):
    """The program could not be started: it is missing, not executable, or there is no room for it. Its words are for whoever asked."""


@dataclass(frozen=True)
class Launch:
    """What to run.

    `id` names it in logs. `env` is all that it sees beside PATH, the locale, the time zone, TMPDIR and the library path. Over
    `memory_bytes`, counted with its children, it is killed. Output is appended to the files given, else dropped.

    What follows those is for launchers that place programs on other machines; on one machine they are passed over. There `cwd` is
    brought to the program, and what it writes below comes back: whole files once they rest, but none whose name begins with a dot or
    ends in `.part`, and the bytes added to `journals` only after all that was there before them. `inputs` are brought to it too.
    """

    id: str
    argv: Sequence[str | Path]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: Path | None = None
    memory_bytes: int | None = None
    stdout: Path | None = None
    stderr: Path | None = None
    inputs: Sequence[Path] = ()
    journals: Sequence[Path] = ()
    cpu_millis: int | None = None
    # How many of it run together, each with the resources named here: all at once or none, and with the first that fails all end. They
    # find each other by the variables that torchrun reads, PET_…; on one machine one program is started, which starts them.
    workers: int = 1
    # How many accelerators of its machine it has for itself.
    devices: int = 0
    # The machine that it has to run on; empty: any.
    node: str = ""
    # The machines that its workers have to run on, as many on each.
    nodes: Sequence[str] = ()
    # Where it listens, if it does and the port is known.
    port: int = 0
    # It is ended after so long, if its owner has not ended it before.
    seconds: float | None = None
    # Launches of one group differ in id, node, arguments, environment and their own folder below one parent, and in nothing else.
    group: str = ""
    # Whose it is, for operators and network policies: "role", "workspace", "job".
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exit:
    """How it ended: by `code`, or by `signal` (then `code` is None); `oom` when it was for memory."""

    code: int | None
    signal: int | None = None
    oom: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ended by itself and was content."""
        return self.code == 0

    @property
    def killed(self) -> bool:
        """Whether somebody else ended it by force, and not for memory."""
        return self.signal == signal.SIGKILL and not self.oom

    def __str__(self) -> str:
        if self.oom:
            return "out of memory"
        return f"signal {self.signal}" if self.code is None else f"exit code {self.code}"


class Process(Protocol):
    """A running program and everything that it starts."""

    @property
    def id(self) -> str:
        """As in its Launch."""

    @property
    def pid(self) -> int:
        """0 on another machine."""

    @property
    def host(self) -> str:
        """Where it is reached; empty: on this machine."""

    @property
    def handle(self) -> str:
        """Names this very process durably, for `Launcher.end` after a restart; process ids alone are used again."""

    async def wait(self) -> Exit:
        """Returns once it has ended and nothing of it is left; as often as asked."""

    async def stop(self, grace_seconds: float = 5.0) -> Exit:
        """Asks it to end (SIGTERM) and kills it and its children after `grace_seconds`; 0 kills at once."""

    def alive(self) -> bool:
        """Whether it runs; a zombie does not."""


class Launcher(Protocol):
    """Runs programs that end when their owner does, however that ends."""

    async def start(self, launch: Launch) -> Process:
        """Returns once the program runs; raises LaunchError when it cannot, Transient where what it should run on is away.

        A start that is broken off leaves nothing.
        """

    async def end(self, handle: str) -> bool:
        """Kills what an earlier owner's handle names, if it still runs: whether it did."""

    async def forget(self, group: str) -> None:
        """Nothing of the group runs or will be started again: what is kept for it goes."""
