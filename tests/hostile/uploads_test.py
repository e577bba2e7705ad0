"""Files that are made to hurt: each is answered in words, none stays, and the platform neither grows nor stops answering."""

import io
import json
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.hostile.conftest import Town
from tests.platform import Platform, eventually

REFUSED = (400, 413, 415, 422)
MIB = 1 << 20


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, data: bytes = b"") -> bytes:
    """One-bit grey; `data` in place of what the size asks for."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", data or zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def packed(*files: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return data.getvalue()


def link(name: str, mode: int = 0o120777) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.create_system = mode << 16, 3
    return info


def overlapping() -> bytes:
    """A hundred names of the same bytes."""
    plain = packed(("cat/1.png", png(8, 8)))
    start = plain.index(b"PK\x01\x02")
    end = plain.index(b"PK\x05\x06")
    entry = plain[start:end]
    directory = b"".join(entry.replace(b"cat/1.png", b"cat/%c.png" % (65 + n)) for n in range(20))
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 20, 20, len(directory), start, 0)
    return plain[:start] + directory + tail


def lying_parquet() -> bytes:
    """The footer promises more rows than any machine has memory for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    pq.write_table(pa.table({"a": pa.array([0] * 1000, pa.int64())}), data, use_dictionary=True)
    raw = bytearray(data.getvalue())
    # 1000 as a zigzag varint, wherever the metadata says how many rows there are.
    footer = len(raw) - 8 - struct.unpack("<I", raw[-8:-4])[0]
    raw[footer:-8] = raw[footer:-8].replace(b"\xd0\x0f", b"\xfe\x7f")
    return bytes(raw)


def expanding_parquet() -> bytes:
    """Few bytes, many cells: 30 million of the same value."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    table = pa.table({f"c{n}": pa.array([0] * 500_000, pa.int8()) for n in range(60)})
    pq.write_table(table, data, compression="zstd", use_dictionary=True)
    return data.getvalue()


DEEP = 200_000
BAD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "deep objects": ("a.jsonl", lambda: b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"\n"),
    "deep lists": ("a.jsonl", lambda: b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}\n"),
    "no end": ("a.jsonl", lambda: b'{"a":' * DEEP),
    "a lone surrogate": ("a.jsonl", lambda: b'{"\\ud800":1}\n'),
    "huge numbers": ("a.jsonl", lambda: b'{"a":1' + b"0" * 100_000 + b"}\n"),
    "a new name each line": ("a.jsonl", lambda: b"".join(b'{"k%d":1}\n' % n for n in range(100_000))),
    "a million columns": ("a.csv", lambda: b",".join(b"c%d" % n for n in range(1_000_000)) + b"\n" + b"1," * 999_999 + b"1\n"),
    "a line of 64 MiB": ("a.csv", lambda: b"a,b\n1," + b"x" * (64 * MIB)),
    "a name of 64 MiB": ("a.csv", lambda: b"x" * (64 * MIB)),
    "a quote that never ends": ("a.csv", lambda: b'a,b\n1,"' + b"x\n" * (8 * MIB)),
    "only separators": ("a.csv", lambda: b"," * (4 * MIB)),
    "only line ends": ("a.csv", lambda: b"\n" * (32 * MIB)),
    "NUL": ("a.csv", lambda: b"a,b\n1,\x002\n"),
    "a PNG of 3.6 billion pixels": ("a.zip", lambda: packed(("cat/1.png", png(60_000, 60_000)), ("dog/1.png", png(8, 8)))),
    "a PNG of no pixels": ("a.zip", lambda: packed(("cat/1.png", png(0, 0)))),
    "a PNG whose text expands": (
        "a.zip",
        lambda: packed(("cat/1.png", png(8, 8, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * (32 * MIB))) for _ in range(8)]))),
    ),
    "a PNG cut short": ("a.zip", lambda: packed(("cat/1.png", png(8, 8)[:-20]), ("dog/1.png", png(8, 8)[:30]))),
    "a ZIP bomb": ("a.zip", lambda: packed(("cat/1.png", b"\0" * (200 * MIB)))),
    "a ZIP in a ZIP": ("a.zip", lambda: packed(("cat/1.zip", packed(("a", b"\0" * MIB))))),
    "shared bytes": ("a.zip", overlapping),
    "a symlink": ("a.zip", lambda: packed((link("cat/1.png"), b"/etc/passwd"))),
    "a device": ("a.zip", lambda: packed((link("cat/1.png", 0o020666), b""))),
    "an absolute name": ("a.zip", lambda: packed(("/etc/cron.d/1.png", b"x"))),
    "a name that leads out": ("a.zip", lambda: packed(("cat/../../1.png", b"x"))),
    "a drive": ("a.zip", lambda: packed(("C:/1.png", b"x"))),
    "a directory of its own size": ("a.zip", lambda: struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 0, 0)),
    "a Parquet that lies": ("a.parquet", lying_parquet),
    "a Parquet of a footer": ("a.parquet", lambda: b"PAR1" + b"\xff" * 200 + struct.pack("<I", 200) + b"PAR1"),
    "a Parquet with a footer of 4 GiB": ("a.parquet", lambda: b"PAR1" + b"\0" * 100 + struct.pack("<I", 2**32 - 1) + b"PAR1"),
    "a pickle": ("a.csv", lambda: b"\x80\x04\x95" + b"cos\nsystem\n(S'touch /tmp/owned'\ntR."),
}


@pytest.fixture(scope="module")
def http(town: Town) -> Iterator[httpx.Client]:
    with town.http("victim") as http:
        yield http


def upload(http: httpx.Client, name: str, file_name: str, content: bytes) -> httpx.Response:
    return http.put(f"/v1/datasets/{name}/content", params={"filename": file_name, "wait": 60}, content=content, timeout=120)


@pytest.mark.parametrize("what", BAD)
def test_each_is_refused_in_words(http: httpx.Client, what: str) -> None:
    file_name, make = BAD[what]
    answer = upload(http, "bad-file", file_name, make())
    assert answer.status_code in REFUSED, f"{answer.status_code}: {answer.text[:1000]}"
    body = answer.json()
    assert len(body["detail"]) > 10
    assert len(answer.content) < 64 * 1024, "an answer as long as the file"
    assert "Traceback" not in answer.text and "/services/" not in answer.text, answer.text
    assert http.get("/v1/datasets/bad-file").status_code == 404


def rest_memory(platform: Platform) -> int:
    return psutil.Process(platform.pid()).memory_info().rss


def work_files(home: Path) -> list[Path]:
    return [path for path in (home / "work" / "data").rglob("*") if path.is_file() and path.name != "lock"]


@pytest.mark.slow
def test_twenty_at_once(town: Town, http: httpx.Client) -> None:
    """And none of them is kept, in memory or on the disk."""
    names = [what for what in BAD if "64 MiB" not in what] * 2
    files = [(BAD[what][0], BAD[what][1]()) for what in names[:20]]
    before = rest_memory(town.platform)
    answers: list[int] = []

    def send(number: int, file_name: str, content: bytes) -> None:
        with town.http("victim") as one:
            answers.append(upload(one, f"bad-{number}", file_name, content).status_code)

    threads = [threading.Thread(target=send, args=(number, *file)) for number, file in enumerate(files)]
    for thread in threads:
        thread.start()
    slowest = 0.0
    while any(thread.is_alive() for thread in threads):
        began = time.monotonic()
        assert http.get("/v1/datasets/canary-data").status_code == 200
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.2)
    assert len(answers) == 20 and all(status in (*REFUSED, 429, 503) for status in answers), sorted(answers)
    assert slowest < 5, f"the platform did not answer for {slowest:.1f} s"
    assert rest_memory(town.platform) - before < 64 * MIB
    assert eventually(lambda: not work_files(town.platform.home), 10), work_files(town.platform.home)
    incoming = town.platform.home / "artifacts" / "datasets" / "incoming"
    assert not list(incoming.iterdir())
    assert not [each for each in http.get("/v1/datasets").json()["datasets"] if each["name"].startswith("bad")]
    quotas = {each["metric"]: each["used"] for each in http.get("/v1/me").json()["quotas"]}
    assert quotas["storage_bytes"] < MIB, "what was refused is still counted"


def test_good_files_that_expand_take_no_more_than_their_share(town: Town, http: httpx.Client) -> None:
    before = rest_memory(town.platform)
    content = expanding_parquet()
    answer = upload(http, "wide", "a.parquet", content)
    assert answer.status_code in (201, 202, *REFUSED), answer.text
    assert rest_memory(town.platform) - before < 64 * MIB
    http.delete("/v1/datasets/wide")


def test_an_upload_that_breaks_off_leaves_nothing(town: Town, http: httpx.Client) -> None:
    import socket

    incoming = town.platform.home / "artifacts" / "datasets" / "incoming"
    with socket.create_connection(("127.0.0.1", town.platform.port)) as raw:
        head = f"PUT /v1/datasets/cut/content?filename=a.csv HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {town.keys['victim']}\r\n"
        raw.sendall(f"{head}content-length: 1000000\r\n\r\n".encode() + b"a,b\n" * 1000)
        assert eventually(lambda: list(incoming.iterdir()), 5)
    assert eventually(lambda: not list(incoming.iterdir()), 5)
    assert http.get("/v1/datasets/cut").status_code == 404


def test_chunked_bodies_are_bounded_too(town: Town) -> None:
    """A length that nobody declares is counted as it comes: JSON of more than a MiB is cut off."""

    def endless() -> Iterator[bytes]:
        yield b'{"name":"'
        for _ in range(64):
            yield b"x" * 65536

    with town.http("victim") as one:
        try:
            answer = one.post("/v1/datasets", content=endless(), headers={"content-type": "application/json"})
        except httpx.TransportError:
            return
        assert answer.status_code == 413, answer.text
        assert json.loads(answer.text)["code"] == "too_large"
