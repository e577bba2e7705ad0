"""What a run is asked to do: spec.json with its defaults filled in, checked again because a run may be started by hand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.errors import Invalid, Violation
from libs.modelkit.spec import LEARNING_RATES, check_model, check_training, complete_params


@dataclass(frozen=True)
class Training:
    """Settings of the loop, complete."""

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    seed: int
    patience: int  # 0: no early stopping
    min_delta: float
    validation_fraction: float
    test_fraction: float
    double_precision: bool
    time_limit_seconds: int

    @property
    def dtype(self) -> str:
        return "float64" if self.double_precision else "float32"


@dataclass(frozen=True)
class RunSpec:
    """One run. `splits` are Parquet files by name; `init` is a package folder, a .safetensors file, or None."""

    task: str
    target: str
    features: tuple[str, ...]
    architecture: str
    params: Mapping[str, Any]
    training: Training
    kind: str
    splits: Mapping[str, Path]
    init: Path | None
    resume: Path | None
    threads: int
    device: str
    traceparent: str

    @property
    def classify(self) -> bool:
        return self.task != "regression"


def read_spec(path: Path) -> RunSpec:
    """Raises `Invalid` ("invalid_spec") with everything that is wrong."""
    try:
        data = json.loads(path.read_bytes())
        model, training, source = data["model"], data.get("training") or {}, data["data"]
        errors = check_model(data["task"], model["architecture"], model.get("params")) + check_training(training)
        if errors:
            raise Invalid.of(errors, code="invalid_spec")
        return RunSpec(
            task=data["task"],
            target=data.get("target") or "label",
            features=tuple(data.get("features") or ()),
            architecture=model["architecture"],
            params=complete_params(model["architecture"], model.get("params")),
            training=_read_training(training),
            kind=source.get("kind", "table"),
            splits={name: path.parent / file for name, file in source["splits"].items()},
            init=_path(path.parent, data.get("init_weights")),
            resume=_path(path.parent, data.get("resume")),
            threads=int(data.get("threads") or 1),
            device=data.get("device") or "cpu",
            traceparent=data.get("traceparent") or "",
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path.name} cannot be read: {type(error).__name__} {error}"
        raise Invalid.of([Violation("spec", message)], code="invalid_spec") from error


def _read_training(data: Mapping[str, Any]) -> Training:
    def get(name: str, default: Any) -> Any:
        return default if data.get(name) is None else data[name]

    optimizer = get("optimizer", "adamw")
    stopping = data.get("early_stopping") or {}
    return Training(
        epochs=int(get("epochs", 20)),
        batch_size=int(get("batch_size", 32)),
        optimizer=optimizer,
        learning_rate=float(get("learning_rate", LEARNING_RATES[optimizer])),
        weight_decay=float(get("weight_decay", 0.01 if optimizer == "adamw" else 0.0)),
        seed=int(get("seed", 0)),
        patience=int(stopping.get("patience", 0)),
        min_delta=float(stopping.get("min_delta") or 0.0),
        validation_fraction=float(get("validation_fraction", 0.1 if stopping else 0.0)),
        test_fraction=float(get("test_fraction", 0.2)),
        double_precision=bool(get("double_precision", False)),
        time_limit_seconds=int(get("time_limit_seconds", 86_400)),
    )


def _path(base: Path, value: str | None) -> Path | None:
    return base / value if value else None
