"""A user's class in a process of its own that sees no secret, no file of the platform, no network and no other process."""

import json
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from libs.errors import AppError, Transient

_HEAD = struct.Struct(">I")
_TAIL = 4096
MOST_STREAMS = 64
# Interpreter, libraries and what these look at; of /proc and /etc nothing that speaks of other processes.
_READABLE = [
    sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/proc/cpuinfo",
    "/proc/meminfo", "/sys/devices/system/cpu",
]  # fmt: skip


class Sandbox:
    """Answers by `name` of the folder's model.py, or of `code`. Safe to call from several threads: they take turns, streams piece by piece.

    What hangs, dies or talks nonsense is killed, and started anew for the next call.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "Model",
        *,
        code: Path | None = None,
        packages: Path | None = None,
        load_seconds: float = 120.0,
        answer_seconds: float = 30.0,
        memory_bytes: int = 2 << 30,
        file_bytes: int = 64 << 20,
        largest: int = 16 << 20,
    ) -> None:
        self._folder, self._name, self._largest = folder.resolve(), name, largest
        self._code = (code or folder / "model.py").resolve()
        # A folder of packages that the code may import, before those of this environment.
        self._packages = str(packages.resolve()) if packages else ""
        self._load_seconds, self._answer_seconds = load_seconds, answer_seconds
        self._memory_bytes, self._file_bytes = memory_bytes, file_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.RLock()
        self._streams, self._opened = 0, 0
        # Which of predict, generate and embed the class has; known once it is loaded.
        self.offers: frozenset[str] = frozenset()

    def __enter__(self) -> "Sandbox":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Raises `AppError` ("process_failed") with the end of what the code wrote where its load fails."""
        self._scratch = tempfile.TemporaryDirectory(prefix="lepton-model-")
        self._channel, theirs = socket.socketpair()
        environment = {"PATH": "/usr/bin:/bin", "HOME": self._scratch.name, "TMPDIR": self._scratch.name, "LANG": "C.UTF-8"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-u", str(Path(__file__).with_name("guest.py")), str(theirs.fileno())],
                env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                cwd=self._scratch.name,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._tail = bytearray()
        self._drain = threading.Thread(target=self._read_output, args=(self._process, self._tail), daemon=True)
        self._drain.start()
        order = {
            "folder": str(self._folder), "code": str(self._code), "name": self._name, "packages": self._packages,
            "scratch": self._scratch.name, "largest": self._largest, "memory_bytes": self._memory_bytes, "file_bytes": self._file_bytes,
            "readable": [*_READABLE, str(self._folder), str(self._code), *([self._packages] if self._packages else [])],
        }  # fmt: skip
        reply = self._ask(order, self._load_seconds, "load")
        if reply.get("loaded") is not True:
            self._fail("process_failed", f"The model's code could not be loaded: {_words(reply.get('error', 'it said nonsense'))}")
        offers = reply.get("offers")
        self.offers = frozenset(name for name in offers if isinstance(name, str)) if isinstance(offers, list) else frozenset()

    def predict(self, records: list[Any]) -> list[Any]:
        """One answer a record. Raises `AppError`: "upstream_failed" where the code fails, "deadline_exceeded" where it hangs."""
        return self._many(records, len(records))

    def call(self, name: str, items: list[Any]) -> list[Any]:
        """One answer an item, of another of the class's functions. Raises as `predict`."""
        return self._many({"call": name, "given": [items]}, len(items))

    def stream(self, name: str, *given: Any, **options: Any) -> Iterator[Any]:
        """What the class's generator yields, asked for piece by piece. Raises as `predict`, and "rate_limited" where too many are open."""
        with self._turn:
            if self._streams >= MOST_STREAMS:
                raise Transient(f"{MOST_STREAMS} answers are being streamed already; try again", code="rate_limited")
            self._opened += 1
            id = self._opened
            self._reply({"open": name, "id": id, "given": given, "options": options})
            self._streams, process = self._streams + 1, self._process
        try:
            while "piece" in (reply := self._next(id, process)):
                yield reply["piece"]
        finally:
            with self._turn, suppress(AppError):  # nobody is left to hear how the code took its end
                self._streams -= 1
                if self._process is process:
                    self._reply({"close": id})

    def _next(self, id: int, process: subprocess.Popen[bytes] | None) -> dict[str, Any]:
        with self._turn:
            if self._process is not process:
                raise AppError("The model's code was started anew while it answered; ask again", code="upstream_failed")
            return self._reply({"next": id})

    def _many(self, message: Any, count: int) -> list[Any]:
        with self._turn:
            answers = self._reply(message).get("answers")
            if not isinstance(answers, list) or len(answers) != count:
                self._fail("upstream_failed", f"The model's code did not give {count} answers")
            return answers

    def _reply(self, message: Any) -> dict[str, Any]:
        if self._process is None:
            self._start_anew()
        reply = self._ask(message, self._answer_seconds, "answer")
        if isinstance(error := reply.get("error"), str):
            raise AppError(f"The model's code failed: {_words(error)}", code="upstream_failed")
        return reply

    def _start_anew(self) -> None:
        try:
            self.start()
        except AppError as error:  # "process_failed" is said of resources, never of a request
            raise AppError(error.detail, code="upstream_failed") from error

    def stop(self) -> None:
        with self._turn:
            self._end()

    def _end(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        self._channel.close()
        self._drain.join()
        self._scratch.cleanup()

    def _ask(self, message: Any, seconds: float, what: str) -> dict[str, Any]:
        content, until = json.dumps(message, allow_nan=False).encode(), time.monotonic() + seconds
        try:
            self._channel.settimeout(seconds)
            self._channel.sendall(_HEAD.pack(len(content)) + content)
            (length,) = _HEAD.unpack(self._exactly(_HEAD.size, until))
            if length > self._largest:
                raise ValueError(f"an answer of {length} bytes; at most {self._largest} are taken")
            reply = json.loads(self._exactly(length, until), parse_constant=_refuse)
            if not isinstance(reply, dict):
                raise ValueError("no object")
        except TimeoutError:
            self._fail("deadline_exceeded", f"The model's code did not {what} within {seconds:g} s and was ended")
        except (OSError, EOFError):
            self._fail("process_failed" if what == "load" else "upstream_failed", f"The model's process ended before it could {what}")
        except (ValueError, RecursionError) as error:
            self._fail("upstream_failed", f"The model's process said what is no answer: {error}")
        return reply

    def _exactly(self, size: int, until: float) -> bytes:
        content = bytearray()
        while len(content) < size:
            if (left := until - time.monotonic()) <= 0:
                raise TimeoutError
            self._channel.settimeout(left)
            part = self._channel.recv(min(size - len(content), 1 << 20))
            if not part:
                raise EOFError
            content += part
        return bytes(content)

    def _fail(self, code: str, detail: str) -> NoReturn:
        self.stop()
        tail = _words(self._tail.decode(errors="replace"), _TAIL).strip()
        raise AppError(f"{detail}; it last wrote: {tail}" if tail else detail, code=code) from None

    @staticmethod
    def _read_output(process: subprocess.Popen[bytes], tail: bytearray) -> None:
        """Keeps the end only, so that code may print as much as it likes."""
        assert process.stdout is not None
        with process.stdout as output:
            while part := output.read1(1 << 16):  # type: ignore[attr-defined]
                tail += part
                del tail[:-_TAIL]


def _words(said: Any, longest: int = 1000) -> str:
    """As stores and wires take a text: without halves of a character, without NUL."""
    return str(said)[:longest].encode(errors="replace").decode().replace("\0", "?")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
