"""The process that a user's class runs in. Started by `sandbox.py` as a file, with the standard library only.

It fences itself before it reads a line of the user's: Landlock for files, signals and TCP, seccomp for processes and sockets.
"""

import ctypes
import importlib.util
import json
import os
import platform
import resource
import select
import socket
import struct
import sys
import threading
from typing import Any

OFFERS = ("predict", "generate", "embed")
_LIBC = ctypes.CDLL(None, use_errno=True)
_HEAD = struct.Struct(">I")
_READ, _ALL_FILE = 0b1101, 0b1000000000000111
_ALL = (1 << 16) - 1
# Landlock keeps signals inside since version 6 (Linux 6.12); before it, code could end the process that started it.
_NEEDED = 6
# By machine: what an audit calls it, then clone, socket, clone3, io_uring_setup and what else starts a process.
_CALLS = {"x86_64": (0xC000003E, 56, 41, (57, 58)), "aarch64": (0xC00000B7, 220, 198, ())}


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def lacking() -> str:
    """Why this machine's kernel does not fence code off; empty where it does."""
    version = _LIBC.syscall(444, None, ctypes.c_size_t(0), 1)
    return "" if version >= _NEEDED else "this machine's kernel has no Landlock of version 6 or newer (Linux 6.12)"


def fence_files(readable: list[str], writable: str) -> None:
    """No file but these, no TCP, no signal to a process outside."""
    if words := lacking():
        raise OSError(words)
    attributes = struct.pack("QQQ", _ALL, 3, 3)
    rules = _checked(_LIBC.syscall(444, attributes, ctypes.c_size_t(len(attributes)), 0))
    for path, rights in [*((path, _READ) for path in readable), (writable, _ALL), ("/dev/null", _READ | 2)]:
        if os.path.exists(path):
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = rights if os.path.isdir(path) else rights & _ALL_FILE
            _checked(_LIBC.syscall(445, rules, 1, struct.pack("=Qi", allowed, opened), 0))
            os.close(opened)
    _checked(_LIBC.prctl(38, 1, 0, 0, 0))  # no new privileges
    _checked(_LIBC.syscall(446, rules, 0))
    os.close(rules)


def fence_calls() -> None:
    """No process beside this one and no socket; threads may be."""
    if platform.machine() not in _CALLS:
        raise OSError(f"processors of kind {platform.machine()} are not fenced; x86_64 and aarch64 are")
    machine, clone, network, others = _CALLS[platform.machine()]
    allow, refuse, absent = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
    steps = [(0x20, 0, 0, 4), (0x15, 1, 0, machine), (0x06, 0, 0, 0x80000000), (0x20, 0, 0, 0)]
    if machine == _CALLS["x86_64"][0]:
        steps += [(0x35, 0, 1, 0x40000000), (0x06, 0, 0, absent)]  # the same calls by their x32 numbers
    # libc takes clone where clone3 is absent, and clone's flags can be seen.
    for number, answer in [(network, refuse), (435, absent), (425, absent), *((other, refuse) for other in others)]:
        steps += [(0x15, 0, 1, number), (0x06, 0, 0, answer)]
    steps += [(0x15, 0, 3, clone), (0x20, 0, 0, 16), (0x45, 1, 0, 0x10000), (0x06, 0, 0, refuse), (0x06, 0, 0, allow)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    _checked(_LIBC.prctl(22, 2, struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program)), 0, 0))


def receive(channel: socket.socket) -> Any:
    (length,) = _HEAD.unpack(_exactly(channel, _HEAD.size))
    return json.loads(_exactly(channel, length))


def send(channel: socket.socket, message: Any, largest: int) -> None:
    content = json.dumps(message, allow_nan=False).encode()
    if len(content) > largest:
        raise ValueError(f"the answer has {len(content)} bytes; at most {largest} are taken")
    channel.sendall(_HEAD.pack(len(content)) + content)


def _exactly(channel: socket.socket, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        part = channel.recv(min(size - len(content), 1 << 20))
        if not part:
            raise SystemExit(0)  # who asked is gone
        content += part
    return bytes(content)


def load(folder: str, code: str, name: str, packages: str) -> Any:
    """The user's object, its own `load` done."""
    if packages:
        # Behind the standard library and before what the image has, where installing them would put them.
        sys.path.insert(next((at for at, path in enumerate(sys.path) if path.endswith("-packages")), len(sys.path)), packages)
    sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location("model", code)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    model = getattr(module, name)()
    if hasattr(model, "load"):
        model.load(folder)
    return model


def end_with_the_other_side(channel: socket.socket) -> None:
    """Code that hangs must not outlive a parent that was killed and so could not end it."""
    ended = select.poll()
    ended.register(channel, 0)
    ended.poll()
    os._exit(0)


def answer(model: Any, records: list[Any]) -> list[Any]:
    if getattr(model, "batch", True) is False and len(records) > 1:
        return [answered for record in records for answered in answer(model, [record])]
    answers = model.predict(records)
    if not isinstance(answers, list) or len(answers) != len(records):
        raise ValueError(f"predict must return a list of {len(records)} answers, one a record")
    return answers


class Answers:
    """What is asked of one model, by the form of the message: a list are records; an object opens, asks or closes a stream, or calls."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._streams: dict[int, Any] = {}

    def to(self, asked: Any) -> dict[str, Any]:
        if isinstance(asked, list):
            return {"answers": answer(self._model, asked)}
        if "call" in asked:
            return {"answers": getattr(self._model, asked["call"])(*asked["given"])}
        if "open" in asked:
            self._streams[asked["id"]] = iter(getattr(self._model, asked["open"])(*asked["given"], **asked["options"]))
            return {}
        if "close" in asked:
            stream = self._streams.pop(asked["close"], None)
            if hasattr(stream, "close"):
                stream.close()
            return {}
        try:
            return {"piece": next(self._streams[asked["next"]])}
        except StopIteration:
            del self._streams[asked["next"]]
            return {"ended": True}


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    order = receive(channel)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (order["memory_bytes"],) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"],) * 2)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        fence_files(order["readable"], order["scratch"])
        fence_calls()
        # Not before: fences hold for the thread that makes them and for those it starts.
        threading.Thread(target=end_with_the_other_side, args=(channel,), daemon=True).start()
        model = load(order["folder"], order["code"], order["name"], order["packages"])
        offers = [name for name in OFFERS if callable(getattr(model, name, None))]
        send(channel, {"loaded": True, "offers": offers}, order["largest"])
    except Exception as error:
        send(channel, {"error": f"{type(error).__name__}: {error}"[:1000]}, order["largest"])
        raise
    answers = Answers(model)
    while True:
        asked = receive(channel)
        try:
            send(channel, answers.to(asked), order["largest"])
        except Exception as error:
            send(channel, {"error": f"{type(error).__name__}: {error}"[:1000]}, order["largest"])


if __name__ == "__main__":
    main()
