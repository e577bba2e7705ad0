"""What docs/serving.md tells to type works as it stands, from top to bottom."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from libs.modelkit import guest
from tests.platform import Platform

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.mark.skipif(bool(guest.lacking()), reason="the page has a model of one's own, which this kernel's sandbox refuses")
def test_the_page(embedded_platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in embedded_platform.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LEPTON_GRPC", embedded_platform.grpc)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 9
    for language, code in blocks:
        if language == "python":
            exec(compile(code, PAGE.name, "exec"), scope)
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
            )
            assert done.returncode == 0, code + done.stdout + done.stderr
    scope["client"].close()
