"""A component that does nothing but say so."""


class Recorder:
    """Writes "+name" at its start and "-name" at its stop into a log; `fails` makes the start raise RuntimeError."""

    def __init__(self, name: str, log: list[str], *, fails: bool = False) -> None:
        self.name, self.log, self.fails = name, log, fails

    async def start(self) -> None:
        if self.fails:
            raise RuntimeError(self.name)
        self.log.append(f"+{self.name}")

    async def stop(self) -> None:
        self.log.append(f"-{self.name}")
