"""`python -m services.standalone HOME …`: the platform's own process, which `lepton up` becomes or, with --detach, starts."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from services.standalone.home import Home, HomeError
from services.standalone.words import greeting, refusal

WRONG_INPUT = 2


def main() -> int:
    """Serves until it is told to end; exit code 2 when the home or the address cannot be used."""
    parser = argparse.ArgumentParser(prog="services.standalone")
    parser.add_argument("home")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--grpc-port", type=int, default=8081)
    parser.add_argument("--log-level", default="info")
    # One line of JSON says on this descriptor how the start went; without it words for people go to stdout and stderr.
    parser.add_argument("--ready-fd", type=int)
    options = parser.parse_args()
    home = Home(Path(options.home))
    key = os.environ.pop("LEPTON_API_KEY", "")
    said = _to_pipe(options.ready_fd) if options.ready_fd is not None else _to_people(home, bool(key))
    try:
        _log_to(home)
        # Imported when the words can be said: it takes a second.
        from services.standalone.platform import Up, serve

        serve(home, Up(options.host, options.port, options.grpc_port, key, options.log_level), said)
    except HomeError as error:
        said({"wrong": error.wrong, "right": error.right})
        return WRONG_INPUT
    return 0


def _log_to(home: Home) -> None:
    """From now on this process's stderr, and so its log, is a file of the home."""
    try:
        home.logs.mkdir(parents=True, exist_ok=True)
        with (home.logs / "platform.log").open("ab") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())
    except OSError as error:
        raise HomeError(
            f"{home.path} cannot be used: {error.strerror or error}", "set LEPTON_HOME to a folder that you may write to"
        ) from error


def _to_pipe(descriptor: int) -> Callable[[dict[str, str]], None]:
    def say(words: dict[str, str]) -> None:
        with os.fdopen(descriptor, "w") as pipe:
            pipe.write(json.dumps(words) + "\n")

    return say


def _to_people(home: Home, key_given: bool) -> Callable[[dict[str, str]], None]:
    started = time.monotonic()
    out, err = os.dup(sys.stdout.fileno()), os.dup(sys.stderr.fileno())

    def say(words: dict[str, str]) -> None:
        if "wrong" in words:
            os.write(err, refusal(words["wrong"], words["right"]).encode())
            return
        seconds = time.monotonic() - started
        os.write(out, greeting(home.path, words, seconds, key_given=key_given, stop="Ctrl-C").encode())

    return say


if __name__ == "__main__":
    sys.exit(main())
