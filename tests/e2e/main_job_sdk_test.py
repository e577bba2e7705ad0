"""The main job by the client, as a notebook does it; and equal weights for equal seeds, scikit-learn's errors, and a quick cancel."""

import csv
import io
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from sklearn.linear_model import LinearRegression

import leptonai as la
from services.standalone.demo import flow
from tests.platform import Platform, eventually, free_port

ROOT = Path(__file__).parents[2]
MLP = {"task": "classification", "target": "diagnosis", "architecture": "mlp", "params": {"hidden": [64, 64]}}
CALLS = 5


@pytest.fixture(scope="module")
def client(platform: Platform) -> Iterator[la.Client]:
    """In a workspace of its own, so that other journeys' names are out of the way."""
    with platform.client() as first, platform.client(first.account.create_workspace("sdk-clinic").secret) as client:
        yield client


@pytest.fixture(scope="module")
def demo(client: la.Client) -> flow.Flow:
    return flow.Flow(client, lambda stage: None)


@pytest.fixture(scope="module")
def trained(demo: flow.Flow) -> la.ModelVersion:
    """wdbc@1, of wdbc@2."""
    return demo.table()


def train(client: la.Client, **spec: Any) -> la.TrainingJob:
    return client.training_jobs.wait(client.training_jobs.create(**spec), progress=False)


def digest(client: la.Client, job: la.TrainingJob) -> str:
    (weights,) = [file.digest for file in client.models.version(job.model_version).files if file.path == "weights.safetensors"]
    return weights


def test_data_to_money(platform: Platform, client: la.Client, demo: flow.Flow, trained: la.ModelVersion) -> None:
    assert trained.metrics["accuracy"] >= 0.94
    assert trained.test_rows > 100
    record, truth = flow.table_record()
    demo.deploy(trained, record, truth)
    (answer,) = client.endpoints.predict("wdbc", pd.DataFrame([record]))
    assert answer["prediction"] == truth
    with platform.client() as first, platform.client(first.account.create_workspace("sdk-hospital").secret) as buyer:
        demo.sell(trained, record, CALLS, buyer)
        invoice, earnings = flow.bill(buyer, client, CALLS)
    assert [(line.quantity, line.amount.micros) for line in invoice.lines if "wdbc-demo" in line.resource] == [(CALLS, 2000 * CALLS)]
    assert [(line.listing, line.gross.micros) for line in earnings.lines] == [("wdbc-demo", 2000 * CALLS)]
    client.listings.withdraw("wdbc-demo")
    client.endpoints.delete("wdbc")

    job = client.training_jobs.get(trained.training_job)
    services = eventually(lambda: {span.service for span in client.traces.get(job.trace_id).spans} >= {"gateway", "training", "compute"})
    assert services


def test_every_row_of_a_dataset(client: la.Client, trained: la.ModelVersion) -> None:
    """As the model says of its own: each row once, in order, and billed once. What the model cannot read is said before anything runs."""
    version = client.batch_predict(trained, "wdbc@2", "wdbc-answers", columns=["diagnosis", "mean_radius"], timeout=120, progress=False)
    source = client.datasets.version("wdbc@2")
    assert version.ref == "wdbc-answers@1"
    assert [(split.name, split.rows) for split in version.splits] == [(split.name, split.rows) for split in source.splits]
    lineage = version.lineage
    assert lineage is not None
    assert (lineage.kind, lineage.source, lineage.model) == ("prediction", "wdbc@2", trained.ref)
    answers, rows = client.datasets.to_pandas(version), client.datasets.to_pandas("wdbc@2")
    assert list(answers) == ["diagnosis", "mean_radius", "prediction", "probability_B", "probability_M"]
    pd.testing.assert_frame_equal(answers[["diagnosis", "mean_radius"]], rows[["diagnosis", "mean_radius"]])
    assert (answers["prediction"] == answers["diagnosis"]).mean() > 0.94
    assert np.allclose(answers["probability_B"] + answers["probability_M"], 1)
    (batch,) = client.batch_predictions.list()
    assert (batch.state, batch.rows_done, batch.attempts) == ("succeeded", source.rows, 1)
    (line,) = eventually(
        lambda: [
            use for use in client.account.usage().lines if use.resource == f"batch-predictions/{batch.id}" and use.metric == "predictions"
        ]
    )
    assert line.quantity == source.rows
    with pytest.raises(la.InvalidData, match="has no column 'mean_texture', which the model reads"):
        client.batch_predictions.create(trained, version, "again", columns=["diagnosis"])
    with pytest.raises(la.NotFound, match="did you mean wdbc"):
        client.batch_predictions.create("wdbcc", "wdbc@2", "again")


def test_weights_of_another_version(client: la.Client, trained: la.ModelVersion) -> None:
    spec = {**MLP, "dataset": "wdbc@2", "epochs": 1, "learning_rate": 1e-5}
    further = train(client, **spec, output_model="wdbc-further", init=trained.ref)
    anew = train(client, **spec, output_model="wdbc-anew")
    assert further.metrics["accuracy"] >= 0.94
    losses = [client.training_jobs.metrics(job, name="loss")[0].value for job in (further, anew)]
    assert losses[0] < losses[1] / 2


def test_same_spec_and_seed_same_weights(client: la.Client, trained: la.ModelVersion) -> None:
    spec = {**MLP, "dataset": "wdbc@2", "epochs": 2, "output_model": "wdbc-twice"}
    jobs = [client.training_jobs.create(**spec, seed=seed) for seed in (5, 5)]
    first, again = [client.training_jobs.wait(job, progress=False) for job in jobs]
    other = train(client, **spec, seed=6)
    assert digest(client, first) == digest(client, again) != digest(client, other)
    assert first.metrics == again.metrics


def test_texts(client: la.Client) -> None:
    chance = random.Random(3)
    good, bad = ("bright", "warm", "friendly", "clean"), ("dark", "cold", "rude", "dirty")
    plain = ("the", "room", "was", "and", "we", "stayed", "two", "nights")
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["review", "verdict"])
    for _ in range(300):
        liked = chance.random() < 0.5
        words = [*chance.choices(plain, k=6), *chance.choices(good if liked else bad, k=2)]
        chance.shuffle(words)
        table.writerow([" ".join(words), "good" if liked else "bad"])
    version = client.datasets.upload("reviews", text.getvalue().encode(), filename="reviews.csv")
    job = train(
        client,
        dataset=version.ref,
        task="text_classification",
        target="verdict",
        output_model="reviews",
        architecture="rnn",
        params={"cell": "gru", "hidden": 16, "embedding": 16, "max_length": 16},
        epochs=8,
        learning_rate=0.02,
        seed=1,
    )
    assert job.metrics["accuracy"] > 0.9
    assert job.progress and job.progress.epoch == 8


def test_cancel_takes_effect_within_two_seconds(platform: Platform, client: la.Client, trained: la.ModelVersion) -> None:
    job = client.training_jobs.create(**MLP, dataset="wdbc@2", output_model="wdbc-never", epochs=100_000)
    next(event for event in client.training_jobs.watch(job, timeout=60) if event.metric)
    processes = platform.find("training.engine")
    assert processes
    started = time.monotonic()
    client.training_jobs.cancel(job)
    _, alive = psutil.wait_procs(processes, timeout=5)
    ended = next(event.job for event in client.training_jobs.watch(job, timeout=10) if event.job and event.job.ended)
    seconds = time.monotonic() - started
    assert not alive
    assert ended.state == "cancelled"
    assert seconds < 2.0
    with pytest.raises(la.NotFound):
        client.models.version("wdbc-never")


@pytest.mark.parametrize("scales", [(1e-2, 1.0, 1e2), (1e-3, 1.0, 1e6)], ids=["hundredths to hundreds", "thousandths to millions"])
def test_least_squares_as_scikit_learn_has_it(client: la.Client, scales: tuple[float, ...]) -> None:
    chance = np.random.default_rng(11)
    columns = {f"x{scale:g}": chance.normal(scale, scale, 400) for scale in scales}
    features = pd.DataFrame(columns)
    target = pd.Series(sum(2.0 / scale * features[name] for name, scale in zip(columns, scales, strict=True)), name="y")
    target += 1 + chance.normal(0, 0.1, 400)
    expected = LinearRegression().fit(features, target).predict(features)
    with la.LinearRegression(client=client) as model:
        predicted = model.fit(features, target).predict(features)
        ours, theirs = la.mean_squared_error(target, predicted), la.mean_squared_error(target, expected)
        assert ours == pytest.approx(theirs, rel=1e-6)
        np.testing.assert_allclose(predicted, expected, rtol=1e-6, atol=1e-6)
        model.delete()


class TestTheSmallestProgram:
    """examples/quickstart.py as it stands, with `LEPTON_API_KEY=your_api_key lepton up` beside it."""

    @pytest.fixture
    def quick(self, tmp_path: Path) -> Iterator[Platform]:
        platform = Platform(tmp_path / "home", _default_port_or_another(), key="your_api_key")
        try:
            yield platform.up()
            platform.down()
        finally:
            for process in platform.processes():
                process.kill()

    def test_it_runs_as_it_stands(self, quick: Platform, tmp_path: Path) -> None:
        chance = np.random.default_rng(5)
        data = pd.DataFrame({"feature": chance.normal(3, 2, 1000)})
        data["target"] = 2.5 * data["feature"] - 4 + chance.normal(0, 0.5, 1000)
        data.to_csv(tmp_path / "data.csv", index=False)
        read = pd.read_csv(tmp_path / "data.csv")
        expected = LinearRegression().fit(read[["feature"]], read["target"]).predict(read[["feature"]])

        environment = {name: value for name, value in os.environ.items() if not name.startswith("LEPTON_")}
        if quick.port != 8080:
            environment["LEPTON_URL"] = quick.url
        program = [sys.executable, str(ROOT / "examples" / "quickstart.py")]
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        name, _, value = done.stdout.strip().rpartition(": ")
        assert name == "Mean Squared Error"
        assert float(value) == pytest.approx(((read["target"] - expected) ** 2).mean(), rel=1e-6)
        # What it made for its predictions is gone with it; the model stays.
        with quick.client() as client:
            assert list(client.endpoints.list()) == []
            assert [model.latest_version for model in client.models.list()] == [1]


def _default_port_or_another() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8080))
        except OSError:
            return free_port()
    return 8080
