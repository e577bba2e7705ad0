"""Whether a dataset version's columns and profile allow the training that was asked for.

Pure: standard library and libs.errors. Checked when a job is created, long before a process starts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from libs.errors import Violation, near

NUMERIC = ("double", "integer")
_READABLE = {
    "regression": ("double", "integer", "boolean", "string", "timestamp"),
    "classification": ("double", "integer", "boolean", "string", "timestamp"),
    "image_classification": ("image",),
    "text_classification": ("string",),
    "text_generation": ("string",),
}
MAX_CLASSES = 1000


def check_data(
    task: str,
    target: str,
    features: Sequence[str],
    columns: Sequence[Mapping[str, Any]],
    profile: Mapping[str, Any] | None = None,
) -> list[Violation]:
    """Every reason why `target` cannot be predicted from `features`.

    columns: {"name", "type", "nullable"} each; type is double, integer, boolean, string, timestamp or image.
    profile: {"rows", "columns": [{"name", "nulls", "nans", "distinct", ...}]}; without it only names and types are checked.
    features: empty means every column but the target (and the `path` of pictures).
    """
    types = {column["name"]: column["type"] for column in columns}
    errors = _check_kind(task, types)
    if errors:
        return errors
    target = target or ("label" if task == "image_classification" else "")
    errors = _check_target(task, target, types) + _check_features(task, target, features, types)
    if profile is not None and target in types:
        errors += _check_profile(task, target, default_features(task, target, features, columns), profile)
    return errors


def default_features(task: str, target: str, features: Sequence[str], columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns to predict from: those named, else every other one that the task can read; what is written is read, too."""
    if task == "text_generation":
        return [target]
    if features:
        return list(features)
    return [column["name"] for column in columns if column["name"] != target and column["type"] in _READABLE[task]]


def _check_kind(task: str, types: Mapping[str, str]) -> list[Violation]:
    has_images = "image" in types.values()
    if task == "image_classification" and not has_images:
        message = (
            "image_classification needs pictures, and the dataset is a table; upload a ZIP with a folder a class, or use classification"
        )
        return [Violation("task", message, ("classification", "regression"))]
    if task != "image_classification" and has_images:
        return [
            Violation("task", f"{task} reads tables, and the dataset has pictures; use image_classification", ("image_classification",))
        ]
    if task in ("text_classification", "text_generation") and "string" not in types.values():
        return [Violation("task", f"{task} needs a column of texts, and the dataset has none; use classification", ("classification",))]
    return []


def _check_target(task: str, target: str, types: Mapping[str, str]) -> list[Violation]:
    if not target:
        return [Violation("target", "the column to predict is missing; name one of the dataset's columns", tuple(types)[:10])]
    if target not in types:
        return [_no_column("target", target, types)]
    kind = types[target]
    if task == "text_generation" and kind != "string":
        texts = tuple(name for name, each in types.items() if each == "string")
        return [
            Violation("target", f"text_generation writes texts, and '{target}' holds {_words(kind)}; name a column of texts", texts[:10])
        ]
    if task == "regression" and kind not in NUMERIC:
        message = f"regression predicts numbers, and '{target}' holds {_words(kind)}; use classification, or cast the column to double"
        return [Violation("target", message, ("classification", *[n for n, t in types.items() if t in NUMERIC][:9]))]
    if kind in ("image", "timestamp"):
        return [Violation("target", f"'{target}' holds {_words(kind)}, which cannot be a class; name a column of texts or numbers")]
    return []


def _check_features(task: str, target: str, features: Sequence[str], types: Mapping[str, str]) -> list[Violation]:
    if task == "text_generation":
        if set(features) <= {target}:
            return []
        return [Violation("features", f"text_generation reads the column that it writes, '{target}', and no other: leave features out")]
    errors, seen = [], set()
    for index, name in enumerate(features):
        at = f"features[{index}]"
        if name not in types:
            errors.append(_no_column(at, name, types))
        elif name == target:
            errors.append(Violation(at, f"'{name}' is the target; a model must not see what it predicts: leave it out"))
        elif name in seen:
            errors.append(Violation(at, f"'{name}' is named twice; name it once"))
        elif types[name] not in _READABLE[task]:
            errors.append(
                Violation(at, f"{task} reads {_words(_READABLE[task][0])}, and '{name}' holds {_words(types[name])}: leave it out")
            )
        seen.add(name)
    left = [name for name, kind in types.items() if name != target and kind in _READABLE[task]]
    if not features and not left:
        errors.append(Violation("features", f"there is no column besides '{target}' to predict from"))
    return errors


def _check_profile(task: str, target: str, features: Sequence[str], profile: Mapping[str, Any]) -> list[Violation]:
    figures = {column["name"]: column for column in profile["columns"]}
    rows, of_target = profile["rows"], figures.get(target, {})
    if rows == 0:
        return [Violation("dataset", "the dataset version has no rows")]
    missing = (of_target.get("nulls") or 0) + (of_target.get("nans") or 0)
    errors = []
    if missing:
        message = f"'{target}' has {missing} missing or NaN values in {rows} rows; drop or fill these rows with a transform first"
        errors.append(Violation("target", message))
    if rows < 2:
        errors.append(Violation("dataset", "one row is not enough to train on and to evaluate"))
    if task not in ("regression", "text_generation"):
        errors += _check_classes(target, of_target, rows)
    for name in features:
        if (figures.get(name, {}).get("nulls") or 0) >= rows:
            errors.append(Violation("features", f"'{name}' is empty in every row; drop the column or leave it out of features"))
    return errors


def _check_classes(target: str, figures: Mapping[str, Any], rows: int) -> list[Violation]:
    classes = figures.get("distinct")
    if classes is None:
        return []
    if classes < 2:
        return [Violation("target", f"'{target}' has one class only; a classifier needs at least two different values")]
    if rows <= classes:
        message = f"'{target}' has {classes} classes and there are only {rows} rows; a class needs several"
        return [Violation("target", f"{message}: add rows, or use regression for numbers")]
    if classes > MAX_CLASSES:
        message = f"'{target}' has {classes} different values; there can be {MAX_CLASSES} classes"
        return [Violation("target", f"{message}; for numbers use regression")]
    return []


def _no_column(at: str, name: str, types: Mapping[str, str]) -> Violation:
    close = tuple(near(name, types))
    listed = ", ".join(list(types)[:10]) + (", ..." if len(types) > 10 else "")
    hint = f"did you mean '{close[0]}'?" if close else f"there are: {listed}"
    return Violation(at, f"there is no column '{name}'; {hint}", close or tuple(types)[:10])


def _words(kind: str) -> str:
    return {"string": "texts", "boolean": "true and false", "timestamp": "times", "image": "pictures"}.get(kind, "numbers")
