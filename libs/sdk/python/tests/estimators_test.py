"""fit and predict as in scikit-learn, and the rows of endpoints."""

import json
import math
import random
from typing import Any

import pytest
from fake_platform import FakePlatform, problem

import leptonai as la

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")


@pytest.fixture
def solver(platform: FakePlatform) -> FakePlatform:
    """The platform really solves least squares over the rows that were uploaded."""

    def predict(model: str, record: dict[str, Any]) -> float:
        rows = platform.tables[model]
        job = next(job for job in platform.jobs.values() if job["model_version"] == model)
        features = np.array([[float(row[name]) for name in job["features"]] + [1.0] for row in rows])
        scale = np.abs(features).max(axis=0)
        weights = np.linalg.lstsq(features / scale, np.array([float(row[job["target"]]) for row in rows]), rcond=None)[0] / scale
        assert set(record) == set(job["features"])
        return float(np.dot([float(record[name]) for name in job["features"]] + [1.0], weights))

    platform.predict = predict
    return platform


def test_the_program_of_the_readme(client: la.Client, solver: FakePlatform) -> None:
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"feature": rng.normal(size=50)})
    data["target"] = 3 * data["feature"] + 1 + rng.normal(size=50)
    model = la.LinearRegression()
    model.fit(data["feature"], data["target"])
    predictions = model.predict(data["feature"])
    mse = la.mean_squared_error(data["target"], predictions)
    slope, intercept = np.polyfit(data["feature"], data["target"], 1)
    assert mse == pytest.approx(((data["target"] - slope * data["feature"] - intercept) ** 2).mean(), rel=1e-9)
    assert isinstance(predictions, pd.Series)
    assert predictions.index.equals(data.index)
    spec = json.loads(solver.asked("POST", "/v1/training-jobs")[0]["body"])
    assert spec["training"] == {
        "epochs": 100,
        "optimizer": "lbfgs",
        "seed": 0,
        "weight_decay": 0.0,
        "test_fraction": 0.0,
        "double_precision": True,
    }
    assert spec["model"] == {"architecture": "linear", "params": {"tolerance": 1e-6}}
    assert spec["features"] == ["feature"]
    assert spec["target"] == "target"
    assert spec["name"].startswith("linear-regression-")
    model.delete()
    assert (solver.endpoints, solver.models, solver.datasets) == ({}, {}, {})


@pytest.mark.parametrize("kind", ["lists", "array", "frame", "records", "columns"])
def test_every_kind_of_rows_keeps_every_digit(client: la.Client, solver: FakePlatform, kind: str) -> None:
    rng = random.Random(1)
    x = [[rng.random() * 1e-9, rng.random() * 1e12] for _ in range(20)]
    y = [row[0] * 3e9 + row[1] / 7e11 for row in x]
    given: Any = {
        "lists": x,
        "array": np.array(x),
        "frame": pd.DataFrame(x, columns=["a", "b"]),
        "records": [{"a": row[0], "b": row[1]} for row in x],
        "columns": {"a": [row[0] for row in x], "b": [row[1] for row in x]},
    }[kind]
    with la.LinearRegression(verbose=False) as model:
        predictions = model.fit(given, np.array(y) if kind == "array" else y).predict(given)
        sent = solver.tables[model.model_version_]
        assert [[float(value) for value in list(row.values())[:2]] for row in sent] == x
        assert list(predictions) == pytest.approx(y)
        assert isinstance(predictions, {"array": np.ndarray, "frame": pd.Series}.get(kind, list))
        assert model.score(given, y) == pytest.approx(1)
    assert solver.endpoints == {}


def test_csv_without_pyarrow_keeps_every_digit(client: la.Client, solver: FakePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "pyarrow", raising=False)
    la.LinearRegression().fit([0.1 + 0.2, 1e300, 5e-324], [1, 2, 3])
    body = solver.requests[0]["body"].decode()
    assert body.splitlines() == ["x0,target", "0.30000000000000004,1", "1e+300,2", "5e-324,3"]


def test_fitting_again_reuses_the_names(client: la.Client, solver: FakePlatform) -> None:
    model = la.LinearRegression().fit([1, 2, 3], [1, 2, 3])
    assert model.predict([4]) == pytest.approx([4])
    name = model.job_.output_model
    model.fit([1, 2, 3], [2, 4, 6])
    assert model.model_version_ == f"{name}@2"
    assert model.predict([4]) == pytest.approx([8])
    assert list(solver.endpoints) == [name]
    model.close()
    assert model.predict([4]) == pytest.approx([8])
    model.close()
    model.close()


def test_columns_are_matched_by_name(client: la.Client, solver: FakePlatform) -> None:
    frame = pd.DataFrame({"a": [1.0, 2, 3, 5], "b": [4.0, 1, 7, 2]})
    with la.LinearRegression().fit(frame, frame["a"] - frame["b"]) as model:
        assert list(model.predict(frame[["b", "a"]])) == pytest.approx([-3, 1, -4, 3])
        with pytest.raises(la.InvalidInput, match=r"lacks the column 'b'.*'bb'"):
            model.predict(frame.rename(columns={"b": "bb"}))
        with pytest.raises(la.InvalidInput, match="'c', which fit has not seen"):
            model.predict(frame.assign(c=1))
        with pytest.raises(la.InvalidInput, match="3 columns"):
            model.predict([[1, 2, 3]])
        assert len(model.predict(frame.iloc[:0])) == 0


@pytest.mark.parametrize("names", [["A", "a"], ["", "b"], ["a\n", "b"], [" a", "b"], [0, 1], ["target", "Target"]])
def test_names_that_files_cannot_hold_are_replaced(client: la.Client, solver: FakePlatform, names: list[Any]) -> None:
    frame = pd.DataFrame([[1.0, 4], [2, 1], [3, 7], [5, 2]], columns=names)
    with la.LinearRegression().fit(frame, frame.iloc[:, 0].rename("a")) as model:
        assert list(model.predict(frame)) == pytest.approx([1, 2, 3, 5])


def test_a_target_named_as_its_feature(client: la.Client, solver: FakePlatform) -> None:
    series = pd.Series([1.0, 2, 3], name="feature")
    with la.LinearRegression().fit(series, series) as model:
        assert list(model.predict(series)) == pytest.approx([1, 2, 3])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2], [1], "X has 2 rows and y 1"),
        ([1, math.nan], [1, 2], r"X\[1\] is missing"),
        ([[1, 2], [1, None]], [1, 2], r"X\[1\]\['x1'\] is missing"),
        ([1, 2], [1, math.nan], r"y\[1\] is missing"),
        ([1, math.inf], [1, 2], "infinite"),
        ([1, 2], ["a", "b"], r"y\[0\] is 'a', which is not a number.*MLPClassifier"),
        ([], [], "X is empty"),
        ([[], []], [1, 2], "X is empty"),
        ([[1], [1, 2]], [1, 2], r"X\[1\] has 2 values"),
        ("abc", [1], "X is str"),
        (7, [1], "X is int"),
        (np.zeros((2, 2, 2)), [1, 2], "3 dimensions"),
        ([1, 2], [[1, 2], [3, 4]], "y has 2 columns"),
        ([{"a": 1}, {"b": 1}], [1, 2], r"X\[1\] has other fields"),
        ({"a": [1], "b": [1, 2]}, [1], "different lengths"),
        ([object(), 1], [1, 2], "is object"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), [1], "'a' is there twice"),
    ],
)
def test_what_cannot_be_fitted_is_said_before_anything_is_sent(
    client: la.Client, platform: FakePlatform, x: Any, y: Any, message: str
) -> None:
    with pytest.raises(la.InvalidInput, match=message):
        la.LinearRegression().fit(x, y)
    assert not platform.requests


def test_predict_before_fit(client: la.Client) -> None:
    with pytest.raises(la.NotFitted, match=r"call fit"):
        la.LinearRegression().predict([1])


@pytest.mark.parametrize(
    ("classes", "answers"),
    [
        (["M", "B"], ["M", "B"]),
        ([0, 1], [0, 1]),
        ([0, 1], ["0", "1"]),
        ([1.0, 2.0], ["1", "2"]),
        ([True, False], ["true", "false"]),
        (["b", "a"], [{"prediction": "b", "probabilities": {"a": 0.1, "b": 0.9}}, {"prediction": "a", "probabilities": {"a": 1, "b": 0}}]),
        ([1.0, 2.0], [{"prediction": 1.0, "probabilities": {"1.0": 0.9, "2.0": 0.1}}, {"prediction": 2, "probabilities": {"2.0": 1}}]),
    ],
)
def test_classes_come_back_as_they_were_given(client: la.Client, platform: FakePlatform, classes: list[Any], answers: list[Any]) -> None:
    platform.predict = lambda model, record: answers[int(record["x0"])]
    with la.MLPClassifier(hidden=(8,), epochs=3, early_stopping=2, validation_fraction=0.1).fit([[0], [1]] * 4, classes * 4) as model:
        predictions = model.predict([[0], [1]])
        assert predictions == classes
        assert [type(value) for value in predictions] == [type(value) for value in classes]
        assert model.score([[0], [1]], classes) == 1
        assert model.classes_ == sorted(classes)
        if isinstance(answers[0], dict):
            first = answers[0]["probabilities"]
            assert model.predict_proba([[0], [1]])[0] == [first[str(value)] for value in sorted(classes)]
            assert model.predict_proba(np.array([[0]])).shape == (1, 2)
        else:
            with pytest.raises(la.LeptonError, match="probabilities"):
                model.predict_proba([[0]])
    spec = json.loads(platform.asked("POST", "/v1/training-jobs")[0]["body"])
    assert spec["model"] == {"architecture": "mlp", "params": {"hidden": [8], "activation": "relu", "dropout": 0.0}}
    assert spec["training"]["early_stopping"] == {"patience": 2}


def test_one_class_or_mixed_classes(client: la.Client) -> None:
    with pytest.raises(la.InvalidInput, match="one class only"):
        la.MLPClassifier().fit([1, 2], ["a", "a"])
    with pytest.raises(la.InvalidInput, match="texts and numbers"):
        la.LogisticRegression().fit([1, 2], ["a", 1])


def test_params_as_in_scikit_learn(client: la.Client) -> None:
    model = la.MLPRegressor((8,), epochs=3, client=client)
    assert model.get_params()["hidden"] == (8,)
    with pytest.raises(la.InvalidInput, match="did you mean 'epochs'"):
        model.set_params(epoch=4)
    assert model.set_params(epochs=4).epochs == 4
    assert "MLPRegressor(hidden=(8,), epochs=4" in repr(model)
    base = pytest.importorskip("sklearn.base")
    assert base.clone(model).get_params() == model.get_params()


def test_somebody_elses_endpoint_is_left_alone(client: la.Client, solver: FakePlatform) -> None:
    solver.endpoints["mine"] = {"name": "mine", "model": "other@1", "state": "ready", "looks": 0}
    model = la.LinearRegression(name="mine").fit([1, 2], [1, 2])
    with pytest.raises(la.Conflict):
        model.predict([1])
    model.close()
    assert solver.endpoints["mine"]["model"] == "other@1"


def test_endpoints_end_with_the_program(client: la.Client, solver: FakePlatform) -> None:
    from leptonai import _estimators

    la.LinearRegression().fit([1, 2], [1, 2]).predict([1])
    la.LinearRegression(keep_endpoint=True).fit([1, 2], [1, 2]).predict([1])
    assert len(solver.endpoints) == 2
    _estimators._close_all()
    assert len(solver.endpoints) == 1


def test_metrics_agree_with_scikit_learn() -> None:
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(size=200) * 1e6, rng.normal(size=200)
    for name in ("mean_squared_error", "mean_absolute_error", "r2_score"):
        assert getattr(la, name)(true, pd.Series(predicted)) == pytest.approx(getattr(sk, name)(true, predicted), rel=1e-12)
    assert la.accuracy_score(["a", "b", "b"], ["a", "b", "a"]) == pytest.approx(2 / 3)
    assert math.isnan(la.r2_score([1], [1]))
    assert (la.r2_score([1, 1], [1, 1]), la.r2_score([1, 1], [1, 2])) == (1, 0)
    for true_values, predictions in (([1], [1, 2]), ([], []), ([1], [math.nan]), (["a"], [1]), ([[1, 2]], [1])):
        with pytest.raises(la.InvalidInput):
            la.mean_squared_error(true_values, predictions)


# -- rows of endpoints ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def echo(platform: FakePlatform) -> FakePlatform:
    """An endpoint "e" with the inputs a and b that answers what it got."""
    inputs = [{"name": "a", "type": "double"}, {"name": "b", "type": "double", "optional": True}]
    platform.models["m"] = [{"model": "m", "number": 1, "signature": {"inputs": inputs, "outputs": []}}]
    platform.models["one"] = [{"model": "one", "number": 1, "signature": {"inputs": inputs[:1], "outputs": []}}]
    platform.models["pic"] = [{"model": "pic", "number": 1, "signature": {"inputs": [{"name": "image", "type": "image"}]}}]
    for name in platform.models:
        platform.endpoints["e" if name == "m" else name] = {"model": f"{name}@1", "state": "ready", "looks": 9}
    platform.predict = lambda model, record: record
    return platform


def test_rows_of_every_kind(client: la.Client, echo: FakePlatform) -> None:
    frame = pd.DataFrame({"a": [1.5, np.nan], "b": pd.array([1, None], dtype="Int64")})
    wanted = [{"a": 1.5, "b": 1}, {"a": None, "b": None}]
    assert client.endpoints.predict("e", frame) == wanted
    assert client.endpoints.predict("e", frame.to_dict("records")) == wanted
    assert client.endpoints.predict("e", np.array([[1.5, 1], [np.nan, np.nan]])) == wanted
    assert client.endpoints.predict("e", [(1.5, 1), (None, None)]) == wanted
    assert client.endpoints.predict("e", {"a": np.int64(1)}) == [{"a": 1}]
    assert client.endpoints.predict("e", frame.iloc[0]) == [{"a": 1.5, "b": 1}]
    assert client.endpoints.predict("one", pd.Series([1, 2], name="a")) == [{"a": 1}, {"a": 2}]
    assert client.endpoints.predict("one", pd.Series([1, 2])) == [{"a": 1}, {"a": 2}]
    assert client.endpoints.predict("one", np.array([1.0, 2.0])) == [{"a": 1}, {"a": 2}]
    assert client.endpoints.predict("pic", [b"\x89PNG"]) == [{"image": "iVBORw=="}]
    assert client.endpoints.predict("pic", np.zeros((1, 2, 2), np.uint8)) == [{"image": [[0, 0], [0, 0]]}]
    assert client.endpoints.predict("e", []) == []
    times = pd.DataFrame({"a": pd.to_datetime(["2026-11-23"])})
    assert client.endpoints.predict("e", times) == [{"a": "2026-11-23T00:00:00"}]


@pytest.mark.parametrize("rows", ["abc", 7, [1, 2], [[1, 2, 3]], [{"a": math.inf}], [{"a": object()}], [{"a": "\ud800"}], b"x"])
def test_rows_that_are_none(client: la.Client, echo: FakePlatform, rows: Any) -> None:
    with pytest.raises(la.InvalidInput):
        client.endpoints.predict("e", rows)


def test_many_rows_go_in_chunks_in_order(client: la.Client, echo: FakePlatform) -> None:
    rows = [{"a": n} for n in range(2500)]
    assert client.endpoints.predict("e", rows) == rows
    sizes = [len(json.loads(request["body"])["instances"]) for request in echo.asked("POST", "/v1/endpoints/e/predict")]
    assert sizes == [1000, 1000, 500]


def test_chunks_become_smaller_where_they_are_too_large(client: la.Client, echo: FakePlatform) -> None:
    rows = [{"a": n} for n in range(10)]

    def small_only(request: dict[str, Any]) -> Any:
        if len(json.loads(request["body"])["instances"]) > 3:
            return problem(413, "too_large", "at most 3 rows")
        return echo._answer(request)

    echo.script["POST /v1/endpoints/e/predict"] = [small_only] * 20
    assert client.endpoints.predict("e", rows) == rows
    big = [{"a": "x" * 3_000_000}] * 3
    assert client.endpoints.predict("e", big) == big


def test_errors_count_rows_from_the_first_one(client: la.Client, echo: FakePlatform) -> None:
    rows = [{"a": n} for n in range(2500)]
    detail = "instances[7].a: 'x' does not fit"
    error = {"field": "instances[7].a", "message": "'x' does not fit", "suggestions": []}
    good = echo._answer
    echo.script["POST /v1/endpoints/e/predict"] = [good, good, problem(422, "invalid_record", detail, errors=[error])]
    with pytest.raises(la.InvalidData, match=r"instances\[2007\]\.a") as caught:
        client.endpoints.predict("e", rows)
    assert caught.value.errors[0].field == "instances[2007].a"
    rows[1234] = {"a": math.inf}
    with pytest.raises(la.InvalidInput, match=r"instances\[1234\]\.a is inf"):
        client.endpoints.predict("e", rows)


def test_wait_ready(client: la.Client, platform: FakePlatform) -> None:
    platform.endpoints["e"] = {"name": "e", "state": "starting", "looks": 0}
    assert client.endpoints.wait_ready("e").state == "ready"
    failed = {"name": "e", "state": "failed", "error": {"code": "out_of_memory", "detail": "512 MiB did not suffice"}}
    platform.script["GET /v1/endpoints/e"] = [(200, failed, {}), (200, {"state": "stopped"}, {}), *[(200, {"state": "starting"}, {})] * 9]
    with pytest.raises(la.InvalidData, match="did not suffice"):
        client.endpoints.wait_ready("e")
    with pytest.raises(la.InvalidInput, match="stopped"):
        client.endpoints.wait_ready("e")
    with pytest.raises(la.Timeout):
        client.endpoints.wait_ready("e", timeout=0.1)
