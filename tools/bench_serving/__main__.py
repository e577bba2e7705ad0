"""`make bench-serving`: the tables of docs/figures-serving.md. BENCH_PEERS names a folder of environments, one a peer."""

import argparse
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.bench_serving import packages
from tools.bench_serving.load import INFER, Request, Result, expected, free_port, requests, run
from tools.bench_serving.servers import GATEWAY, SERVERS, DoesNotAnswer, Server, Session, install, running
from tools.proto import ROOT

RESULTS = ROOT / "docs" / "figures-serving.md"
TOLERANCE = 1e-4
HEAD = """# Figures of serving

Measured by `make bench-serving BENCH_ARGS='--install --write'`: each server a process on one core, the load on another, 32 requests in
hand, one row a request; the best of {tries} loads of {seconds:g} s. Over HTTP the load is `wrk`'s with 32 connections, over gRPC it is
`tools.bench_serving.rpc_load` with 8 calls at once on each of 4 connections. All serve the same weights, peers by ONNX Runtime on one
thread, "FastAPI + torch" by torch; what does not answer as our model does, to 1e-4, is not measured. LitServe, BentoML, Ray Serve and
TorchServe speak no V2: their own handlers take its JSON, and they have no binary tensors; MLServer has these over gRPC only. Batching is on
where a server has it.

CPU is the server's own time an answer, over all of its processes: on a machine that others use too it says more than the rate. The last two
columns are our replica's lead at the same request: how many times its answers, and how many times less CPU.
The machine's load average was {load:.0f} when it began.

| server | request | answers/s | p50 ms | p99 ms | CPU µs | × rate | × CPU |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
STARTS = """
From a process's start to its first answer, the better of one start for each model, and the memory of all of its processes after the loads,
pages that they share counted in each:

| server | first answer s | memory MB |
| --- | --- | --- |
"""


@dataclass
class Bench:
    """One run: what it is made of, and what it found."""

    options: argparse.Namespace
    folder: Path
    peers: Path
    cores: list[int]
    expected: Mapping[str, NDArray[Any]]
    ours: dict[str, Result] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def measure(self, server: Server) -> None:
        asked = {
            kind: replace(request, path=server.path) if request.path == INFER else request
            for kind, request in requests().items()
            if kind in server.kinds
        }
        firsts, sizes = [], []
        for model in dict.fromkeys(request.model for request in asked.values()):
            kinds = [kind for kind, request in asked.items() if request.model == model]
            port = free_port()
            with running(server, self.folder, asked[kinds[0]], port, self.cores[0], self.peers) as session:
                for kind in kinds:
                    try:
                        self._say(server, kind, self._load(server, asked[kind], port, session))
                    except DoesNotAnswer as error:
                        self._leave_out(f"{server.name}, {kind}: {error}")
                firsts.append(session.first)
                sizes.append(session.bytes())
        if server.script != GATEWAY:  # it has no first answer before a model is trained
            self.starts.append(f"| {server.name} | {min(firsts):.2f} | {max(sizes) / 1e6:.0f} |")
            print(self.starts[-1], flush=True)

    def try_to_measure(self, server: Server) -> None:
        try:
            self.measure(server)
        except (DoesNotAnswer, subprocess.SubprocessError) as error:
            self._leave_out(f"{server.name}: {error}")

    def _load(self, server: Server, request: Request, port: int, session: Session) -> Result:
        answer = self._right_answer(server, request, port)
        run(request, port, 1, self.cores[1], self.folder, answer)
        results = []
        for _ in range(self.options.tries):
            before = session.processor_seconds()
            count, took, p50, p99, failures = run(request, port, self.options.seconds, self.cores[1], self.folder, answer)
            spent = session.processor_seconds() - before
            if failures or not count:
                raise DoesNotAnswer(f"{failures} of {count} requests failed in a load")
            results.append(Result(count / took, p50, p99, spent / count * 1e6))
        return max(results, key=lambda result: result.rate)

    def _right_answer(self, server: Server, request: Request, port: int) -> bytes:
        try:
            answer = request.ask(port)
        except OSError as error:
            raise DoesNotAnswer(f"it does not answer: {error}") from error
        if server.script != GATEWAY:  # whose platform has trained a model of its own
            try:
                numbers, right = request.numbers(answer), self.expected[request.model]
            except (ValueError, KeyError, TypeError) as error:
                raise DoesNotAnswer(f"its answer cannot be read: {answer[:100]!r}") from error
            if numbers.shape != right.shape or not np.allclose(numbers, right, rtol=0, atol=TOLERANCE):
                raise DoesNotAnswer(f"its answer is wrong: {numbers[:3].tolist()}…, not {right[:3].tolist()}…")
        return answer

    def _say(self, server: Server, kind: str, result: Result) -> None:
        ours = self.ours.setdefault(kind, result) if not server.script else self.ours.get(kind)
        leads = f"{ours.rate / result.rate:.2f} | {result.cpu / ours.cpu:.2f}" if ours else " | "
        figures = f"{result.rate:,.0f} | {result.p50:.2f} | {result.p99:.2f} | {result.cpu:.0f}"
        self.lines.append(f"| {server.name} | {kind} | {figures} | {leads} |")
        print(self.lines[-1], flush=True)

    def _leave_out(self, words: str) -> None:
        self.left_out.append(words.replace(f"{ROOT}/", ""))
        print(self.left_out[-1], flush=True)


def main() -> None:
    options = _parse()
    for tool in ("wrk", "taskset"):
        if not shutil.which(tool):
            raise SystemExit(f"error: {tool} is not installed, and the load comes from it; on Debian: apt-get install wrk util-linux")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("error: two cores are needed, one for the server and one for the load")
    peers = Path(os.environ.get("BENCH_PEERS") or ROOT / "build" / "peers").resolve()
    chosen = [server for server in SERVERS if options.only.lower() in server.name.lower()]
    for server in chosen if options.install else ():
        if server.needs:
            install(server, peers)
    load = os.getloadavg()[0]
    os.sched_setaffinity(0, cores[1:])
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as name:
        folder = Path(name)
        packages.make(folder)
        bench = Bench(options, folder, peers, cores, expected(folder))
        for server in chosen:
            bench.try_to_measure(server)
    if options.write:
        head = HEAD.format(tries=options.tries, seconds=options.seconds, load=load)
        words = "".join(f"\nNot measured: {line}.\n" for line in bench.left_out)
        RESULTS.write_text(head + "\n".join(bench.lines) + "\n" + STARTS + "\n".join(bench.starts) + "\n" + words)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-serving", description="BENCH_PEERS: a folder of environments, one a peer")
    parser.add_argument("--install", action="store_true", help="first make the peers' environments, some 6 GB, where they are not yet")
    parser.add_argument("--write", action="store_true", help="write docs/figures-serving.md")
    parser.add_argument("--only", default="", help="part of a server's name")
    parser.add_argument("--seconds", type=float, default=3, help="of one load")
    parser.add_argument("--tries", type=int, default=3, help="loads of each kind")
    return parser.parse_args()


if __name__ == "__main__":
    main()
