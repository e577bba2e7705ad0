"""The platform's own commands of `lepton`: up, down, status, dead-letters, demo.

Starts no service inside the command line's process: the platform is always a child, or a process that outlives the command.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any, NoReturn

import psutil
import typer

from libs.errors import near
from services.standalone.control import platform_command, start_platform, stop_platform
from services.standalone.home import Home, HomeError, Running
from services.standalone.words import greeting, refusal

WRONG_INPUT, NOT_RUNNING = 2, 3
# What a process of the platform is, by a word of its command line.
PARTS = {
    "nanny.py": "nanny",
    "standalone.worker": "worker",
    "valkey-server": "broker",
    "training.engine": "training",
    "deployment.replica": "replica",
}

HomeOption = Annotated[Path | None, typer.Option("--home", help="Folder of the platform; default LEPTON_HOME, else ~/.lepton.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the client's application."""
    app.command("up", help="Start the platform on this machine.\n\nExample: lepton up --detach --port 8090")(up)
    app.command("down", help="Stop the platform.\n\nExample: lepton down")(down)
    app.command("status", help="Show whether the platform runs, and what it takes.\n\nExample: lepton status --json")(status)
    app.command(
        "dead-letters",
        help="Show events that a service could not process, or give them back to it.\n\nExample: lepton dead-letters accounts --replay",
    )(dead_letters)
    app.command("demo", help="Run the main job twice on real data.\n\nExample: lepton demo")(demo)


def up(
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8080,
    grpc_port: Annotated[int | None, typer.Option(help="Port for inference over gRPC; default the next one.", min=1, max=65535)] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once it is ready; it goes on.")] = False,
    home: HomeOption = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error; logs go to the home's logs folder.")] = "info",
    as_json: Annotated[bool, typer.Option("--json", help="With --detach: print JSON.")] = False,
) -> None:
    """Starts the platform; without --detach this very process becomes it."""
    place = _home(home)
    grpc_port = grpc_port or (port + 1 if port < 65535 else port - 1)
    argv = platform_command(place, host=host, port=port, grpc_port=grpc_port, log_level=log_level)
    if not detach:
        os.execv(sys.executable, argv)
    started = time.monotonic()
    try:
        child, said = start_platform(place, host=host, port=port, grpc_port=grpc_port, log_level=log_level)
    except HomeError as error:
        refuse(error.wrong, error.right)
    seconds = time.monotonic() - started
    if as_json:
        _say_json({**said, "home": str(place.path), "pid": child.pid, "seconds": round(seconds, 2)})
    else:
        typer.echo(greeting(place.path, said, seconds, key_given="LEPTON_API_KEY" in os.environ, stop="'lepton down'"), nl=False)


def down(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Stops the platform of the home; fine when none runs."""
    place = _home(home)
    running = place.running()
    if running is not None:
        stop_platform(running)
    if as_json:
        typer.echo(json.dumps({"stopped": running is not None, "home": str(place.path)}))
    else:
        typer.echo(f"Stopped the platform at {running.url}." if running else f"No platform runs in {place.path}.")


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Tells of the platform of the home; exit code 3 when none runs."""
    place = _home(home)
    running = place.running()
    if running is None:
        _say_json({"state": "stopped", "home": str(place.path)}) if as_json else typer.echo(f"No platform runs in {place.path}.")
        raise typer.Exit(NOT_RUNNING)
    facts = _facts(place, running)
    if as_json:
        _say_json(facts)
        return
    typer.echo(f"{facts['state']} at {running.url} for {facts['uptime_seconds']} s, home {place.path}")
    for process in facts["processes"]:
        typer.echo(f"  {process['name']:<12} pid {process['pid']:<8} {process['memory_megabytes']:>6} MB")
    typer.echo(f"  {'in all':<25} {facts['memory_megabytes']:>6} MB")


def dead_letters(
    service: Annotated[str, typer.Argument(help="The service that could not process them: accounts, compute, …")],
    replay: Annotated[bool, typer.Option("--replay", help="Give them back to the service, each once.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lists, or replays, what lies in a service's dead-letter topic; also while the platform runs."""
    from services.standalone import dead_letters as letters

    place = _home(home)
    if service not in letters.SERVICES:
        hint = near(service, letters.SERVICES)
        refuse(f"there is no service '{service}'", hint[0] if hint else f"one of {', '.join(letters.SERVICES)}")
    found = letters.read(place, service, replay=replay)
    if as_json:
        _say_json({"service": service, "replayed": replay, "dead_letters": found})
        return
    for letter in found:
        typer.echo(f"{letter['time']}  {letter['type']}  {letter['key']}  {letter['topic']}@{letter['position']}: {letter['reason']}")
    typer.echo(f"{len(found)} dead letters of {service}{' given back' if replay else ''}.")


def demo(
    url: Annotated[str, typer.Option(help="A platform that runs already; default: one of its own, in a folder of its own.")] = "",
    api_key: Annotated[str, typer.Option(envvar="LEPTON_API_KEY", help="Key for --url.", show_envvar=True)] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the platform running.")] = False,
) -> None:
    """Data to a model that answers and earns, twice."""
    try:
        from services.standalone import demo as flow
    except ModuleNotFoundError as missing:
        refuse(f"the demonstration's data comes with a package that is missing: {missing.name}", "pip install scikit-learn pillow")
    sys.exit(flow.main(url=url, api_key=api_key if url else "", keep=keep))


def refuse(wrong: str, right: str) -> NoReturn:
    """Two lines, and the exit code for wrong input."""
    typer.echo(refusal(wrong, right), err=True, nl=False)
    raise typer.Exit(WRONG_INPUT)


def _home(path: Path | None) -> Home:
    return Home(path) if path else Home.default()


def _facts(home: Home, running: Running) -> dict[str, Any]:
    platform = psutil.Process(running.pid)
    processes = [
        {"name": name, "pid": process.pid, "memory_megabytes": round(_memory(process) / 1e6, 1)}
        for name, process in [("platform", platform), *((_name(p), p) for p in platform.children(recursive=True))]
    ]
    return {
        "state": "ready" if _answers(f"{running.url}/readyz") else "starting",
        "url": running.url,
        "grpc": running.grpc,
        "home": str(home.path),
        "pid": running.pid,
        "uptime_seconds": round(time.time() - running.started),
        "processes": processes,
        "memory_megabytes": round(sum(p["memory_megabytes"] for p in processes), 1),
    }


def _memory(process: psutil.Process) -> int:
    """Its own share: memory that several processes map counts once in all."""
    try:
        info = process.memory_full_info()
        return int(getattr(info, "pss", info.rss))
    except psutil.Error:
        return 0


def _name(process: psutil.Process) -> str:
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return "?"
    return next((name for word, name in PARTS.items() if word in words), process.name())


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _say_json(facts: dict[str, Any]) -> None:
    typer.echo(json.dumps(facts))
