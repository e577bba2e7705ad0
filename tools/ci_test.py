"""Continuous integration leaves no test out."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_lanes_of_ci_are_all_tests_there_are() -> None:
    run = (ROOT / ".ci" / "run").read_text()
    lanes = [found[1].split() for found in re.finditer(r'^(?:COMPUTE|SERVERS|CLUSTER)="([^"]*)"$', run, re.MULTILINE)]
    assert len(lanes) == 3
    told = [path for lane in lanes for path in lane]
    assert len(told) == len(set(told))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    everywhere = [ROOT / path for path in settings["tool"]["pytest"]["ini_options"]["testpaths"]]
    tests = {path for folder in everywhere for path in folder.rglob("*_test.py")}
    missed = {path for path in tests if not any(path.is_relative_to(ROOT / lane) for lane in told)}
    assert not missed
