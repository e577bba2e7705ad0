"""What README.md tells a newcomer to type works as it stands."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from services.standalone.demo import data
from tests.platform import running

README = Path(__file__).parents[2] / "README.md"


def block(after: str, language: str) -> str:
    """The first code block of a language after a line of the README."""
    found = re.search(rf"^{re.escape(after)}.*?^```{language}\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert found, f"README.md has no {language} block after {after!r}"
    return found[1]


def table() -> str:
    """The demonstration's table with its gaps and repeats, its diagnoses spelt in one way."""
    header, *rows = csv.reader(io.StringIO(data.dirty_table().decode()))
    text = io.StringIO()
    clean = [[*row[:-1], row[-1].strip()[0].upper()] for row in rows if row[-1]]
    csv.writer(text).writerows([[*header[:-1], header[-1].lower()], *clean])
    return text.getvalue()


def test_the_commands_of_the_shell(tmp_path: Path) -> None:
    commands = block("From the shell:", "bash")
    assert len(commands.splitlines()) >= 5
    (tmp_path / "wdbc.csv").write_text(table())
    (tmp_path / "records.json").write_text(json.dumps([data.a_row(3)[0], data.a_row(30)[0]]))
    with running(tmp_path / "home", key="your_api_key") as platform:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LEPTON_")}
        environment |= {"LEPTON_URL": platform.url, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        script = ["bash", "-euxo", "pipefail", "-c", commands]
        done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        with platform.client() as client:
            assert client.models.version("wdbc").metrics["accuracy"] >= 0.94
        platform.down()


def test_the_program_is_the_example() -> None:
    def code(text: str) -> list[str]:
        return [line.split("  #")[0].rstrip() for line in text.splitlines() if line and not line.startswith(('"""', "#"))]

    program = code(block("In Python", "python"))
    example = code((README.parent / "examples" / "quickstart.py").read_text())
    # The last line prints, each in its way.
    assert program[:-1] == example[: len(program) - 1]
