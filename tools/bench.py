"""Measures what the documentation promises, on this machine, and prints it as the table of docs/figures.md.

Each figure is the median of several tries; ratios are taken within one run, since machines differ and drift.
"""

import argparse
import asyncio
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import pandas as pd

import leptonai as la
from tests.platform import Platform, eventually, free_port, lepton

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "figures.md"
HEAD = """# Figures

Measured by `make bench BENCH_ARGS=--write` on 2 cores. Medians; noise is ±20 %; ratios are taken within one run.

| what | figure | bound |
| --- | --- | --- |
"""
RECORD = {"instances": [{"x": 1.0}]}


@dataclass(frozen=True)
class Figure:
    what: str
    value: str
    bound: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--write", action="store_true", help="write docs/figures.md")
    parser.add_argument("--only", default="", help="part of a section's name")
    options = parser.parse_args()
    figures: list[Figure] = []
    for section in (start, platform_sections, training_loop):
        if options.only in section.__name__:
            for figure in section():
                figures.append(figure)
                print(f"{figure.what:<70} {figure.value:>20}   {figure.bound}", flush=True)
    if options.write:
        RESULTS.write_text(HEAD + "".join(f"| {f.what} | {f.value} | {f.bound} |\n" for f in figures))


def start() -> Iterator[Figure]:
    """From typing `lepton up` to the first answer."""
    with _folder() as folder:
        platform = Platform(folder, free_port())
        times = []
        for _ in range(4):
            times.append(platform.up().seconds)
            platform.down()
    yield Figure("`lepton up --detach` to ready, new home", f"{times[0]:.2f} s", "3 s")
    yield Figure("`lepton up --detach` to ready, home with state", f"{statistics.median(times[1:]):.2f} s", "3 s")


def platform_sections() -> Iterator[Figure]:
    """Everything that one running platform can tell."""
    with _folder() as folder:
        platform = Platform(folder, free_port()).up()
        try:
            time.sleep(5)
            status = json.loads(lepton("status", "--json", env=platform.env).stdout)
            yield Figure("memory of all processes at rest (PSS)", f"{status['memory_megabytes']:.0f} MB", "400 MB")
            for part in (_rest, _fit, _first_step, _cancel, _predict, _first_answer, _wake, _upload):
                yield from part(platform)
        finally:
            platform.down()


def training_loop() -> Iterator[Figure]:
    """The engine's loop against the bare one, by the engine's own bench."""
    done = subprocess.run([sys.executable, "-m", "services.training.engine.bench"], capture_output=True, text=True, check=True)
    ratio = done.stdout.strip().splitlines()[-1].split(":")[1].split()[0]
    yield Figure("training: engine's loop against a bare PyTorch loop", ratio, "1.02")


def _rest(platform: Platform) -> Iterator[Figure]:
    with platform.http() as http:
        number = iter(range(10_000))
        made = _times(200, lambda: http.post("/v1/datasets", json={"name": f"bench-{next(number)}"}).raise_for_status())
        read = _times(400, lambda: http.get("/v1/datasets/bench-1").raise_for_status())
    yield Figure("REST: create a small resource, p50 / p99", _spread(made))
    yield Figure("REST: read a small resource, p50 / p99", _spread(read))


def _fit(platform: Platform) -> Iterator[Figure]:
    rows = pd.DataFrame({"feature": np.linspace(0, 9, 1000)})
    target = rows["feature"] * 3 + np.random.default_rng(7).normal(size=1000)
    fits, firsts, nexts = [], [], []
    with platform.client():
        for _ in range(3):
            model = la.LinearRegression()
            fits.append(_seconds(lambda: model.fit(rows, target)))  # noqa: B023
            firsts.append(_seconds(lambda: model.predict(rows)))  # noqa: B023
            nexts.append(_seconds(lambda: model.predict(rows)))  # noqa: B023
            model.close()
    yield Figure("`LinearRegression().fit`, 1,000 rows", f"{statistics.median(fits):.2f} s", "5 s")
    yield Figure("`predict`, the first time (endpoint is made)", f"{statistics.median(firsts):.2f} s", "2 s")
    yield Figure("`predict`, 1,000 rows, afterwards", f"{statistics.median(nexts) * 1e3:.0f} ms")


def _submit(platform: Platform, **training: Any) -> dict[str, Any]:
    text = "x,y\n" + "".join(f"{n},{n * 2}\n" for n in range(500))
    with platform.http() as http:
        if http.get("/v1/datasets/steps").status_code == 404:
            http.put("/v1/datasets/steps/content", params={"filename": "x.csv"}, content=text).raise_for_status()
        body = {"dataset": "steps@1", "task": "regression", "target": "y", "output_model": "steps", "model": {"architecture": "mlp"}}
        answer = http.post("/v1/training-jobs", json={**body, "training": training})
        return dict(answer.raise_for_status().json())


def _first_step(platform: Platform) -> Iterator[Figure]:
    waits, imports = [], []
    for _ in range(3):
        imports.append(_seconds(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True)))
        with platform.client() as client:
            job = client.training_jobs.wait(_submit(platform, epochs=2)["id"], progress=False)
        assert job.first_step_time and job.create_time
        waits.append((job.first_step_time - job.create_time).total_seconds())
    yield Figure("submit to first training step", f"{statistics.median(waits):.2f} s")
    yield Figure("… of which beyond `import torch`", f"{statistics.median(waits) - statistics.median(imports):.2f} s", "1 s")


def _cancel(platform: Platform) -> Iterator[Figure]:
    times = []
    for _ in range(3):
        job = _submit(platform, epochs=100_000)
        assert eventually(lambda: platform.find("services.training.engine"), timeout=30)
        time.sleep(4)
        started = time.monotonic()
        with platform.http() as http:
            http.post(f"/v1/training-jobs/{job['id']}/cancel", json={}).raise_for_status()
        assert eventually(lambda: not platform.find("services.training.engine"), timeout=10, interval=0.02)
        times.append(time.monotonic() - started)
    yield Figure("cancel to the process being gone", f"{statistics.median(times):.2f} s", "2 s")


def _predict(platform: Platform) -> Iterator[Figure]:
    with platform.client() as client:
        client.endpoints.create("bench", "steps@1")
        client.endpoints.wait_ready("bench")
    alone = asyncio.run(_load(platform, 1, 400))
    many = asyncio.run(_load(platform, 32, 3000))
    yield Figure("predict, one record, one client, p50 / p99", _spread(alone))
    yield Figure("predict, one record, 32 clients", f"{len(many) / sum(many) * 32:.0f} requests/s")


def _first_answer(platform: Platform) -> Iterator[Figure]:
    times = []
    with platform.http() as http:
        for _ in range(10):
            times.append(_seconds(lambda: _create_and_ask(http)))
            http.delete("/v1/endpoints/first").raise_for_status()
            assert eventually(lambda: http.get("/v1/endpoints/first").status_code == 404, timeout=30)
    yield Figure("endpoint is created to its first answer, p50 / p95", _seconds_of(times), "2 s")


def _create_and_ask(http: httpx.Client) -> None:
    http.post("/v1/endpoints", json={"name": "first", "model": "steps@1"}).raise_for_status()
    http.post("/v1/endpoints/first/predict", json=RECORD).raise_for_status()


def _wake(platform: Platform) -> Iterator[Figure]:
    """Of several endpoints, since each falls asleep half a minute after it was ready."""
    times, names = [], [f"sleeper-{number}" for number in range(4)]
    with platform.http() as http:
        scaling = {"min_replicas": 0, "max_replicas": 1, "idle_seconds": 1}
        for name in names:
            http.post("/v1/endpoints", json={"name": name, "model": "steps@1", "scaling": scaling}).raise_for_status()
        for _ in range(5):
            for name in names:
                assert eventually(lambda: http.get(f"/v1/endpoints/{name}").json()["state"] == "sleeping", timeout=90)  # noqa: B023
            for name in names:
                times.append(_seconds(lambda: http.post(f"/v1/endpoints/{name}/predict", json=RECORD).raise_for_status()))  # noqa: B023
        for name in names:
            http.delete(f"/v1/endpoints/{name}").raise_for_status()
    yield Figure("endpoint wakes from zero replicas to its first answer, p50 / p95", _seconds_of(times), "2 s")


async def _load(platform: Platform, clients: int, requests: int) -> list[float]:
    times: list[float] = []
    headers = {"Authorization": f"Bearer {platform.key}", "content-type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def work() -> None:
            for _ in range(requests // clients):
                started = time.perf_counter()
                async with session.post(f"{platform.url}/v1/endpoints/bench/predict", json=RECORD) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
                times.append(time.perf_counter() - started)

        await asyncio.gather(*(work() for _ in range(clients)))
    return times


def _upload(platform: Platform) -> Iterator[Figure]:
    values = np.random.default_rng(7).normal(size=(200_000, 10))
    text = pd.DataFrame(values, columns=[f"c{n}" for n in range(10)]).to_csv(index=False).encode()
    with platform.http() as http:
        times = [
            _seconds(lambda: http.put("/v1/datasets/big/content", params={"filename": "x.csv", "wait": 60}, content=text, timeout=90))
            for _ in range(3)
        ]
    size = len(text) / 2**20
    yield Figure(f"upload of a CSV of {size:.0f} MiB to a typed, profiled version", f"{size / statistics.median(times):.0f} MiB/s")


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _times(count: int, work: Callable[[], object]) -> list[float]:
    return [_seconds(work) for _ in range(count)]


def _seconds_of(times: list[float]) -> str:
    ordered = sorted(times)
    return f"{ordered[len(ordered) // 2]:.2f} / {ordered[math.ceil(len(ordered) * 0.95) - 1]:.2f} s"


def _spread(times: list[float]) -> str:
    ordered = sorted(times)
    return f"{ordered[len(ordered) // 2] * 1e3:.1f} / {ordered[int(len(ordered) * 0.99)] * 1e3:.1f} ms"


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lepton-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


if __name__ == "__main__":
    main()
