"""Code that means harm: each ends in words, and the next call is answered."""

import os
import textwrap
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from libs.errors import AppError
from libs.modelkit import guest
from libs.modelkit.sandbox import Sandbox

HARM = {
    "environment of its parent": ("open(f'/proc/{os.getppid()}/environ').read()", "PermissionError"),
    "memory of its parent": ("open(f'/proc/{os.getppid()}/mem', 'rb').read(1)", "PermissionError"),
    "a file of the platform": ("open(records[0]['secret']).read()", "PermissionError"),
    "a file of another": ("open(os.path.dirname(records[0]['secret']) + '/new', 'w')", "PermissionError"),
    "kills its parent": ("os.kill(os.getppid(), 9)", "PermissionError"),
    "forks": ("os.fork()", "PermissionError"),
    "starts a program": ("subprocess.run(['/usr/bin/env'])", "PermissionError"),
    "calls out": ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "PermissionError"),
    "allocates": ("bytearray(8 << 30)", "MemoryError"),
    "too few answers": ("return []", "list of 1 answers"),
    "not a number": ("return [float('nan')]", "not JSON compliant"),
    "a huge answer": ("return ['x' * (17 << 20)]", "at most"),
    "what no store takes": ("raise ValueError(chr(0xD800) + 'a' + chr(0))", "ValueError: ?a?"),
    "hangs": ("time.sleep(60)", "did not answer within 2 s"),
    "dies": ("os._exit(3)", "ended before it could answer"),
    "forges an answer": ("os.write(int(sys.argv[1]), b'\\xff' * 8)", "at most"),
}


def package(folder: Path, body: str, load: str = "pass") -> Path:
    folder.mkdir()
    (folder / "model.py").write_text(
        "import os, socket, subprocess, sys, time\n\nclass Model:\n"
        f"    def load(self, folder):\n        {load}\n"
        f"    def predict(self, records):\n        if records[0].get('harm'):\n{textwrap.indent(body, ' ' * 12)}\n"
        "        return [{'sum': record['x'] + 1} for record in records]\n"
    )
    return folder


def fenced(test: Callable[..., None]) -> Callable[..., None]:
    """Where the kernel cannot fence code off, that it is refused in words is what is tested instead."""

    @wraps(test)
    def refused(tmp_path: Path, **_: Any) -> None:
        with pytest.raises(AppError, match="Landlock"):
            Sandbox(package(tmp_path / "model", "pass")).start()

    return refused if guest.lacking() else test


@fenced
@pytest.mark.parametrize(("body", "words"), HARM.values(), ids=HARM)
def test_harm_ends_in_words_and_the_next_call_is_answered(tmp_path: Path, body: str, words: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token")
    with Sandbox(package(tmp_path / "model", body), answer_seconds=2.0) as sandbox:
        with pytest.raises(AppError) as raised:
            sandbox.predict([{"x": 1, "harm": True, "secret": str(secret)}])
        assert words in raised.value.detail
        assert sandbox.predict([{"x": 1}, {"x": 2}]) == [{"sum": 2}, {"sum": 3}]


@fenced
def test_it_sees_no_variable_of_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_TOKEN", "secret")
    with Sandbox(package(tmp_path / "model", "return [sorted(os.environ)]")) as sandbox:
        (names,) = sandbox.predict([{"harm": True}])
    assert "HOME" in names and "LEPTON_TOKEN" not in names


@fenced
def test_what_it_prints_is_dropped_but_its_end(tmp_path: Path) -> None:
    printing = "for _ in range(1000): print('x' * 65536)\nos._exit(1)"
    with Sandbox(package(tmp_path / "model", printing)) as sandbox, pytest.raises(AppError) as raised:
        sandbox.predict([{"harm": True}])
    assert len(raised.value.detail) < 5000


@fenced
def test_a_load_that_fails_says_why_and_leaves_no_process(tmp_path: Path) -> None:
    sandbox = Sandbox(package(tmp_path / "model", "pass", "raise ValueError('no weights')"))
    with pytest.raises(AppError, match="ValueError: no weights") as raised:
        sandbox.start()
    assert raised.value.code == "process_failed"
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@fenced
def test_a_request_that_finds_the_code_broken_hears_of_it_as_a_request(tmp_path: Path) -> None:
    load = "assert not os.path.exists(folder + '/broken'), 'broken since'"
    with Sandbox(package(tmp_path / "model", "os._exit(1)", load)) as sandbox:
        (tmp_path / "model" / "broken").touch()
        with pytest.raises(AppError):
            sandbox.predict([{"harm": True}])
        with pytest.raises(AppError, match="broken since") as raised:
            sandbox.predict([{"x": 1}])
    assert raised.value.code == "upstream_failed"


@fenced
def test_code_that_hangs_ends_with_who_started_it(tmp_path: Path) -> None:
    with Sandbox(package(tmp_path / "model", "time.sleep(600)"), answer_seconds=0.2) as sandbox:
        process, channel = sandbox._process, sandbox._channel
        assert process is not None
        channel.sendall(b"\x00\x00\x00\x10" + b'[{"harm": true}]')
        channel.close()  # as when the parent is killed
        assert process.wait(20) == 0


@fenced
def test_one_at_a_time_where_it_says_so(tmp_path: Path) -> None:
    body = "return [len(records)]"
    package(tmp_path / "model", body)
    path = tmp_path / "model" / "model.py"
    path.write_text(path.read_text().replace("class Model:", "class Model:\n    batch = False"))
    with Sandbox(tmp_path / "model") as sandbox:
        assert sandbox.predict([{"harm": True}] * 3) == [1, 1, 1]


@fenced
def test_libraries_of_the_image_are_there(tmp_path: Path) -> None:
    body = "import numpy\nreturn [numpy.ones(3).sum().item()]"
    with Sandbox(package(tmp_path / "model", body)) as sandbox:
        assert sandbox.predict([{"harm": True}]) == [3.0]
