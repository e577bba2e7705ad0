"""Whether a job can be run at all, said before anything is stored: everything that is wrong, at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.errors import Violation
from libs.modelkit.fit import check_data, default_features
from libs.modelkit.spec import LEARNING_RATES, check_model, check_training, complete_params

DEFAULT_MEMORY_BYTES = 2 << 30
DEFAULT_TIME_LIMIT_SECONDS = 86_400
LEAST_TIME_LIMIT_SECONDS = 600
RANDOM = "random"
MAX_WORKERS = 64


@dataclass(frozen=True)
class DataFacts:
    """What a dataset version is made of: columns {"name", "type", "nullable"}; profile as `check_data` takes it."""

    columns: Sequence[Mapping[str, Any]]
    profile: Mapping[str, Any] | None


@dataclass(frozen=True)
class InitFacts:
    """What a model version to start from is."""

    name: str
    task: str
    architecture: str
    params: Mapping[str, Any]
    inputs: Sequence[str]


@dataclass(frozen=True)
class NodeFacts:
    """What a node has when it is empty; `devices` counts them by accelerator. Those of one `group` may hold workers together."""

    cpu_millis: int
    memory_bytes: int
    devices: Mapping[str, int]
    group: str = ""

    def workers(self, resources: Mapping[str, Any]) -> int:
        """For how many with these resources it has room."""
        kind = resources["accelerator"]
        devices = MAX_WORKERS if kind == "cpu" else self.devices.get(kind, 0) // resources["count"]
        return min(devices, self.cpu_millis // resources["cpu_millis"], self.memory_bytes // resources["memory_bytes"])


def check(spec: Mapping[str, Any], data: DataFacts | None, init: InitFacts | None, nodes: Sequence[NodeFacts]) -> list[Violation]:
    """`spec` has task, target, features, model, training and resources; `data` None: it was not found, which somebody else says."""
    model = spec["model"]
    errors = check_model(spec["task"], model["architecture"], model["params"]) + check_training(spec["training"])
    if data:
        errors += check_data(spec["task"], spec["target"], spec["features"], data.columns, data.profile)
    if init and not errors:
        errors += _check_init(spec, init, data)
    resources = complete_resources(spec["resources"])
    if not errors and (spec["training"].get("workers") or 1) > 1:
        errors += _check_workers(complete_training(spec["training"]), resources, data)
    wrong = _check_resources(resources, nodes)
    return errors + (wrong or ([] if errors else _check_room(spec["training"].get("workers") or 1, resources, nodes)))


def complete(spec: Mapping[str, Any], data: DataFacts, init: InitFacts | None) -> dict[str, Any]:
    """The spec with every default in its place. It must have passed `check`."""
    model, task = spec["model"], spec["task"]
    target = spec["target"] or ("label" if task == "image_classification" else "")
    params = model["params"] or (init.params if init else {})
    return {
        "task": task,
        "target": target,
        "features": default_features(task, target, spec["features"], data.columns),
        "model": {
            "architecture": model["architecture"],
            "params": complete_params(model["architecture"], params),
            "init": init.name if init else RANDOM,
        },
        "training": complete_training(spec["training"]),
        "resources": complete_resources(spec["resources"]),
    }


def complete_training(given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of the loop."""
    optimizer = given.get("optimizer") or "adamw"
    stopping = given.get("early_stopping")
    defaults = {
        "epochs": 20,
        "batch_size": 32,
        "learning_rate": LEARNING_RATES[optimizer],
        "optimizer": optimizer,
        "seed": 0,
        "weight_decay": 0.01 if optimizer == "adamw" else 0.0,
        "validation_fraction": 0.1 if stopping else 0.0,
        "test_fraction": 0.2,
        "double_precision": False,
        "time_limit_seconds": DEFAULT_TIME_LIMIT_SECONDS,
        "workers": 1,
    }
    return {**defaults, **{name: value for name, value in given.items() if value is not None}}


def complete_resources(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of compute."""
    count = given.get("count") or 1
    return {
        "accelerator": given.get("accelerator") or "cpu",
        "count": count,
        "memory_bytes": given.get("memory_bytes") or DEFAULT_MEMORY_BYTES,
        "cpu_millis": given.get("cpu_millis") or 1000 * count,
    }


def used_metric(resources: Mapping[str, Any], workers: int) -> tuple[str, float]:
    """Which quota a second of the job uses, and how much of it: ("cpu_seconds", cores) or ("gpu_seconds", devices), of all workers."""
    if resources["accelerator"] == "cpu":
        return "cpu_seconds", workers * resources["cpu_millis"] / 1000
    return f"{resources['accelerator']}_seconds", float(workers * resources["count"])


def default_time_limit(left: int | None, a_second: float) -> int:
    """Seconds, where none were asked for: a day, but no more than a quarter of what is `left` of the quota, or else ten minutes."""
    if left is None or not a_second:
        return DEFAULT_TIME_LIMIT_SECONDS
    return min(DEFAULT_TIME_LIMIT_SECONDS, max(LEAST_TIME_LIMIT_SECONDS, int(left / a_second / 4)))


def _check_init(spec: Mapping[str, Any], init: InitFacts, data: DataFacts | None) -> list[Violation]:
    model = spec["model"]
    at = "model.init"
    if (init.architecture, init.task) != (model["architecture"], spec["task"]):
        return [Violation(at, f"{init.name} is a {init.architecture} for {init.task}; weights can only start a model of the same kind")]
    wanted, given = complete_params(init.architecture, model["params"] or init.params), complete_params(init.architecture, init.params)
    errors = []
    for name, value in wanted.items():
        if value != given[name]:
            message = f"{init.name} has {name} {given[name]}, and this asks for {value}; leave params out to take those of {init.name}"
            errors.append(Violation(f"model.params.{name}", message, (str(given[name]),)))
    if data and not errors:
        features = default_features(spec["task"], spec["target"], spec["features"], data.columns)
        if spec["task"] != "image_classification" and set(features) != set(init.inputs):
            message = f"{init.name} reads the columns {_listed(init.inputs)}, and this job has {_listed(features)}; they must be the same"
            errors.append(Violation("features", message, tuple(init.inputs)[:10]))
    return errors


def _check_resources(resources: Mapping[str, Any], nodes: Sequence[NodeFacts]) -> list[Violation]:
    if not nodes:
        return []
    kind, count = resources["accelerator"], resources["count"]
    errors = []
    if kind != "cpu" and (most := max(node.devices.get(kind, 0) for node in nodes)) < count:
        has = f"the largest node has {most}" if most else "no node has any"
        errors.append(
            Violation(
                "resources.count" if most else "resources.accelerator", f"{count} {kind} cannot be had: {has}", () if most else ("cpu",)
            )
        )
    if resources["cpu_millis"] > (most := max(node.cpu_millis for node in nodes)):
        cores = resources["cpu_millis"] / 1000
        at = "resources.count" if kind == "cpu" else "resources.cpu_millis"
        errors.append(Violation(at, f"{cores:g} cores cannot be had: the largest node has {most / 1000:g}", (str(most // 1000),)))
    if resources["memory_bytes"] > (most := max(node.memory_bytes for node in nodes)):
        message = f"{resources['memory_bytes']} bytes of memory cannot be had: the largest node has {most}"
        errors.append(Violation("resources.memory_bytes", message, (str(most),)))
    return errors


def _check_workers(training: Mapping[str, Any], resources: Mapping[str, Any], data: DataFacts | None) -> list[Violation]:
    """Whether several workers can share this work."""
    workers, batch = training["workers"], training["batch_size"]
    errors = []
    if training["optimizer"] == "lbfgs":
        message = "lbfgs takes all rows in one step, which several workers cannot share; use adamw, or one worker"
        errors.append(Violation("training.optimizer", message, ("adamw",)))
    elif batch < workers:
        message = f"{workers} workers cannot share batches of {batch} rows; use {batch} workers at most, or a larger batch_size"
        errors.append(Violation("training.workers", message, (str(batch),)))
    if data and data.profile and (rows := data.profile["rows"]) < workers:
        errors.append(Violation("training.workers", f"{workers} workers cannot share {rows} rows: each needs one", (str(max(1, rows)),)))
    if resources["accelerator"] != "cpu" and resources["count"] > 1:
        message = f"a worker trains on one {resources['accelerator']}; for {resources['count']} of each use as many times the workers"
        errors.append(Violation("resources.count", message, ("1",)))
    return errors


def _check_room(workers: int, resources: Mapping[str, Any], nodes: Sequence[NodeFacts]) -> list[Violation]:
    """Whether the nodes have room for all at once: one node, or as many on each of several of a group."""
    groups: dict[str, list[int]] = {}
    for number, node in enumerate(nodes):
        groups.setdefault(node.group or f"/{number}", []).append(node.workers(resources))
    possible = [
        count
        for count in range(1, MAX_WORKERS + 1)
        for each in range(1, count + 1)
        if count % each == 0 and any(sum(room >= each for room in rooms) >= count // each for rooms in groups.values())
    ]
    if not nodes or workers in possible:
        return []
    most = max((count for count in possible if count < workers), default=1)
    message = f"{workers} workers cannot be had at once: the machines that may work together have room for {most} with these resources"
    return [Violation("training.workers", message, (str(most),))]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(list(names)[:10]) + (", …" if len(names) > 10 else "")
