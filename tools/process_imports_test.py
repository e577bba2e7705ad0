"""What a process imports is in the lock that its image installs, counting imports inside functions too."""

import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import packages_distributions

import grimp
import pytest

from tools.lock_files import normalised, pins

# Entry points by the groups that their image installs. Those that do not exist yet are passed over.
CONTROL = ["accounts", "compute", "training", "deployment", "marketplace"]
PROCESSES = [
    ("gateway", "services.gateway.main"),
    *[("control", f"services.{name}.main") for name in CONTROL],
    ("control", "services.standalone.dead_letters"),
    ("data", "services.data.main"),
    ("data", "services.data.engine.__main__"),
    ("worker", "services.standalone.node"),
    ("serving", "services.deployment.replica.__main__"),
    ("ml", "services.training.engine.__main__"),
    ("standalone client", "services.standalone.cli"),
    ("standalone", "services.standalone.__main__"),
    ("standalone", "services.standalone.worker"),
]
# Imported where it is there: a replica of a model that could not be exported installs `ml` beside `serving`; the demo takes its
# data from scikit-learn, which a developer has.
OPTIONAL = {"serving": {"torch"}, "standalone client": {"sklearn"}}


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


@cache
def distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def missing(modules: Iterable[str], groups: str) -> set[str]:
    locked = {name for group in groups.split() for name in pins(group)}
    passed_over = {"libs", "services", "lepton", "leptonai", *sys.stdlib_module_names, *OPTIONAL.get(groups, ())}
    names = {module for module in modules if module.partition(".")[0] not in passed_over}
    return {name for name in names if not {normalised(dist) for dist in distributions().get(name, [name])} & locked}


@pytest.mark.parametrize(("groups", "entry"), PROCESSES)
def test_a_process_finds_what_it_imports_in_its_lock(groups: str, entry: str) -> None:
    if entry not in graph().modules:
        pytest.skip(f"no {entry} in this tree")
    assert missing(loaded(entry), groups) == set(), (
        f"add it to the group `{groups}` of pyproject.toml and run `make lock`, or do not import it"
    )
