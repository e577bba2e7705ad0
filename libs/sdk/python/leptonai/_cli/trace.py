"""`lepton trace`."""

from typing import Annotated

import typer

from leptonai._cli._run import Json, client, console, print_json, say
from leptonai._record import clean
from leptonai._types import Trace

BAR = 30


def trace(
    id: Annotated[str, typer.Argument(metavar="ID", help="Of a job, a model version, or an error.")],
    json: Json = False,
) -> None:
    """Show everything that one request set going, as a tree with times.

    Example: lepton trace 4bf92f3577b34da6a3ce929d0e0e4736
    """
    found = client().traces.get(id)
    if json:
        print_json(found)
    elif not found.spans:
        say(f"trace {found.trace_id or id} has no spans yet")
    else:
        _draw(found)


def _draw(found: Trace) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    tree = found.tree()
    start = min(span.start_ns for _, span in tree)
    whole = max(max(span.end_ns for _, span in tree) - start, 1)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=Text(f"trace {clean(found.trace_id)}"), title_justify="left")
    table.add_column("span", no_wrap=True, overflow="ellipsis", ratio=3)
    table.add_column("service")
    table.add_column("start", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, min_width=BAR)
    for branch, (_, span) in zip(branches([depth for depth, _ in tree]), tree, strict=True):
        failed = span.status.lower() not in ("", "ok", "unset", "status_code_unset", "status_code_ok")
        name = Text().append(branch, style="dim").append(clean(span.name), style="bold red" if failed else "")
        table.add_row(
            name,
            Text(clean(span.service)),
            duration((span.start_ns - start) / 1e9),
            duration(span.seconds),
            Text(bar(span.start_ns - start, span.end_ns - start, whole), style="red" if failed else "cyan"),
        )
    console().print(table)


def branches(depths: list[int]) -> list[str]:
    """The lines of a tree ("├─", "└─", "│") in front of items at these depths."""
    found = []
    for at, depth in enumerate(depths):
        text = ""
        for level in range(1, depth + 1):
            later = next((d for d in depths[at + 1 :] if d <= level), 0) == level
            text += ("├─ " if later else "└─ ") if level == depth else ("│  " if later else "   ")
        found.append(text)
    return found


def bar(start: int, end: int, whole: int) -> str:
    """Where a span lies in its trace, BAR characters wide; the shortest is one character."""
    first = min(max(start, 0) * BAR // whole, BAR - 1)
    last = min(max(-(-end * BAR // whole), first + 1), BAR)
    return " " * first + "█" * (last - first) + " " * (BAR - last)


def duration(seconds: float) -> str:
    """Seconds, or milliseconds below one."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
