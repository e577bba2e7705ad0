"""The launcher's hands in a pod: brings a program its files, runs it, and carries home what it writes.

Run as `python -I -S courier.py fetch|mirror TASK` beside the program and `python -I -S courier.py run PROGRAM` around it; both files are
JSON out of a Secret, but for what differs between the pods of a group: `fetch` brings that. Knows the standard library only, and is
handed to the pod by the launcher itself: the two always speak alike. What passes over a connection is in `exchange.py`.
"""

import json
import os
import signal
import socket
import ssl
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any

EXCHANGE = "lepton-exchange"  # The name in the certificate; the address is another matter.
MAX_LINE = 1 << 16
CHUNK = 1 << 20
MAX_ENTRIES = 50_000
CONNECT_SECONDS, ANSWER_SECONDS, ORDER_SECONDS = 5.0, 60.0, 15.0
FETCH_SECONDS, LAST_SECONDS = 60.0, 20.0
ROUND_SECONDS = 0.1
# A file that has changed so lately may still be written to; what never rests is sent as it is, for the journals wait behind it.
SETTLED_SECONDS, RESTLESS_SECONDS = 0.3, 2.0
# Without a word from the owner for so long the program ends: nobody would hear of it, and somebody pays for it.
ALONE_SECONDS = 60.0
# Six times as long as JSON, and 4 KiB are kept.
LAST_BYTES = 600
INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
WATCHED = {signal.SIGCHLD, signal.SIGTERM}
TASK = "task.json"


class Refused(Exception):
    """The exchange does not want it, and will not later."""


class Line:
    """One connection to the exchange."""

    def __init__(self, task: dict[str, Any], purpose: str, patience: float = ANSWER_SECONDS) -> None:
        host, _, port = task["address"].rpartition(":")
        context = ssl.create_default_context(cadata=task["certificate"])
        raw = socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS)
        try:
            raw.settimeout(patience)
            self._socket = context.wrap_socket(raw, server_hostname=EXCHANGE)
        except BaseException:
            raw.close()
            raise
        self._file = self._socket.makefile("rb", CHUNK)
        try:
            self.ask({"id": task["id"], "token": task["token"], "instance": task["instance"], "purpose": purpose})
        except BaseException:
            self.close()
            raise

    def ask(self, message: dict[str, Any], body: Iterable[bytes] = ()) -> dict[str, Any]:
        """The answer to a message and the pieces that follow it."""
        self.say(message)
        for piece in body:
            self._socket.sendall(piece)
        return self.hear()

    def say(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        line = self._file.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            raise ConnectionError("the exchange has hung up")
        message: dict[str, Any] = json.loads(line)
        if "refused" in message:
            raise Refused(message["refused"])
        return message

    def take(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, in pieces."""
        while size:
            piece = self._file.read(min(size, CHUNK))
            if not piece:
                raise ConnectionError("the exchange has hung up")
            size -= len(piece)
            yield piece

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def write_whole(path: str, content: bytes) -> None:
    """Whole, or not at all; two threads may do it at once."""
    part = f"{path}.{threading.get_ident()}.part"
    with open(part, "wb") as file:
        file.write(content)
    os.replace(part, path)


def mark_of(status: os.stat_result) -> list[int]:
    """Tells one content of a file from the next."""
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def fetch(task: dict[str, Any]) -> int:
    """Brings the program's folders into the pod."""
    until = time.monotonic() + FETCH_SECONDS
    while True:
        try:
            fetch_once(task)
            return 0
        except OSError as error:
            if time.monotonic() > until:
                sys.exit(f"the owner cannot be reached: {error}")
            time.sleep(1.0)


def fetch_once(task: dict[str, Any]) -> None:
    line = Line(task, "fetch")
    brought: dict[str, list[int]] = {}
    try:
        while not (entry := line.hear()).get("end"):
            if "told" in entry:
                content = b"".join(line.take(entry["size"]))
                write_whole(os.path.join(task["told"], entry["told"]), content)
                if entry["told"] == TASK:
                    task |= json.loads(content)
                continue
            path = os.path.join(task["roots"][entry["root"]], entry["path"])
            if "size" not in entry:
                os.makedirs(path, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                for piece in line.take(entry["size"]):
                    file.write(piece)
                file.flush()
                if entry["root"] == 0:
                    brought[entry["path"]] = mark_of(os.fstat(file.fileno()))
    finally:
        line.close()
    write_whole(task["state"], json.dumps(brought).encode())


class Mirror:
    """What of the folder is at home already. Begins again where a killed one was: the state file says what is sent."""

    def __init__(self, task: dict[str, Any]) -> None:
        # Without a folder nothing is carried home but the end.
        self._root: str = task["roots"][0] if task["mirrored"] else ""
        self._state, self._skip = task["state"], set(task["skip"])
        self._offsets: dict[str, int] = dict.fromkeys(task["journals"], 0)
        self._seen: dict[str, list[int]] = {}
        self._held_since: float | None = None
        self._sent: dict[str, list[int]] = {}
        try:
            with open(self._state, "rb") as file:
                self._sent = json.load(file)
        except (OSError, ValueError):
            pass  # All of it is sent again.

    def round(self, line: Line, *, last: bool = False) -> None:
        """Sends what has changed, and after it what the journals held when the round began: an event comes after what it names."""
        if not self._root:
            return
        ends = {name: self._size(name) for name in self._offsets}
        found, before = self._scan(), dict(self._sent)
        for path in before.keys() - found.keys():
            line.ask({"do": "delete", "path": path})
            del self._sent[path]
        held, hurried = False, last or self._held_for_long()
        for path in sorted(found):
            if self._sent.get(path) == found[path]:
                continue
            if not hurried and self._restless(path, found[path]):
                held = True
            else:
                self._put(line, path)
        self._seen = found
        self._held_since = (self._held_since or time.monotonic()) if held else None
        if self._sent != before:
            write_whole(self._state, json.dumps(self._sent).encode())
        if not held:
            for name, end in ends.items():
                self._append(line, name, end)

    def _restless(self, path: str, mark: list[int]) -> bool:
        return self._seen.get(path) != mark and time.time() - mark[2] / 1e9 <= SETTLED_SECONDS

    def _held_for_long(self) -> bool:
        return self._held_since is not None and time.monotonic() - self._held_since > RESTLESS_SECONDS

    def _scan(self) -> dict[str, list[int]]:
        """Plain files; none that is being made (a dot before its name, .part behind it), and no link."""
        found: dict[str, list[int]] = {}
        folders, entries = [""], 0
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(os.path.join(self._root, folder)) as listing:
                    for entry in listing:
                        entries += 1
                        if entries > MAX_ENTRIES:
                            raise Refused(f"the program has made more than {MAX_ENTRIES} files")
                        path = f"{folder}/{entry.name}" if folder else entry.name
                        if entry.name.startswith(".") or entry.name.endswith(".part") or path in self._skip or path in self._offsets:
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(path)
                        elif entry.is_file(follow_symlinks=False):
                            found[path] = mark_of(entry.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue  # The program has just removed it.
        return found

    def _size(self, name: str) -> int:
        try:
            return os.stat(os.path.join(self._root, name), follow_symlinks=False).st_size
        except OSError:
            return 0

    def _put(self, line: Line, path: str) -> None:
        file = open_below(self._root, path)
        if file is None:
            return
        with file:
            mark = mark_of(os.fstat(file.fileno()))
            line.ask({"do": "put", "path": path, "size": mark[1]}, pieces(file, mark[1]))
        self._sent[path] = mark

    def _append(self, line: Line, name: str, end: int) -> None:
        while self._offsets[name] < end:
            file = open_below(self._root, name)
            if file is None:
                return
            with file:
                offset = self._offsets[name]
                size = min(end - offset, 4 * CHUNK)
                file.seek(offset)
                answer = line.ask({"do": "append", "path": name, "offset": offset, "size": size}, pieces(file, size))
            # Also where it had more than we knew, from the one of us that was killed.
            self._offsets[name] = answer["size"]
            if answer["size"] <= offset:
                return


def open_below(root: str, path: str) -> IO[bytes] | None:
    """A plain file, by a way without links: the program may have put another thing there by now, and reads less than we do."""
    *folders, name = path.split("/")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        file = os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb")
    except OSError:
        return None
    finally:
        os.close(folder)
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    return None


def pieces(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Exactly `size` bytes; a file that has shrunk breaks the connection, and is looked at again."""
    while size:
        piece = file.read(min(size, CHUNK))
        if not piece:
            raise ConnectionError("the file has shrunk")
        size -= len(piece)
        yield piece


def order_stop(task: dict[str, Any], grace: float) -> None:
    write_whole(os.path.join(task["control"], "stop"), str(grace).encode())


def obey(task: dict[str, Any]) -> None:
    """Hears the owner's orders and passes them on; each is a sign that there is an owner."""
    alive = os.path.join(task["control"], "alive")
    while True:
        try:
            line = Line(task, "orders", ORDER_SECONDS)
            try:
                while True:
                    order = line.hear()
                    write_whole(alive, b"")
                    if "stop" in order:
                        order_stop(task, order["stop"])
                    if "last" in order:
                        os.kill(os.getpid(), signal.SIGTERM)
                    line.say({})
            finally:
                line.close()
        except Refused:
            return order_stop(task, 0)
        except (OSError, ValueError):
            time.sleep(0.5)


def mirror(task: dict[str, Any]) -> int:
    """Until SIGTERM, which means that the program has ended: then a last round, and that it was the last."""
    ended: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(time.monotonic()))
    threading.Thread(target=obey, args=(task,), daemon=True).start()
    carried = Mirror(task)
    line: Line | None = None
    while True:
        try:
            last = bool(ended)
            line = line or Line(task, "mirror")
            carried.round(line, last=last)
            if last:
                line.ask({"do": "done"})
                return 0
        except Refused as refused:
            order_stop(task, 0)
            print(refused, file=sys.stderr)  # noqa: T201
            while not ended:
                time.sleep(ROUND_SECONDS)
            return 1
        except (OSError, ValueError):
            if line:
                line.close()
            line = None
            if ended and time.monotonic() - ended[0] > LAST_SECONDS:
                return 1
            time.sleep(0.4)
        time.sleep(0 if ended else ROUND_SECONDS)


class Program:
    """The program, from its start to its end, as process 1 of its container."""

    def __init__(self, program: dict[str, Any]) -> None:
        self._control, self._grace, self._told = program["control"], program["grace"], program["told"]
        self._output = program["stderr"] or program["stdout"]
        self._began, self._killed, self._ooms = time.time(), False, oom_kills()
        self._kill_at: float | None = None
        self.pid, self.errno = 0, 0

    def run(self, program: dict[str, Any]) -> dict[str, Any]:
        """Its exit, as the owner reads it. It begins once its courier has found the owner: an end before that nobody would carry home."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        while not os.path.exists(os.path.join(self._control, "alive")):
            if signal.sigtimedwait({signal.SIGTERM}, 0.02) or time.time() - self._began > ALONE_SECONDS:
                return {"code": None, "signal": int(signal.SIGKILL), "oom": False}
        self.pid, self.errno = start(program)
        if self.errno:
            return {"errno": self.errno}
        while (status := self._ended()) is None:
            number = signal.sigtimedwait(WATCHED, 0.1)
            if number and number.si_signo == signal.SIGTERM:
                self._stop(self._grace)
            self._check()
        code = os.waitstatus_to_exitcode(status)
        oom = code == -signal.SIGKILL and not self._killed and oom_kills() > self._ooms
        return {"code": code, "signal": None, "oom": oom} if code >= 0 else {"code": None, "signal": -code, "oom": oom}

    def end(self, exit: dict[str, Any]) -> int:
        """Ends what it left, and says how it ended."""
        self._kill()
        if index() and exit.get("code") != 0:
            exit = exit | {"last_words": last_words(self._output)}
        words = json.dumps(exit)
        try:
            with open(self._told, "w") as file:
                file.write(words)
        except OSError as error:
            print(f"{words}: {error}", file=sys.stderr)  # noqa: T201
        if "errno" in exit:
            return 127
        return int(exit["code"]) if exit["signal"] is None else 128 + int(exit["signal"])

    def _ended(self) -> int | None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0
            if pid == self.pid:
                return status
            if pid == 0:
                return None

    def _check(self) -> None:
        try:
            with open(os.path.join(self._control, "stop")) as file:
                self._stop(float(file.read()))
        except (OSError, ValueError):
            pass
        try:
            heard = os.stat(os.path.join(self._control, "alive")).st_mtime
        except OSError:
            heard = self._began
        if time.time() - max(heard, self._began) > ALONE_SECONDS:
            self._stop(0)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._killed = True
            self._kill()

    def _stop(self, grace: float) -> None:
        if self._kill_at is None and grace > 0:
            self._signal(signal.SIGTERM)
        self._kill_at = min(self._kill_at or float("inf"), time.monotonic() + grace)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except OSError:
            pass

    def _kill(self) -> None:
        if self.pid:
            self._signal(signal.SIGKILL)
        if os.getpid() == 1:
            # Also what has left the group: nothing else is in this container.
            try:
                os.kill(-1, signal.SIGKILL)
            except OSError:
                pass


def start(program: dict[str, Any]) -> tuple[int, int]:
    """(pid, errno): the program's process, or why there is none."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            become(program)
        except OSError as error:
            os.write(writing, str(error.errno or 1).encode())
        finally:
            os._exit(127)
    os.close(writing)
    failure = os.read(reading, 16)
    os.close(reading)
    return pid, int(failure or 0)


def become(program: dict[str, Any]) -> None:
    """In the forked process: the program. Never returns."""
    os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        if program[name]:
            os.dup2(os.open(program[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    if program["cwd"]:
        os.chdir(program["cwd"])
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ} | program["env"]
    if "PET_NNODES" in environment:
        environment["PET_NODE_RANK"] = str(index())
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    os.execvpe(program["argv"][0], program["argv"], environment)


def last_words(path: str) -> str:
    """The end of what it printed, short enough for what a container may leave as its message."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
            return file.read(LAST_BYTES).decode(errors="replace")
    except OSError:
        return ""


def index() -> int:
    """Which of the workers of one launch this is; the first alone carries home what it writes."""
    return int(os.environ.get("JOB_COMPLETION_INDEX", "0"))


def oom_kills() -> int:
    """How often the kernel has killed in this container for memory; both generations of its control groups tell."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            with open(path) as file:
                return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
        except OSError:
            continue
    return 0


def hold() -> int:
    """Until SIGTERM, in a container that the cluster has begun anew: what it had to run has run."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    signal.sigwait({signal.SIGTERM})
    return 0


def main(words: list[str]) -> int:
    try:
        with open(words[1]) as file:
            told = json.load(file)
    except FileNotFoundError:
        if words[0] == "run":
            return hold()
        raise
    if words[0] == "run":
        if told["once"]:
            os.unlink(words[1])
        program = Program(told)
        return program.end(program.run(told))
    told["instance"] = os.environ.get("LEPTON_POD", "")
    if index():
        told |= {"id": f"{told['id']}.{index()}", "mirrored": False, "journals": []}
    if words[0] == "mirror" and "told" in told:
        with open(os.path.join(told["told"], TASK)) as file:
            told |= json.load(file)
    try:
        return fetch(told) if words[0] == "fetch" else mirror(told)
    except Refused as refused:
        sys.exit(f"the owner refuses it: {refused}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
