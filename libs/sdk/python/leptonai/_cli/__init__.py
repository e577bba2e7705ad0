"""The `lepton` command: reads arguments, calls the client, prints, and turns errors into two lines and an exit code.

Commands of the platform (`up`, `down`, `status`, `demo`) are added by entry points of the group "lepton.commands": each is a
function `register(app: typer.Typer) -> None`.
"""

import os
import sys
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated

import typer

from leptonai import __version__
from leptonai._cli._errors import exit_code, two_lines
from leptonai._cli._run import Usage, settings

NOUNS = {
    "dataset": "Upload, look at, transform and download data.",
    "train": "Submit and follow training jobs.",
    "model": "Look at and download trained models.",
    "endpoint": "Serve models and ask them.",
    "batch": "Predict every row of a dataset.",
    "market": "Publish models, and use others'.",
    "compute": "Machines, and who holds a share of them.",
    "account": "Workspaces, members, keys, plans, invoices.",
}
PLATFORM = ("up", "down", "status", "demo")

HELP = """Lepton, the AI cloud that you run yourself: data in; a trained, deployed, metered model out.

Example: lepton dataset upload wdbc wdbc.csv && lepton train submit -f job.json --watch
"""

EPILOG = """Exit codes:\n
0  all went well\n
1  it failed on the platform, or the job failed\n
2  something in the request is wrong, or its key: two lines on stderr say what and where, and what would be right\n
3  the platform cannot be reached\n
130  interrupted\n
\n
Every verb takes --json: then stdout is JSON and nothing else. A name such as wdbc@2 means version 2; without @2 the newest."""


def main(args: list[str] | None = None) -> None:
    """Runs the command line and exits."""
    words = list(sys.argv[1:] if args is None else args)
    code = _run(words)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _run(words: list[str]) -> int:
    try:
        words = _globals_first(words)
        result = typer.main.get_command(_app(words)).main(words, prog_name="lepton", standalone_mode=False)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
        return 0
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            return 0  # nothing was asked, and the help was printed
        code = exit_code(error)
        if code is None:
            raise
        print("\n".join(two_lines(error, words)), file=sys.stderr)
        return code
    return result if isinstance(result, int) else 0


def _app(words: list[str]) -> typer.Typer:
    """The commands that these words need: all of them only for help, since loading them takes time."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, help=HELP, epilog=EPILOG, pretty_exceptions_enable=False)
    app.callback()(_root)
    noun = _noun(words)
    for name, about in NOUNS.items():
        if noun not in NOUNS or noun == name:
            app.add_typer(import_module(f"leptonai._cli.{name}").app, name=name, help=about, no_args_is_help=True)
    if noun not in NOUNS:
        app.command("trace")(import_module("leptonai._cli.trace").trace)
    if noun not in NOUNS and noun != "trace":
        _add_platform(app, noun)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lepton {__version__}")
        raise typer.Exit


def _root(
    url: Annotated[str, typer.Option(envvar="LEPTON_URL", help="Address of the platform.")] = "http://127.0.0.1:8080",
    api_key: Annotated[str, typer.Option(envvar="LEPTON_API_KEY", help="Your key.")] = "",
    version: Annotated[bool, typer.Option("--version", help="Print the client's version.", is_eager=True, callback=_version)] = False,
) -> None:
    settings.url = url
    settings.api_key = api_key


def _add_platform(app: typer.Typer, noun: str) -> None:
    known = set()
    for entry in entry_points(group="lepton.commands"):
        try:
            entry.load()(app)
        except Exception as error:  # a broken platform must not take the client's commands along
            if noun in PLATFORM:
                raise Usage(
                    f"the platform's command {noun!r} cannot be loaded: {type(error).__name__}: {error}", "install lepton-platform again"
                ) from error
            continue
        known |= {command.name or (command.callback.__name__ if command.callback else "") for command in app.registered_commands}
    if noun in PLATFORM and noun not in known and noun not in {group.name for group in app.registered_groups}:
        raise Usage(
            f"'lepton {noun}' is part of the platform, which is not installed here", "install lepton-platform: pip install lepton-platform"
        )


def _noun(words: list[str]) -> str:
    """The first word that is no option; "" where there is none."""
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in ("--url", "--api-key"):
            skip = True
        elif not word.startswith("-"):
            return word
    return ""


def _globals_first(words: list[str]) -> list[str]:
    """`--url` and `--api-key` count wherever they stand, but for the platform's own commands."""
    if _noun(words) not in (*NOUNS, "trace"):
        return words
    front: list[str] = []
    rest: list[str] = []
    given = iter(words)
    for word in given:
        if word == "--":
            return [*front, *rest, word, *given]
        if word in ("--url", "--api-key"):
            front += [word, *([value] if (value := next(given, None)) is not None else [])]
        elif word.startswith(("--url=", "--api-key=")):
            front.append(word)
        else:
            rest.append(word)
    return front + rest
