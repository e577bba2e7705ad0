"""What a process imports is in the lock that its image installs, counting imports inside functions too."""

import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions

import grimp
import pytest

from tools.lock_files import normalised, pins

# Entry points by the group that their image installs. Those that do not exist yet are passed over.
ENTRY_POINTS = {
    "gateway": ["services.gateway.main"],
    "control": [f"services.{name}.main" for name in ("accounts", "data", "compute", "training", "deployment", "marketplace")],
    "ml": ["services.training.engine.__main__"],
    "standalone": ["services.standalone.main"],
}


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("libs", "services", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None)


def loaded(entry: str) -> set[str]:
    """Every module that importing `entry` can lead to; importing a module runs its parents first."""
    seen: set[str] = set()
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        if module in seen or module not in graph().modules:
            continue
        seen.add(module)
        waiting.extend(graph().find_modules_directly_imported_by(module))
        if "." in module:
            waiting.append(module.rpartition(".")[0])
    return seen


def missing(modules: Iterable[str], group: str) -> set[str]:
    locked = set(pins(group))
    ours = {"libs", "services", "lepton", *sys.stdlib_module_names}
    names = {module for module in modules if module.partition(".")[0] not in ours}
    return {name for name in names if not {normalised(dist) for dist in packages_distributions().get(name, [name])} & locked}


@pytest.mark.parametrize(("group", "entry"), [(group, entry) for group, entries in ENTRY_POINTS.items() for entry in entries])
def test_a_process_finds_what_it_imports_in_its_lock(group: str, entry: str) -> None:
    if entry not in graph().modules:
        pytest.skip(f"no {entry} in this tree")
    assert missing(loaded(entry), group) == set(), f"add it to the group `{group}` of pyproject.toml and run `make lock`, or do not import it"
