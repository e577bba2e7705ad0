"""Whole runs in this process: what they reach, what they leave, and that the same spec gives the same weights."""

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_digits

from libs.errors import AppError, Invalid


def two_moons(rows=200, seed=0):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, rows))
    y = np.where(a * b > 0, "same", "other")
    return pa.table({"a": a, "b": b, "colour": np.where(a > 0, "red", "blue"), "y": y})


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


MLP = {"task": "classification", "model": {"architecture": "mlp", "params": {"hidden": [16], "dropout": 0.3}}}


def test_breast_cancer_by_the_issues_spec(train):
    data = load_breast_cancer()
    table = pa.table({**{n: data.data[:, i] for i, n in enumerate(data.feature_names)}, "y": np.where(data.target, "B", "M")})
    training = {"epochs": 30, "batch_size": 32, "learning_rate": 0.001, "optimizer": "adamw", "seed": 7}
    done = train(table, task="classification", model={"architecture": "mlp", "params": {"hidden": [64, 64]}}, training=training)
    assert done.result["metrics"]["accuracy"] >= 0.94
    assert done.result["onnx"]
    assert (done.result["training_rows"], done.result["test_rows"]) == (455, 114)


def test_digits_by_a_cnn(train):
    digits = load_digits()
    files = [png((image * 15.9).astype(np.uint8)) for image in digits.images]
    table = pa.table({"image": files, "label": [str(label) for label in digits.target]})
    done = train(table, target="label", task="image_classification", model={"architecture": "cnn"}, training={"epochs": 12, "seed": 1})
    assert done.result["metrics"]["accuracy"] >= 0.97
    runtime = done.runtime()
    rows = (digits.images[0] * 15.9).astype(np.uint8).tolist()
    assert runtime.predict_records([{"image": rows}])[0]["prediction"] == "0"


@pytest.mark.parametrize(
    ("architecture", "params"),
    [
        ("linear", {}),
        ("mlp", {"activation": "gelu"}),
        ("rnn", {"hidden": 16, "embedding": 8}),
        ("rnn", {"cell": "gru", "hidden": 16, "embedding": 8, "layers": 2, "dropout": 0.1}),
        ("transformer", {"width": 16, "heads": 2, "layers": 1}),
    ],
)
@pytest.mark.parametrize("double", [False, True])
def test_every_architecture_learns_a_table_and_is_served_by_onnx(train, architecture, params, double):
    random = np.random.default_rng(0)
    x = random.normal(size=(150, 3))
    table = pa.table({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": x @ [1.0, -2.0, 0.5] * 100 + 1000})
    training = {"epochs": 25, "learning_rate": 0.01, "double_precision": double, "seed": 3}
    done = train(table, task="regression", model={"architecture": architecture, "params": params}, training=training)
    assert done.result["metrics"]["r2"] > 0.7
    assert done.result["onnx"], done.of("log")


@pytest.mark.parametrize("architecture", ["rnn", "transformer"])
def test_texts(train, architecture):
    good, bad = ["a lovely day", "lovely and good food", "so good"], ["an awful day", "awful food", "so bad, bad"]
    table = pa.table({"text": (good + bad) * 20, "y": (["+"] * 3 + ["-"] * 3) * 20})
    done = train(table, task="text_classification", model={"architecture": architecture}, training={"epochs": 8, "learning_rate": 0.005})
    assert done.result["metrics"]["accuracy"] == 1
    answers = done.runtime().predict_records([{"text": "lovely"}, {"text": ""}])
    assert answers[0]["prediction"] == "+"
    assert done.result["onnx"], done.of("log")


@pytest.mark.parametrize("architecture", ["rnn", "transformer"])
def test_texts_have_vectors_by_onnx_and_by_torch(train, architecture):
    table = pa.table({"text": ["a lovely day", "an awful day"] * 30, "y": ["+", "-"] * 30})
    done = train(table, task="text_classification", model={"architecture": architecture}, training={"epochs": 4, "learning_rate": 0.005})
    texts = ["lovely", "awful", "lovely", ""]
    vectors = np.array(done.runtime().embed(texts))
    assert vectors.shape[0] == 4
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    (done.folder / "package" / "model.onnx").unlink()
    by_torch = done.runtime()
    assert by_torch.engine == "torch"
    np.testing.assert_allclose(by_torch.embed(texts), vectors, atol=1e-5)


def test_double_precision_pictures_have_a_package_too(train):
    random = np.random.default_rng(0)
    files = [png(np.full((8, 8), 40 if i % 2 else 200, np.uint8) + random.integers(0, 9, (8, 8), np.uint8)) for i in range(40)]
    table = pa.table({"image": files, "label": ["dark" if i % 2 else "bright" for i in range(40)]})
    training = {"epochs": 4, "double_precision": True}
    done = train(table, target="label", task="image_classification", model={"architecture": "cnn"}, training=training)
    assert done.runtime().predict_records([{"image": [[200] * 8] * 8}])[0]["prediction"] == "bright"


def test_same_spec_and_seed_give_the_same_weights(train):
    training = {"epochs": 4, "seed": 5}
    first, again = (train(two_moons(), name=name, training=training, **MLP) for name in ("first", "again"))
    other = train(two_moons(), name="other", training={**training, "seed": 6}, **MLP)
    assert first.weights == again.weights
    assert first.weights != other.weights


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "lbfgs"])
def test_resumed_after_any_epoch_gives_the_same_weights(train, tmp_path, optimizer):
    training = {"epochs": 6, "seed": 5, "optimizer": optimizer, "early_stopping": {"patience": 50}}
    whole = train(two_moons(), name="whole", training=training, **MLP)
    for epochs in (1, 3):
        name = f"until-{epochs}"
        part = train(two_moons(), name=name, training={**training, "epochs": epochs}, **MLP)
        (part.folder / "events.jsonl").unlink()
        shutil.rmtree(part.folder / "package")
        resumed = train(two_moons(), name=name, training=training, **MLP)
        assert resumed.weights == whole.weights
        assert any("resumed after epoch" in event["text"] for event in resumed.of("log"))


def test_resume_names_a_checkpoint_elsewhere(train):
    whole = train(two_moons(), name="whole", training={"epochs": 4}, **MLP)
    again = train(two_moons(), name="again", training={"epochs": 4}, resume=str(whole.folder / "checkpoints" / "epoch-3"), **MLP)
    assert again.weights == whole.weights


def test_a_torn_checkpoint_is_passed_over(train):
    training = {"epochs": 3, "seed": 5}
    done = train(two_moons(), training=training, **MLP)
    weights = done.weights
    torn = done.folder / "checkpoints" / "epoch-3" / "state.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    assert train(two_moons(), training=training, **MLP).weights == weights


def test_keeps_the_last_two_checkpoints_and_the_best(train):
    training = {"epochs": 30, "learning_rate": 0.05, "early_stopping": {"patience": 5}, "seed": 2}
    done = train(two_moons(), training=training, **MLP)
    kept = {int(folder.name.split("-")[1]) for folder in (done.folder / "checkpoints").iterdir()}
    last, best = done.result["epochs"], done.result["best_epoch"]
    assert kept == {last, last - 1, best}


def test_early_stopping_keeps_the_best_epochs_weights(train):
    training = {"epochs": 200, "learning_rate": 0.05, "early_stopping": {"patience": 3}, "seed": 2}
    done = train(two_moons(), name="stopped", training=training, **MLP)
    best = done.result["best_epoch"]
    assert done.result["epochs"] == best + 3 < 200
    exactly = train(two_moons(), name="exactly", training={**training, "epochs": best}, **MLP)
    assert exactly.weights == done.weights


def test_test_split_is_the_held_out_set(train):
    done = train({"train": two_moons(90), "test": two_moons(40, seed=1)}, training={"epochs": 1}, **MLP)
    assert (done.result["training_rows"], done.result["test_rows"]) == (90, 40)


def test_starts_from_another_models_weights(train):
    first = train(two_moons(), name="first", training={"epochs": 20}, **MLP)
    package = str(first.folder / "package")
    second = train(two_moons(), name="second", training={"epochs": 1, "learning_rate": 1e-9}, init_weights=package, **MLP)
    assert second.result["metrics"]["accuracy"] == first.result["metrics"]["accuracy"]
    other = {"task": "classification", "model": {"architecture": "mlp", "params": {"hidden": [8]}}}
    with pytest.raises(Invalid, match="belong to another model"):
        train(two_moons(), name="third", init_weights=package, **other)


def test_a_loss_that_diverges_ends_with_advice(train):
    table = pa.table({"x": np.arange(50.0), "y": np.arange(50.0) ** 2})
    training = {"optimizer": "sgd", "learning_rate": 10, "epochs": 200}
    with pytest.raises(AppError) as caught:
        train(table, task="regression", model={"architecture": "linear"}, training=training)
    assert caught.value.code == "loss_diverged"
    assert "lower the learning rate" in caught.value.detail


def test_time_limit(train, monkeypatch):
    with pytest.raises(AppError) as caught:
        train(two_moons(2000), training={"epochs": 100_000, "time_limit_seconds": 1}, **MLP)
    assert caught.value.code == "time_limit"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pa.table({"x": [1.0, 2.0, 3.0], "y": ["a", "a", "a"]}), "one class only"),
        (pa.table({"x": [1.0, 2.0, 3.0], "y": ["a", None, "b"]}), "missing or NaN"),
        (pa.table({"x": [1.0, float("inf"), 3.0], "y": ["a", "a", "b"]}), "infinite"),
        (pa.table({"x": [1.0, 2.0], "Y": ["a", "b"]}), "did you mean 'Y'"),
    ],
)
def test_unusable_data_is_said_in_words(train, table, words):
    with pytest.raises(Invalid, match=words):
        train(table, **MLP)


def test_events_tell_the_whole_run(train):
    trace, parent = "ab" * 16, "cd" * 8
    done = train(two_moons(), training={"epochs": 2}, traceparent=f"00-{trace}-{parent}-01", **MLP)
    spans = {span["name"]: span for span in done.of("span")}
    assert {"load", "preprocess", "train", "epoch", "evaluate", "export", "training.run"} <= spans.keys()
    assert {span["trace_id"] for span in spans.values()} == {trace}
    assert spans["training.run"]["parent_id"] == parent
    assert spans["epoch"]["parent_id"] == spans["train"]["span_id"]
    assert [event["epoch"] for event in done.of("checkpoint")] == [1, 2]
    assert done.of("progress")[0]["step"] == 1
    assert done.of("heartbeat")


def test_missing_cells_and_unknown_categories(train):
    table = pa.table(
        {"a": [1.0, None, 3.0, 4.0] * 10, "c": ["x", "y", None, "x"] * 10, "ok": [True, False, None, True] * 10, "y": ["n", "p"] * 20}
    )
    runtime = train(table, training={"epochs": 1}, **MLP).runtime()
    assert {field.name: field.optional for field in runtime.signature.inputs} == {"a": True, "c": True, "ok": True}
    assert len(runtime.predict_records([{}, {"a": None, "c": "never seen", "ok": True}])) == 2


def test_layout_of_the_package(train):
    done = train(two_moons(), training={"epochs": 1}, **MLP)
    assert {file.name for file in (done.folder / "package").iterdir()} == {"model.json", "model.onnx", "weights.safetensors"}
    model = json.loads((done.folder / "package" / "model.json").read_text())
    assert (model["format"], model["classes"], model["dtype"]) == (1, ["other", "same"], "float32")


def test_a_model_of_texts_writes_and_says_how_well(train):
    table = pa.table({"y": ["one two three four five", "uno dos tres cuatro"] * 20})
    params = {"width": 32, "heads": 2, "layers": 1, "max_length": 24, "dropout": 0}
    training = {"epochs": 60, "batch_size": 8, "learning_rate": 0.01}
    done = train(table, task="text_generation", model={"architecture": "transformer", "params": params}, training=training)
    assert done.result["metrics"]["perplexity"] < 2
    assert done.result["onnx"], done.of("log")
    runtime = done.runtime()
    for prompt, rest in (("one two", " three four five"), ("uno", " dos tres cuatro")):
        pieces = list(runtime.generate(prompt, max_tokens=20, temperature=0, stop=[]))
        assert "".join(pieces) == rest
    assert "".join(runtime.generate("one", max_tokens=20, temperature=0, stop=["four"])) == " two three "
    [answer] = runtime.predict_records([{"y": "one tw"}])
    assert answer["prediction"] == "o"
    (done.folder / "package" / "model.onnx").unlink()
    by_torch = done.runtime()
    assert by_torch.engine == "torch"
    np.testing.assert_allclose(by_torch.answer(by_torch.read([{"y": "one"}])), runtime.answer(runtime.read([{"y": "one"}])), atol=1e-5)


def test_what_no_text_can_be_learned_of_is_refused(train):
    model = {"architecture": "transformer", "params": {"max_length": 24}}
    for table, words in (({"y": ["a", None, "b"]}, "missing values"), ({"y": ["", ""]}, "are empty"), ({"y": [1, 2]}, "a column of texts")):
        with pytest.raises(Invalid, match=words):
            train(pa.table(table), name=words, task="text_generation", model=model)
    with pytest.raises(Invalid, match="no vocabulary"):
        params = {"vocabulary": 5}
        train(pa.table({"y": ["ab"] * 9}), task="text_generation", model={"architecture": "transformer", "params": params})
