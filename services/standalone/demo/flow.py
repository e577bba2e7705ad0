"""Data → model → endpoint → listing → another workspace's calls → invoice and earnings, by the client that everybody has."""

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import leptonai as la
from services.standalone.demo import data

Result = TypeVar("Result")

CARD = """---
license: apache-2.0
library_name: lepton
tags: [demo]
---
# {title}

Trained on {rows} rows, measured on {test_rows} that it had not seen: accuracy {accuracy:.3f}.
"""


@dataclass
class Stage:
    """What was done, how long it took, and what came of it."""

    name: str
    seconds: float
    result: str


@dataclass
class Flow:
    """The stages of the demonstration, in order; `on_stage` hears of each as it ends."""

    client: la.Client
    on_stage: Callable[[Stage], None]
    # Listings are named for everybody: a second demonstration on one platform takes another ending.
    listed_as: str = "demo"
    stages: list[Stage] = field(default_factory=list)

    def stage(self, name: str, work: Callable[[], Result], tell: Callable[[Result], str]) -> Result:
        """Does one piece of work."""
        started = time.perf_counter()
        result = work()
        stage = Stage(name, time.perf_counter() - started, tell(result))
        self.stages.append(stage)
        self.on_stage(stage)
        return result

    def table(self) -> la.ModelVersion:
        """The dirty table with an MLP."""
        client = self.client
        self.stage("upload a CSV", lambda: client.datasets.upload("wdbc", data.dirty_table(), filename="wdbc.csv"), _rows)
        cleaned = self.stage(
            "clean and split",
            lambda: client.datasets.transform(
                "wdbc@1",
                [
                    la.steps.rename("Diagnosis", "diagnosis"),
                    la.steps.drop_missing("diagnosis"),
                    la.steps.derive("diagnosis", "upper(substr(trim(diagnosis), 1, 1))"),
                    la.steps.dedupe(),
                    la.steps.impute("median"),
                    la.steps.split(test=0.2, seed=7, stratify="diagnosis"),
                ],
            ),
            _rows,
        )
        return self._train(
            dataset=f"wdbc@{cleaned.number}",
            task="classification",
            target="diagnosis",
            output_model="wdbc",
            architecture="mlp",
            params={"hidden": [64, 64]},
            epochs=30,
            batch_size=32,
            learning_rate=0.001,
            optimizer="adamw",
            seed=7,
        )

    def pictures(self) -> la.ModelVersion:
        """The digits with a CNN."""
        client = self.client
        self.stage("upload a ZIP of PNGs", lambda: client.datasets.upload("digits", data.pictures(), filename="digits.zip"), _rows)
        split = self.stage(
            "split",
            lambda: client.datasets.transform("digits@1", [la.steps.split(test=0.2, seed=7, stratify="label")]),
            _rows,
        )
        return self._train(
            dataset=f"digits@{split.number}",
            task="image_classification",
            output_model="digits",
            architecture="cnn",
            epochs=20,
            batch_size=64,
            learning_rate=0.003,
            optimizer="adamw",
            seed=7,
        )

    def _train(self, **spec: Any) -> la.ModelVersion:
        def train() -> la.TrainingJob:
            return self.client.training_jobs.wait(self.client.training_jobs.create(**spec), progress=False)

        job = self.stage(
            f"train a {spec['architecture']}",
            train,
            lambda job: f"{job.progress.epoch if job.progress else 0} epochs → {job.model_version}, accuracy {job.metrics['accuracy']:.4f}",
        )
        return self.client.models.version(job.model_version)

    def deploy(self, version: la.ModelVersion, record: dict[str, Any], truth: str) -> None:
        """An endpoint that answers raw records."""
        client, name = self.client, version.model

        def deploy() -> la.Endpoint:
            client.endpoints.create(name, f"{name}@{version.number}")
            return client.endpoints.wait_ready(name)

        self.stage("deploy", deploy, lambda endpoint: f"{endpoint.name}: {endpoint.ready_replicas} replica ready")
        self.stage(
            "predict",
            lambda: client.endpoints.predict(name, [record])[0],
            lambda answer: f"{answer['prediction']} (truth {truth}), p = {answer['probabilities'][answer['prediction']]:.3f}",
        )

    def clear(self) -> None:
        """Ends what would go on: the listings and the endpoints."""
        for listing in list(self.client.listings.list()):
            if listing.slug.endswith(f"-{self.listed_as}"):
                self.client.listings.withdraw(listing.slug)
        for endpoint in list(self.client.endpoints.list()):
            self.client.endpoints.delete(endpoint.name)

    def sell(self, version: la.ModelVersion, record: dict[str, Any], calls: int, buyer: la.Client) -> None:
        """A listing, and another workspace that subscribes to it and calls it."""
        name, slug = version.model, f"{version.model}-{self.listed_as}"
        card = CARD.format(title=name, rows=version.training_rows, test_rows=version.test_rows, accuracy=version.metrics["accuracy"])
        self.stage(
            "publish",
            lambda: self.client.listings.create(slug, endpoint=name, title=f"{name} demo", card=card, price="0.002"),
            lambda listing: f"{listing.slug} at {listing.price.per_row if listing.price else '?'} a row",
        )

        def call() -> int:
            buyer.listings.subscribe(slug)
            return len(buyer.listings.invoke(slug, [record] * calls))

        self.stage("another workspace subscribes and calls", call, lambda rows: f"{rows} rows answered")


def table_record(index: int = 3) -> tuple[dict[str, Any], str]:
    """A raw record of the table, and its truth."""
    return data.a_row(index)


def picture_record(index: int = 12) -> tuple[dict[str, Any], str]:
    """A raw picture."""
    png, truth = data.a_picture(index)
    return {"image": base64.b64encode(png).decode()}, truth


def bill(buyer: la.Client, publisher: la.Client, rows: int, timeout: float = 15.0) -> tuple[la.Invoice, la.Earnings]:
    """The buyer's invoice and the publisher's earnings, once the events of `rows` sold rows have arrived."""
    deadline = time.monotonic() + timeout
    while sum(line.quantity for line in publisher.account.earnings().lines) < rows:
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout:g} s the ledger does not know all of {rows} sold rows")
        time.sleep(0.1)
    return buyer.account.create_invoice(), publisher.account.earnings()


def _rows(version: la.DatasetVersion) -> str:
    splits = ", ".join(f"{split.name} {split.rows}" for split in version.splits)
    return f"{version.dataset}@{version.number}: {version.rows} rows ({splits}), {len(version.columns)} columns"
