import re
import tomllib

import pytest

from tools.lock_files import GROUPS, REQUIREMENTS, ROOT, declared, normalised, pins

LOCKS = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def test_every_group_has_a_lock_and_no_lock_lacks_a_group() -> None:
    assert set(LOCKS) == {*GROUPS, "uv"}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_carries_no_address(lock: str) -> None:
    lines = (REQUIREMENTS / f"{lock}.txt").read_text().splitlines()
    assert [line for line in lines if re.search(r"://|--(extra-)?index|--find-links|--trusted| @ ", line)] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_is_hashed(lock: str) -> None:
    text = (REQUIREMENTS / f"{lock}.txt").read_text()
    blocks = [block for block in re.split(r"\n(?=[A-Za-z0-9])", text) if "==" in block.split("\n")[0]]
    assert len(blocks) >= len(pins(lock)) > 0
    assert [block.split("\n")[0] for block in blocks if "--hash=sha256:" not in block] == []


@pytest.mark.parametrize("group", GROUPS)
def test_locks_agree(group: str) -> None:
    everything = pins("dev")
    assert {name: versions for name, versions in pins(group).items() if not versions <= everything.get(name, set())} == {}


@pytest.mark.parametrize("group", GROUPS)
def test_a_lock_holds_what_its_group_declares(group: str) -> None:
    assert declared(group) - set(pins(group)) == set(), "run `make lock`"


@pytest.mark.parametrize("group", ["gateway", "control", "serving", "standalone", "client"])
def test_only_training_and_torch_replicas_install_torch(group: str) -> None:
    assert not {"torch", "triton"} & set(pins(group))


def test_the_client_asks_for_what_its_group_locks() -> None:
    project = ROOT / "libs" / "sdk" / "python" / "pyproject.toml"
    if not project.is_file():
        pytest.skip("no client in this tree")
    wanted = {normalised(requirement) for requirement in tomllib.loads(project.read_text())["project"].get("dependencies", [])}
    assert wanted <= declared("client"), "the client's dependencies belong into the group `client` too"


def test_uv_is_the_one_that_the_scripts_bring() -> None:
    version = re.search(r"^UV_VERSION=(\S+)", (ROOT / "tools" / "uv.sh").read_text(), re.MULTILINE)
    assert version
    assert pins("uv")["uv"] == {version.group(1)}
