"""Runs the demonstration on a platform of its own, or on one that is there, and draws what happens."""

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

import leptonai as la
from leptonai._cli import trace as trace_command
from services.standalone.control import start_platform, stop_platform
from services.standalone.demo import flow
from services.standalone.home import Home

LEAST_ACCURACY = {"wdbc": 0.94, "digits": 0.97}
CALLS = 25


def main(*, url: str = "", api_key: str = "", keep: bool = False) -> int:
    """Exit code 0 when both models are as accurate as they should be."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    began = time.perf_counter()
    given = bool(url)
    with _platform(console, url, api_key, keep) as (url, api_key):
        operator = la.Client(api_key, url)
        # On a platform that is in use nothing of it is in the way.
        run = f"{int(time.time()):x}"
        client = _in_new_workspace(operator, url, f"demo-{run}") if given else operator
        stages = flow.Flow(client, lambda stage: _show_stage(console, stage), f"demo-{run}" if given else "demo")
        buyer = _in_new_workspace(operator, url, f"buyer-{run}")
        accuracies = {}
        for title, train, record in (
            ("A dirty table, with an MLP", stages.table, flow.table_record),
            ("Pictures, with a CNN", stages.pictures, flow.picture_record),
        ):
            console.print(f"\n[bold]{title}[/bold]")
            version = train()
            raw, truth = record()
            stages.deploy(version, raw, truth)
            stages.sell(version, raw, CALLS, buyer)
            accuracies[version.model] = version.metrics["accuracy"]
        invoice, earnings = flow.bill(buyer, client, 2 * CALLS)
        _show_money(console, invoice, earnings)
        job = next(iter(client.training_jobs.list()))
        _show_trace(console, client, job.trace_id)
        seconds = time.perf_counter() - began
        good = _show_verdict(console, accuracies, seconds)
        if given and not keep:
            stages.clear()
        if keep:
            console.print(f"It goes on at {url}:  export LEPTON_URL={url} LEPTON_API_KEY={api_key}")
    return 0 if good else 1


@contextmanager
def _platform(console: Console, url: str, api_key: str, keep: bool) -> Iterator[tuple[str, str]]:
    if url:
        yield url, api_key
        return
    folder = Path(tempfile.mkdtemp(prefix="lepton-demo-"))
    home = Home(folder)
    os.environ.pop("LEPTON_API_KEY", None)
    started = time.perf_counter()
    child, said = start_platform(home, host="127.0.0.1", port=_free_port(), grpc_port=_free_port())
    console.print(f"Lepton is ready at {said['url']} after {time.perf_counter() - started:.1f} s, in {folder}", highlight=False)
    try:
        yield said["url"], said["api_key"]
    finally:
        if not keep:
            running = home.running()
            if running:
                stop_platform(running)
            child.wait()
            shutil.rmtree(folder, ignore_errors=True)
            console.print("Stopped; nothing is left running.")


def _in_new_workspace(operator: la.Client, url: str, name: str) -> la.Client:
    """A client of another workspace, made for this run."""
    made = operator.account.create_workspace(name)
    return la.Client(made.secret, url)


def _show_stage(console: Console, stage: flow.Stage) -> None:
    console.print(f"  {stage.name:<40} {stage.seconds:6.2f} s   {stage.result}", highlight=False)


def _show_money(console: Console, invoice: la.Invoice, earnings: la.Earnings) -> None:
    table = Table(title=f"Invoice {invoice.number} for the workspace that called", title_justify="left")
    for name in ("what", "resource", "quantity", "unit price", "amount"):
        table.add_column(name, justify="left" if name in ("what", "resource") else "right")
    for line in invoice.lines:
        table.add_row(line.metric, line.resource, f"{line.quantity:g}", str(line.unit_price), str(line.amount))
    table.add_row("total", "", "", "", str(invoice.total), style="bold")
    console.print()
    console.print(table)
    console.print(f"Earnings of the workspace that publishes: {earnings.net}", highlight=False)


def _show_trace(console: Console, client: la.Client, trace_id: str) -> None:
    """Of the last training job, once its last spans have been written."""
    time.sleep(1.0)
    console.print()
    try:
        trace = client.traces.get(trace_id)
    except la.APIError as error:
        if error.code != "unimplemented":
            raise
        console.print(error.detail, style="dim", highlight=False)
        return
    trace_command._draw(trace)


def _show_verdict(console: Console, accuracies: dict[str, float], seconds: float) -> bool:
    good = True
    for model, accuracy in accuracies.items():
        enough = accuracy >= LEAST_ACCURACY[model]
        good = good and enough
        console.print(f"{model}: accuracy {accuracy:.4f} on held-out rows (wanted ≥ {LEAST_ACCURACY[model]}) {'✓' if enough else '✗'}")
    console.print(f"All of it took {seconds:.1f} s.", highlight=False)
    console.print("\nGo on:  lepton up   ·   examples/quickstart.py   ·   README.md   ·   http://127.0.0.1:8080/docs")
    return good


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
