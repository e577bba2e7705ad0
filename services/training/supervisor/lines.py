"""Whole lines of a file that another process appends to. Trusts nothing about it: not that lines end, nor that they are short."""

from pathlib import Path

READ_BYTES = 1 << 20


class LineReader:
    """Reads on from where it was. Lines over `longest` bytes are left out and counted in `skipped`."""

    def __init__(self, path: Path, longest: int) -> None:
        self._path, self._longest = path, longest
        self._offset = 0
        self._partial = bytearray()
        self._skipping = False
        self.skipped = 0

    def read(self, limit: int = READ_BYTES) -> list[bytes]:
        """Lines that are complete by now, of at most `limit` new bytes; none while there is no file."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(limit)
        except OSError:
            return []
        self._offset += len(data)
        lines = []
        for piece in data.splitlines(keepends=True) if b"\r" not in data else _split(data):
            whole = piece.endswith(b"\n")
            if not self._skipping:
                self._partial += piece
            if len(self._partial) > self._longest:
                self._partial.clear()
                self._skipping = True
                self.skipped += 1
            if whole:
                if not self._skipping:
                    lines.append(bytes(self._partial).rstrip(b"\r\n"))
                self._partial.clear()
                self._skipping = False
        return lines

    def rest(self) -> list[bytes]:
        """All that is left once the writer is gone, the last line also without an end."""
        lines = []
        while True:
            offset = self._offset
            lines += self.read()
            if self._offset == offset:
                break
        if self._partial and not self._skipping:
            lines.append(bytes(self._partial))
        self._partial.clear()
        return lines


def _split(data: bytes) -> list[bytes]:
    """At line feeds alone: progress bars draw with carriage returns."""
    return [piece + b"\n" for piece in data.split(b"\n")[:-1]] + ([last] if (last := data.rsplit(b"\n", 1)[-1]) else [])
