"""A run from spec to package: load, preprocess, train, evaluate, export. The only file that knows all the others."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from libs.errors import Invalid, Violation
from libs.modelkit import package as packages
from libs.modelkit.evaluation import confusion_matrix, evaluate_classes, evaluate_numbers, softmax
from libs.modelkit.package import Package
from services.training.engine.crew import Crew
from services.training.engine.data import Part, Prepared, prepare, read_tables, sample_part, sample_rows
from services.training.engine.events import Events
from services.training.engine.spec import RunSpec

if TYPE_CHECKING:
    from torch import nn

    from libs.modelkit.architectures import Decoder
    from services.training.engine.loop import Rows, Standing


def run(folder: Path, spec: RunSpec, events: Events, crew: Crew = Crew()) -> None:
    """Leaves `folder`/package and a result event, of the first worker. Raises `AppError` for what the user can change."""
    with events.span("training.run", architecture=spec.architecture, task=spec.task):
        importer = threading.Thread(target=_import_torch)  # reading and preprocessing leave the interpreter free at times
        importer.start()
        try:
            init, prepared = _load(spec, events)
        finally:
            with events.span("import_torch"):
                importer.join()
        module, standing = _train(folder, spec, prepared, init, events, crew)
        if not crew.first:
            return
        with events.span("evaluate", rows=len(prepared.test) or len(prepared.train)):
            metrics, matrix = _evaluate(module, prepared, spec)
        events.beat("evaluate")
        package = _describe(spec, prepared, metrics, folder / "package")
        with events.span("export") as attributes:
            weights, reason = _export(package, module, prepared)
            attributes["onnx"] = not reason
        if reason:
            events.log(f"served by torch, without model.onnx: {reason}")
        events.emit(
            "result",
            metrics=metrics,
            confusion_matrix=matrix,
            classes=prepared.target.labels,
            training_rows=len(prepared.train),
            validation_rows=len(prepared.validation),
            test_rows=len(prepared.test),
            parameters=packages.count_parameters(weights),
            epochs=standing.epoch,
            best_epoch=standing.best_epoch,
            steps=standing.step,
            package="package",
            onnx=not reason,
            signature=package.signature.as_json(),
        )


def _import_torch() -> None:
    import libs.modelkit.export  # noqa: F401
    import services.training.engine.loop  # noqa: F401  # torch takes 2 s: it loads beside the data


def _load(spec: RunSpec, events: Events) -> tuple[Package | None, Prepared]:
    events.beat("load")
    init = packages.read(spec.init) if spec.init and spec.init.is_dir() else None
    if init and (init.architecture != spec.architecture or dict(init.params) != dict(spec.params) or init.task != spec.task):
        raise _other_model(f"it is a {init.architecture} with {dict(init.params)} for {init.task}")
    with events.span("load") as attributes:
        table, spans = read_tables(spec.splits)
        attributes["rows"] = table.num_rows
    events.beat("preprocess")
    with events.span("preprocess"):
        prepared = prepare(spec, table, spans, init)
    return init, prepared


def _train(
    folder: Path, spec: RunSpec, prepared: Prepared, init: Package | None, events: Events, crew: Crew
) -> tuple["nn.Module", "Standing"]:
    import torch  # loaded by now

    from services.training.engine import checkpoint
    from services.training.engine.loop import Loop

    _require_enough(len(prepared.train), crew)
    torch.set_num_threads(spec.threads)
    crew.join(spec.device)
    # What torch.use_deterministic_algorithms(True, warn_only=True) sets, without the 1.3 s that it takes to load the compiler.
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a pass over each new tensor, and none is read before it is written
    torch.manual_seed(spec.training.seed % (1 << 63))
    module = _build(spec, prepared, init).to(spec.device, getattr(torch, spec.training.dtype))
    loop = Loop(
        module,
        spec.training,
        _rows(prepared.train, spec),
        _rows(prepared.validation, spec),
        spec.classify,
        events,
        folder / "checkpoints",
        crew,
    )
    state = checkpoint.read(spec.resume) if spec.resume else checkpoint.latest(folder / "checkpoints")
    if state is not None:
        loop.restore(state)
        events.log(f"resumed after epoch {loop.standing.epoch} of {spec.training.epochs}")
    with events.span("train", rows=len(prepared.train)):
        standing = loop.run()
        crew.leave()
    module = loop.module.cpu().eval()
    return (module.fold() if hasattr(module, "fold") else module), standing


def _require_enough(rows: int, crew: Crew) -> None:
    if rows < crew.size:
        message = f"{crew.size} workers cannot share {rows} training rows: each needs one; use {rows} workers at most, or more rows"
        raise Invalid.of([Violation("training.workers", message)], code="invalid_spec")


def _build(spec: RunSpec, prepared: Prepared, init: Package | None) -> "nn.Module":
    import torch

    from libs.modelkit.architectures import Decoder, build
    from services.training.engine.whitening import MAX_FEATURES, whiten

    preprocessing = prepared.preprocessing
    outputs = prepared.target.outputs
    module = build(spec.architecture, spec.params, preprocessing.kind, preprocessing.shape, outputs, preprocessing.tokens)
    if isinstance(module, Decoder):
        module.everywhere = True
    if spec.init:
        _initialise(module, packages.read_weights(spec.init / packages.WEIGHTS if init else spec.init))
    training = spec.training
    fits = spec.architecture == "linear" and preprocessing.shape[0] <= MAX_FEATURES
    if fits and training.optimizer == "lbfgs" and training.weight_decay == 0 and isinstance(module, torch.nn.Linear):
        return whiten(module, prepared.train.x, preprocessing.scales, spec.params["tolerance"])
    return module


def _initialise(module: "nn.Module", weights: Mapping[str, NDArray[Any]]) -> None:
    import torch

    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != given:
        name = next(n for n in {**wanted, **given} if wanted.get(n) != given.get(n))
        raise _other_model(f"its weight '{name}' has the shape {given.get(name)}, and this model's has {wanted.get(name)}")
    module.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})


def _other_model(difference: str) -> Invalid:
    message = f"the weights to start from belong to another model: {difference}; architecture, params, columns and classes must be the same"
    return Invalid.of([Violation("model.init", message)], code="invalid_spec")


def _rows(part: Part, spec: RunSpec) -> "Rows":
    import torch

    from services.training.engine.loop import Rows

    x, y = torch.from_numpy(np.ascontiguousarray(part.x)), torch.from_numpy(part.y)
    y = y if spec.classify else y.to(getattr(torch, spec.training.dtype)).unsqueeze(1)
    return Rows(x.to(spec.device), y.to(spec.device))


def _evaluate(module: "nn.Module", prepared: Prepared, spec: RunSpec) -> tuple[dict[str, float], list[list[int]]]:
    """Metrics on the held-out rows; where none are held out on the training rows, and the names say so: "training_mse"."""
    import torch

    from services.training.engine.loop import predict

    part, prefix = (prepared.test, "") if len(prepared.test) else (prepared.train, "training_")
    if spec.task == "text_generation":
        return {prefix + name: value for name, value in _evaluate_text(cast("Decoder", module), part).items()}, []
    outputs = predict(module, torch.from_numpy(np.ascontiguousarray(part.x))).numpy()
    target, matrix = prepared.target, []
    if target.classes is None:
        figures = evaluate_numbers(part.y * target.data["scale"] + target.data["mean"], target.numbers(outputs))
    else:
        probabilities = target.probabilities(outputs)
        figures = evaluate_classes(part.y, probabilities)
        matrix = confusion_matrix(part.y, probabilities.argmax(1), len(target.classes)).tolist()
    return {prefix + name: value for name, value in figures.items()}, matrix


def _evaluate_text(module: "Decoder", part: Part) -> dict[str, float]:
    """How well each byte follows from those before it; perplexity is the exponential of log_loss."""
    import torch

    from services.training.engine.loop import predict

    part = sample_part(part)
    module.everywhere = True
    outputs = predict(module, torch.from_numpy(part.x)).transpose(1, 2).flatten(0, 1).numpy()
    module.fold()
    figures = evaluate_classes(part.y.reshape(-1), softmax(outputs))
    return {"accuracy": figures["accuracy"], "log_loss": figures["log_loss"], "perplexity": float(np.exp(figures["log_loss"]))}


def _describe(spec: RunSpec, prepared: Prepared, metrics: Mapping[str, float], folder: Path) -> Package:
    return Package(spec.task, spec.architecture, spec.params, spec.training.dtype, prepared.preprocessing, prepared.target, metrics, folder)


def _export(package: Package, module: "nn.Module", prepared: Prepared) -> tuple[dict[str, NDArray[Any]], str]:
    """Writes the package beside its place and moves it there whole. Returns the weights and why there is no ONNX, if so."""
    import shutil

    from libs.modelkit.export import export

    part = package.folder.with_name("package.part")
    shutil.rmtree(part, ignore_errors=True)
    weights = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in module.state_dict().items()}
    packages.write(replace(package, folder=part), weights)
    reason = export(module, np.ascontiguousarray(sample_rows(prepared.test if len(prepared.test) else prepared.train)), part)
    shutil.rmtree(package.folder, ignore_errors=True)
    part.rename(package.folder)
    return weights, reason
