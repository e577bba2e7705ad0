"""Dashboards and alerts: what a real Prometheus can run, over metrics and labels that the code really has, written down in the docs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from libs.telemetry.metrics import Declared
from tests.backends import COMPOSE, until
from tests.collector import OBSERVABILITY
from tests.integration.telemetry.conftest import Prometheus

DASHBOARDS = sorted((OBSERVABILITY / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((OBSERVABILITY / "prometheus" / "rules").glob("*.yml"))
DOCUMENT = Path(__file__).parents[3] / "docs" / "observability.md"
# What the client library and Prometheus itself add.
FOREIGN = {
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "up",
}
ADDED_LABELS = {"instance", "job", "le", "process"}
# Of these there are as many as there are workspaces, people and things.
NEVER_LABELS = ("id", "workspace", "tenant", "member", "key", "path", "trace", "endpoint", "model", "dataset", "user")


def expressions() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every panel and every alert."""
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield f"{file.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", "5m")
    for file in RULES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                yield f"{file.stem}: {rule['alert']}", rule["expr"]


def names_in(expression: str) -> set[str]:
    """Metrics that it reads: identifiers that are no function, word or label."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|on|without)\s*\([^)]*\)', " ", expression)
    words = {"and", "or", "unless", "by", "on", "bool"}
    return {name for name in re.findall(r"\b[a-z][a-z0-9_]*\b(?!\s*\()", bare) if name not in words}


def labels_in(expression: str) -> set[str]:
    chosen = {name for inside in re.findall(r"\{([^}]*)\}", expression) for name in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside)}
    grouped = {name for inside in re.findall(r"\bby\s*\(([^)]*)\)", expression) for name in re.findall(r"\w+", inside)}
    return chosen | grouped


def declared_as(name: str, declared: dict[str, Declared]) -> Declared | None:
    """What a time series is of: a histogram has three kinds of them."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    found = declared.get(name) or declared.get(base)
    return found if found is None or found.name == name or found.kind == "histogram" else None


def test_a_name_is_found_in_an_expression() -> None:
    assert names_in('sum by (le) (rate(a_total{b="c"}[5m])) / a and vector(0) > 3') == {"a_total", "a"}
    assert labels_in('sum by (le, x) (rate(a_total{b="c", d=~"e"}[5m]))') == {"le", "x", "b", "d"}


def test_there_is_something_to_look_at() -> None:
    assert DASHBOARDS and RULES
    assert len(list(expressions())) > 40


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_panels_have_their_own_places(file: Path) -> None:
    panels: list[dict[str, Any]] = json.loads(file.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
            assert taken.setdefault(cell, panel["title"]) == panel["title"]
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] in datasources(), panel["title"]


def datasources() -> set[str]:
    files = (OBSERVABILITY / "grafana" / "datasources").glob("*.yaml")
    return {source["uid"] for file in files for source in yaml.safe_load(file.read_text())["datasources"]}


@pytest.mark.parametrize(("where", "expression"), list(expressions()), ids=lambda value: value if ": " in value[:60] else "")
def test_expressions_read_what_the_code_declares(where: str, expression: str, declared: dict[str, Declared]) -> None:
    names = names_in(expression)
    assert names, f"{where}: no metric in {expression}"
    known = [declared_as(name, declared) for name in names - FOREIGN]
    assert None not in known, f"{where}: {sorted(names - FOREIGN)} are not all declared"
    allowed = {label for each in known if each for label in each.labels} | ADDED_LABELS
    assert labels_in(expression) <= allowed, f"{where}: {labels_in(expression) - allowed} are labels of none of {names}"


def test_expressions_are_valid(prometheus: Prometheus) -> None:
    for where, expression in expressions():
        try:
            prometheus.query(expression)
        except OSError as error:
            raise AssertionError(f"{where}: {expression}: {error}") from error


def test_an_expression_that_is_not_valid_is_noticed(prometheus: Prometheus) -> None:
    with pytest.raises(OSError, match="400"):
        prometheus.query("sum(rate(x)")


def test_prometheus_takes_its_configuration_and_its_rules(prometheus: Prometheus) -> None:
    code, output = prometheus.promtool("check", "config", "/etc/prometheus/prometheus.yml")
    assert code == 0, output
    assert "9 rules found" in output


def test_alerts_say_what_is_wrong_and_are_silent_else(prometheus: Prometheus) -> None:
    code, output = prometheus.promtool("test", "rules", "/tests/alerts.yml")
    assert code == 0, output


@pytest.mark.slow
def test_each_replica_of_a_name_is_read(prometheus: Prometheus) -> None:
    until(lambda: len(prometheus.query('up{job="lepton", process="worker"} == 1')) == 2, "both replicas")
    assert {each["metric"]["process"] for each in prometheus.query("process_start_time_seconds")} == {"worker"}


def test_every_process_of_the_platform_is_read() -> None:
    (scrape,) = yaml.safe_load((OBSERVABILITY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (found,) = scrape["dns_sd_configs"]
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    ours = {name for name, service in services.items() if "LEPTON_PLATFORM_METRICS_LISTEN" in service.get("environment", {})}
    assert ours == set(found["names"])
    assert {service["environment"]["LEPTON_PLATFORM_METRICS_LISTEN"] for name, service in services.items() if name in ours} == {
        f"0.0.0.0:{found['port']}"
    }


def test_names_follow_the_rules(declared: dict[str, Declared]) -> None:
    for metric in declared.values():
        assert re.fullmatch(r"lepton_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.kind != "histogram" or metric.name.endswith("_seconds"), metric.name
        assert not set(metric.labels) & {*NEVER_LABELS, *ADDED_LABELS}, metric.name
        assert metric.description.endswith("."), metric.name


def test_the_document_lists_what_the_code_declares(declared: dict[str, Declared]) -> None:
    rows = re.findall(r"^\| `(lepton_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", DOCUMENT.read_text(), re.M)
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels)), words) for name, kind, labels, words in rows}
    assert documented == {each.name: (each.kind, each.labels, each.description) for each in declared.values()}
