"""`make bench-serving`: the table of docs/figures-serving.md. BENCH_PEERS names a folder of environments, one a peer."""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from tools.bench_serving import packages
from tools.bench_serving.load import Result, free_port, requests, run
from tools.bench_serving.servers import SERVERS, DoesNotAnswer, Server, missing, processor_seconds, running
from tools.proto import ROOT

RESULTS = ROOT / "docs" / "figures-serving.md"
HEAD = """# Figures of serving

Measured by `make bench-serving BENCH_ARGS=--write`: each server a process on one core, `wrk` with 32 connections on another, one row a
request; the best of {tries} loads of {seconds:g} s. CPU is the server's own time an answer, over all of its processes: on a machine that
others use too it says more than the rate. Ratios are taken within one run; a peer's is against our replica's figure for the first request.
The machine's load average was {load:.0f} when it began.

| server | request | answers/s | p50 ms | p99 ms | CPU µs | rate | CPU |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    options = _parse()
    for tool in ("wrk", "taskset"):
        if not shutil.which(tool):
            raise SystemExit(f"error: {tool} is not installed, and the load comes from it; on Debian: apt-get install wrk util-linux")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("error: two cores are needed, one for the server and one for the load")
    peers = Path(os.environ.get("BENCH_PEERS") or ROOT / "build" / "peers").resolve()
    load = os.getloadavg()[0]
    lines: list[str] = []
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as name:
        packages.make(Path(name))
        ours: Result | None = None
        for server in SERVERS:
            if options.only.lower() not in server.name.lower():
                continue
            try:
                if reason := missing(server, peers):
                    raise DoesNotAnswer(reason)
                for kind in list(requests())[: 1 if server.script else None]:
                    result = _measure(server, kind, Path(name), cores, peers, options)
                    ours = ours or result
                    lines.append(_row(server, kind, result, ours))
                    print(lines[-1], flush=True)
            except DoesNotAnswer as error:
                left_out.append(f"{server.name}: {error}".replace(f"{ROOT}/", ""))
                print(left_out[-1], flush=True)
    if options.write:
        words = "".join(f"\nNot measured: {line}." for line in left_out)
        RESULTS.write_text(
            HEAD.format(tries=options.tries, seconds=options.seconds, load=load) + "\n".join(lines) + "\n" + words + "\n" * bool(words)
        )


def _measure(server: Server, kind: str, folder: Path, cores: list[int], peers: Path, options: argparse.Namespace) -> Result:
    request, port = requests()[kind], free_port()
    results = []
    with running(server, folder, request, port, cores[0], peers) as session:
        run(request, port, 1, cores[1], folder)
        for _ in range(options.tries):
            before = processor_seconds(session)
            count, took, p50, p99, failures = run(request, port, options.seconds, cores[1], folder)
            spent = processor_seconds(session) - before
            if failures:
                raise SystemExit(f"error: {server.name} failed {failures} of {count} requests of the kind {kind}")
            results.append(Result(count / took, p50, p99, failures, spent / max(1, count) * 1e6))
    return max(results, key=lambda result: result.rate)


def _row(server: Server, kind: str, result: Result, ours: Result) -> str:
    figures = f"{result.rate:,.0f} | {result.p50:.2f} | {result.p99:.2f} | {result.cpu:.0f}"
    return f"| {server.name} | {kind} | {figures} | {result.rate / ours.rate:.2f} | {result.cpu / ours.cpu:.2f} |"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-serving", description="BENCH_PEERS: a folder of environments, one a peer")
    parser.add_argument("--write", action="store_true", help="write docs/figures-serving.md")
    parser.add_argument("--only", default="", help="part of a server's name")
    parser.add_argument("--seconds", type=float, default=5, help="of one load")
    parser.add_argument("--tries", type=int, default=3, help="loads of each kind")
    return parser.parse_args()


if __name__ == "__main__":
    main()
