"""A linear model trained by backpropagation is the least-squares solution: scikit-learn's error to 1e-6, from raw records on."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

SPEC = {"task": "regression", "training": {"optimizer": "lbfgs", "double_precision": True, "test_fraction": 0.0}}


def mse_of_ours(train, x, y, name="run", tolerance=0.0):
    names = [f"x{i}" for i in range(x.shape[1])]
    table = pa.table({**{n: x[:, i] for i, n in enumerate(names)}, "y": y})
    model = {"architecture": "linear", "params": {"tolerance": tolerance}}
    runtime = train(table, name=name, features=names, model=model, **SPEC).runtime()
    answers = runtime.predict_records([dict(zip(names, row, strict=True)) for row in x.tolist()])
    return np.mean((y - [answer["prediction"] for answer in answers]) ** 2)


def mse_of_sklearn(x, y, **options):
    return np.mean((y - LinearRegression(**options).fit(x, y).predict(x)) ** 2)


def made(case, seed=0, rows=300):
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 4))
    if case == "one column":
        x = x[:, :1]
    if case == "scales to 1e5":
        x *= [1e-3, 1e-2, 1, 1e2]
    if case == "large offsets":
        x += [1e6, 1e8, -1e5, 3]
    if case == "nearly collinear":
        x[:, 3] = x[:, 0] + 1e-4 * x[:, 3]
    if case == "twice the same":
        x[:, 3] = x[:, 0]
    if case == "skewed":
        x = np.exp(2 * x)
    standard = (x - x.mean(0)) / x.std(0)
    return x, standard @ random.normal(size=x.shape[1]) + 0.1 * random.normal(size=rows) + 1e4


@pytest.mark.parametrize("case", ["one column", "scales to 1e5", "large offsets", "nearly collinear", "twice the same", "skewed"])
def test_error_is_that_of_scikit_learn(train, case):
    x, y = made(case)
    assert mse_of_ours(train, x, y) == pytest.approx(mse_of_sklearn(x, y), rel=1e-6)


def test_scales_too_far_apart_for_scikit_learn_are_no_hindrance(train):
    x, y = made("plain")
    expected = mse_of_sklearn(x, y)
    assert mse_of_ours(train, x * [1e-6, 1, 1e3, 1e9], y) == pytest.approx(expected, rel=1e-6)


def test_tolerance_leaves_out_what_scikit_learn_leaves_out(train):
    x, y = made("plain")
    x *= [1e-6, 1, 1e3, 1e9]
    expected = mse_of_sklearn(x, y, tol=1e-6)
    assert mse_of_ours(train, x, y, tolerance=1e-6) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000),
    columns=st.integers(1, 6),
    rows=st.integers(10, 200),
    powers=st.lists(st.integers(-2, 3), min_size=6, max_size=6),
    offsets=st.lists(st.floats(-1e4, 1e4), min_size=6, max_size=6),
    noise=st.sampled_from([1e-4, 0.1, 10.0]),
)
def test_error_is_that_of_scikit_learn_whatever_the_data(train, seed, columns, rows, powers, offsets, noise):
    random = np.random.default_rng(seed)
    plain = random.normal(size=(rows, columns))
    x = plain * 10.0 ** np.array(powers[:columns]) + np.array(offsets[:columns])
    y = plain @ random.normal(size=columns) + noise * random.normal(size=rows)
    name = f"run-{seed}-{columns}-{rows}-{abs(hash((tuple(powers), tuple(offsets), noise)))}"
    assert mse_of_ours(train, x, y, name) == pytest.approx(mse_of_sklearn(x, y), rel=1e-6)
