"""Model packages for the replica's tests: small torch modules, exported."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvloop
from numpy.typing import NDArray

from libs.modelkit import package as packages
from libs.modelkit.export import export
from libs.modelkit.package import Package
from libs.modelkit.preprocessing import Preprocessing, fit_images, fit_table
from libs.modelkit.runtime import Runtime, load
from libs.modelkit.target import Target, fit_target


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the process has."""
    return {"uvloop": uvloop.new_event_loop}


def ship(folder: Path, task: str, preprocessing: Preprocessing, target: Target, module: Any, row: NDArray[Any]) -> Runtime:
    made = Package(task, "cnn" if preprocessing.kind == "image" else "linear", {}, "float32", preprocessing, target, {}, folder)
    packages.write(made, {name: tensor.numpy() for name, tensor in module.state_dict().items()})
    assert export(module, row, folder) == ""
    return load(folder)


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """Two classes of a number and a text that may be missing."""
    columns = {"a": np.array([1.0, 2.0, 4.0]), "b": np.array(["x", "y", None], object)}
    target = fit_target("y", "string", np.array(["no", "yes", "no"], object), classify=True)
    fitted = fit_table(columns, {"a": "double", "b": "string"})
    torch.manual_seed(0)
    return ship(tmp_path_factory.mktemp("p"), "classification", fitted, target, torch.nn.Linear(4, 2), np.ones((3, 4), np.float32))


@pytest.fixture(scope="session")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """A number of two numbers."""
    columns = {"a": np.array([1.0, 2.0, 4.0]), "b": np.array([1.0, 0.0, 3.0])}
    target = fit_target("y", "double", np.array([10.0, 20.0, 30.0]), classify=False)
    fitted = fit_table(columns, {"a": "double", "b": "integer"})
    return ship(tmp_path_factory.mktemp("n"), "regression", fitted, target, torch.nn.Linear(2, 1), np.ones((3, 2), np.float32))


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """A number of one column of each type that a table may have."""
    columns: dict[str, NDArray[Any]] = {
        "double": np.array([1.0, 2.0, 4.0]),
        "integer": np.array([1.0, 0.0, 3.0]),
        "boolean": np.array([1.0, 0.0, 1.0]),
        "string": np.array(["x", "y", "x"], object),
    }
    target = fit_target("y", "double", np.array([10.0, 20.0, 30.0]), classify=False)
    fitted = fit_table(columns, {name: name for name in columns})
    torch.manual_seed(0)
    return ship(tmp_path_factory.mktemp("m"), "regression", fitted, target, torch.nn.Linear(6, 1), np.ones((3, 6), np.float32))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    fitted = fit_images("image", np.random.default_rng(0).integers(0, 255, (4, 4, 4, 1), np.uint8))
    target = fit_target("label", "string", np.array(["a", "b"], object), classify=True)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    return ship(tmp_path_factory.mktemp("i"), "image_classification", fitted, target, module, np.ones((2, 1, 4, 4), np.float32))


@pytest.fixture
def slow(runtime: Runtime) -> Callable[[float], Runtime]:
    """A runtime whose model takes so many seconds a call."""

    def make(seconds: float) -> Runtime:
        def model(rows: NDArray[Any]) -> NDArray[np.floating]:
            time.sleep(seconds)
            return runtime._model(rows)

        return Runtime(runtime.package, model, "slow")

    return make
