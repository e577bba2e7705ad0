"""What can be trained on what: the params of each architecture, and whether task, data and settings fit together.

Pure: standard library and libs.errors. Says everything that is wrong at once, with the path of each field.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.errors import Violation, near

TASKS = ("regression", "classification", "image_classification", "text_classification", "text_generation")
OPTIMIZERS = ("sgd", "adam", "adamw", "lbfgs")
LEARNING_RATES = {"sgd": 0.05, "adam": 0.001, "adamw": 0.001, "lbfgs": 1.0}


@dataclass(frozen=True)
class Param:
    """One param of an architecture: `kind` is "int", "float", "choice" or "ints" (a list of int); bounds are inclusive."""

    kind: str
    default: Any
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()
    longest: int = 0

    def wants(self) -> str:
        """The accepted values, in words."""
        if self.kind == "choice":
            return "one of " + ", ".join(f'"{choice}"' for choice in self.choices)
        bounds = f"from {self.low:g} to {self.high:g}"
        if self.kind == "ints":
            return f"a list of up to {self.longest} whole numbers {bounds}"
        return f"a {'whole ' if self.kind == 'int' else ''}number {bounds}"

    def read(self, value: Any) -> Any:
        """The value in its own type (64.0 is 64); raises ValueError where it is none of the accepted ones."""
        if self.kind == "choice" and isinstance(value, str) and value in self.choices:
            return value
        if self.kind == "ints" and isinstance(value, list | tuple) and len(value) <= self.longest:
            return [self._number(item, whole=True) for item in value]
        if self.kind in ("int", "float"):
            return self._number(value, whole=self.kind == "int")
        raise ValueError

    def _number(self, value: Any, whole: bool) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError
        if (whole and value != int(value)) or not self.low <= value <= self.high:
            raise ValueError
        return int(value) if whole else float(value)


@dataclass(frozen=True)
class Architecture:
    """An architecture's params, the tasks it fits, and what kind of data it reads, in words."""

    params: Mapping[str, Param]
    tasks: tuple[str, ...]
    reads: str


_TABLE = ("regression", "classification")
_DROPOUT = Param("float", 0.0, 0, 0.9)
_VOCABULARY = Param("int", 10_000, 2, 200_000)

ARCHITECTURES: Mapping[str, Architecture] = {
    "linear": Architecture({"tolerance": Param("float", 0.0, 0, 0.1)}, _TABLE, "the columns of a table"),
    "mlp": Architecture(
        {
            "hidden": Param("ints", [64, 64], 1, 8192, longest=16),
            "dropout": _DROPOUT,
            "activation": Param("choice", "relu", choices=("relu", "gelu", "tanh", "silu")),
        },
        _TABLE,
        "the columns of a table",
    ),
    "cnn": Architecture(
        {
            "channels": Param("ints", [32, 64], 1, 1024, longest=8),
            "dropout": Param("float", 0.2, 0, 0.9),
            "image_size": Param("int", 0, 0, 512),
        },
        ("image_classification",),
        "pictures",
    ),
    "rnn": Architecture(
        {
            "cell": Param("choice", "lstm", choices=("lstm", "gru")),
            "hidden": Param("int", 64, 1, 4096),
            "layers": Param("int", 1, 1, 8),
            "embedding": Param("int", 64, 1, 4096),
            "dropout": _DROPOUT,
            "max_length": Param("int", 128, 1, 4096),
            "vocabulary": _VOCABULARY,
        },
        (*_TABLE, "text_classification"),
        "texts, or the columns of a table in their order",
    ),
    "transformer": Architecture(
        {
            "width": Param("int", 64, 1, 4096),
            "heads": Param("int", 4, 1, 64),
            "layers": Param("int", 2, 1, 24),
            "dropout": Param("float", 0.1, 0, 0.9),
            "max_length": Param("int", 128, 1, 4096),
            "vocabulary": _VOCABULARY,
        },
        (*_TABLE, "text_classification", "text_generation"),
        "texts, or the columns of a table in their order",
    ),
}

_SUITED = {
    "regression": ("mlp", "linear", "rnn", "transformer"),
    "classification": ("mlp", "linear", "rnn", "transformer"),
    "image_classification": ("cnn",),
    "text_classification": ("transformer", "rnn"),
    "text_generation": ("transformer",),
}

_TRAINING = {
    "epochs": Param("int", 20, 1, 100_000),
    "batch_size": Param("int", 32, 1, 1 << 20),
    "seed": Param("int", 0, 0, 2**64 - 1),
    "validation_fraction": Param("float", None, 0, 0.5),
    "test_fraction": Param("float", 0.2, 0, 0.5),
    "weight_decay": Param("float", None, 0, 1),
    "time_limit_seconds": Param("int", 86_400, 1, 2_592_000),
    "workers": Param("int", 1, 1, 64),
}


def check_model(task: str, architecture: str, params: Mapping[str, Any] | None = None, at: str = "model") -> list[Violation]:
    """Whether `architecture` with `params` exists and fits `task`. Returns every violation, none when all is well.

    `at` is the path put before the fields, as in "model.params.hidden".
    """
    if task not in TASKS:
        return [_unknown("task", "task", task, TASKS)]
    known = ARCHITECTURES.get(architecture)
    if known is None:
        return [_unknown(f"{at}.architecture", "architecture", architecture, tuple(ARCHITECTURES))]
    errors = _check_params(architecture, known, params or {}, f"{at}.params")
    if task not in known.tasks:
        message = f"{architecture} reads {known.reads}, which does not fit {task}; {_either(_SUITED[task])} does"
        errors.insert(0, Violation(f"{at}.architecture", message, _SUITED[task]))
    if task == "text_generation" and (params or {}).get("vocabulary") not in (None, _VOCABULARY.default):
        errors.append(Violation(f"{at}.params.vocabulary", "text_generation reads and writes bytes, and has no vocabulary; leave it out"))
    return errors


def complete_params(architecture: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All params of the architecture, defaults filled in and numbers in their own types. `params` must have passed `check_model`."""
    given = params or {}
    return {
        name: param.read(given[name]) if given.get(name) is not None else param.default
        for name, param in ARCHITECTURES[architecture].params.items()
    }


def check_training(training: Mapping[str, Any], at: str = "training") -> list[Violation]:
    """Whether the settings of a training run are known and within bounds. Returns every violation."""
    errors = []
    for name, value in training.items():
        if value is None:
            continue
        if name in _TRAINING:
            errors += _check_value(_TRAINING[name], value, f"{at}.{name}")
        elif name == "learning_rate":
            errors += check_learning_rate(value, f"{at}.{name}")
        elif name == "optimizer":
            errors += [] if value in OPTIMIZERS else [_unknown(f"{at}.{name}", "optimizer", value, OPTIMIZERS)]
        elif name == "double_precision":
            errors += [] if isinstance(value, bool) else [Violation(f"{at}.{name}", f"{_show(value)} is not true or false")]
        elif name == "early_stopping":
            errors += _check_early_stopping(value, f"{at}.{name}")
        else:
            options = (*_TRAINING, "learning_rate", "optimizer", "double_precision", "early_stopping")
            errors.append(_unknown(f"{at}.{name}", "training setting", name, options))
    return errors


def check_learning_rate(value: Any, at: str = "training.learning_rate") -> list[Violation]:
    """A learning rate is a number above 0, at most 10."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 10
    advice = "use a number above 0, at most 10; 0.001 is a good start (0.05 with sgd, 1 with lbfgs)"
    return [] if good else [Violation(at, f"{_show(value)} is not a learning rate: {advice}", ("0.001",))]


def _check_early_stopping(value: Any, at: str) -> list[Violation]:
    if not isinstance(value, Mapping):
        return [Violation(at, f'{_show(value)} is not an object such as {{"patience": 5}}')]
    errors = _check_value(Param("int", None, 1, 10_000), value.get("patience"), f"{at}.patience")
    if value.get("min_delta") is not None:
        errors += _check_value(Param("float", 0.0, 0, 1e300), value["min_delta"], f"{at}.min_delta")
    return errors


def _check_params(architecture: str, known: Architecture, params: Mapping[str, Any], at: str) -> list[Violation]:
    errors = []
    for name, value in params.items():
        if name not in known.params:
            errors.append(_unknown(f"{at}.{name}", f"param of {architecture}", name, tuple(known.params)))
        elif value is not None:
            errors += _check_value(known.params[name], value, f"{at}.{name}")
    if architecture == "transformer" and not errors:
        full = complete_params(architecture, params)
        if full["width"] % full["heads"]:
            width = -(-full["width"] // full["heads"]) * full["heads"]
            message = f"a width of {full['width']} cannot be shared by {full['heads']} heads; it must be a multiple, such as {width}"
            errors.append(Violation(f"{at}.width", message, (str(width),)))
    if architecture == "cnn" and not errors and not complete_params(architecture, params)["channels"]:
        errors.append(Violation(f"{at}.channels", "a cnn needs at least one layer of channels, such as [32, 64]"))
    return errors


def _check_value(param: Param, value: Any, at: str) -> list[Violation]:
    try:
        param.read(value)
    except (ValueError, OverflowError):
        suggestions = tuple(near(value, param.choices)) if isinstance(value, str) else ()
        return [Violation(at, f"{_show(value)} does not fit; it takes {param.wants()}", suggestions)]
    return []


def _unknown(at: str, noun: str, name: Any, options: Sequence[str]) -> Violation:
    close = tuple(near(str(name), options))
    hint = f"did you mean {_either(close)}?" if close else f"there are: {', '.join(options)}"
    return Violation(at, f"there is no {noun} {_show(name)}; {hint}", close or tuple(options))


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)


def _show(value: Any) -> str:
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
