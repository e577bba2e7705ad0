"""The main job by the command line, as somebody types it: what it prints, what it exits with, and that every verb explains itself."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from leptonai._cli import NOUNS, _app
from services.standalone.demo import data
from tests.platform import Platform, eventually, free_port, lepton

CARD = "---\nlicense: apache-2.0\n---\n# Breast check\nSays whether a tumour is malignant.\n"


class Shell:
    """A terminal of one workspace: its key is in the environment."""

    def __init__(self, platform: Platform, key: str) -> None:
        self.env = {**platform.env, "LEPTON_API_KEY": key, "NO_COLOR": "1"}

    def run(self, *words: str, code: int = 0, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        done = lepton(*words, env=self.env, stdin=stdin)
        assert done.returncode == code, f"lepton {' '.join(words)}\n{done.stdout}{done.stderr}"
        if code in (2, 3):
            assert len(done.stderr.splitlines()) == 2, done.stderr
            assert done.stderr.startswith("error: ")
            assert done.stdout == ""
        return done

    def json(self, *words: str, stdin: str = "") -> Any:
        """One document on stdout, and nothing anywhere else."""
        done = self.run(*words, "--json", stdin=stdin)
        assert done.stderr == ""
        return json.loads(done.stdout)

    def lines(self, *words: str) -> list[Any]:
        """A document a line, and nothing anywhere else."""
        done = self.run(*words, "--json")
        assert done.stderr == ""
        return [json.loads(line) for line in done.stdout.splitlines()]


def shell_of(platform: Platform, workspace: str) -> Shell:
    """A workspace of its own, so that other journeys' names are out of the way."""
    made = Shell(platform, platform.key).json("account", "create-workspace", workspace)
    return Shell(platform, made["secret"])


@pytest.fixture(scope="module")
def seller(platform: Platform) -> Shell:
    return shell_of(platform, "cli-clinic")


@pytest.fixture(scope="module")
def buyer(platform: Platform) -> Shell:
    return shell_of(platform, "cli-hospital")


@pytest.fixture(scope="module")
def trained(seller: Shell, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Upload, clean, split and train; the job as `train show` has it."""
    file = tmp_path_factory.mktemp("cli") / "wdbc.csv"
    file.write_bytes(data.dirty_table())
    version = seller.json("dataset", "upload", "wdbc", str(file))
    assert (version["number"], version["state"], version["rows"]) == (1, "ready", 599)
    steps = [
        "rename:Diagnosis=diagnosis",
        "drop_missing:diagnosis",
        "derive:diagnosis=upper(substr(trim(diagnosis), 1, 1))",
        "dedupe",
        "impute:strategy=median",
        "split:test=0.2,seed=7,stratify=diagnosis",
    ]
    cleaned = seller.json("dataset", "transform", "wdbc@1", *(word for step in steps for word in ("--step", step)))
    assert (cleaned["number"], cleaned["lineage"]["source"]) == (2, "wdbc@1")
    assert [split["name"] for split in cleaned["splits"]] == ["train", "test"]
    options = {
        "--dataset": "wdbc@2",
        "--task": "classification",
        "--target": "diagnosis",
        "--architecture": "mlp",
        "--param": "hidden=[64,64]",
        "--output-model": "wdbc",
        "--epochs": "30",
        "--batch-size": "32",
        "--lr": "0.001",
        "--seed": "7",
    }
    events = seller.lines("train", "submit", *(word for option in options.items() for word in option), "--watch")
    assert {event["event"] for event in events} >= {"job", "metric"}
    assert events[-1]["data"]["state"] == "succeeded"
    job: dict[str, Any] = seller.json("train", "show", events[-1]["data"]["id"])
    assert job == {**job, "state": "succeeded", "model_version": "wdbc@1"}
    assert job["metrics"]["accuracy"] >= 0.94
    return job


@pytest.fixture(scope="module")
def serving(seller: Shell, trained: dict[str, Any]) -> Iterator[str]:
    endpoint = seller.json("endpoint", "create", "wdbc", "--model", trained["model_version"])
    assert endpoint["state"] == "ready"
    yield "wdbc"
    assert seller.json("endpoint", "delete", "wdbc") == {"deleted": "wdbc"}


def test_data_and_training(seller: Shell, trained: dict[str, Any], tmp_path: Path) -> None:
    assert len(seller.json("dataset", "preview", "wdbc@2", "--rows", "5", "--split", "test")["rows"]) == 5
    assert seller.json("dataset", "profile", "wdbc@1")["duplicate_rows"] > 0
    done = seller.json("dataset", "download", "wdbc@2", str(tmp_path / "test.parquet"), "--split", "test")
    assert Path(done["path"]).read_bytes()[:4] == b"PAR1"

    losses = [point["value"] for point in seller.json("train", "metrics", trained["id"], "--name", "loss")]
    assert losses[-1] < losses[0]
    assert [job["id"] for job in seller.json("train", "list", "--state", "succeeded")] == [trained["id"]]
    assert isinstance(seller.json("train", "logs", trained["id"]), list)
    watched = seller.run("train", "watch", trained["id"])
    assert watched.stdout.splitlines()[-1].startswith("wdbc@1: ")

    model = seller.json("model", "show", "wdbc@1")
    assert model["metrics"] == trained["metrics"]
    files = seller.json("model", "download", "wdbc@1", str(tmp_path / "model"))["paths"]
    assert "weights.safetensors" in {Path(path).name for path in files}

    # For people: ids and names are there to be copied.
    assert "mlp" in seller.run("model", "versions", "wdbc").stdout
    assert trained["id"] in seller.run("train", "list").stdout


def test_endpoint(seller: Shell, serving: str, tmp_path: Path) -> None:
    record, truth = data.a_row(3)
    (tmp_path / "records.json").write_text(json.dumps([record, record]))
    by_file = seller.json("endpoint", "predict", serving, "-f", str(tmp_path / "records.json"))
    assert [answer["prediction"] for answer in by_file["predictions"]] == [truth, truth]
    assert seller.json("endpoint", "predict", serving, "-f", "-", stdin=json.dumps(record))["predictions"] == by_file["predictions"][:1]
    assert seller.json("endpoint", "predict", serving, "--record", json.dumps(record))["predictions"] == by_file["predictions"][:1]
    wrong = seller.run("endpoint", "predict", serving, "--record", json.dumps({**record, "mean_radius": "wide"}), code=2)
    assert "mean_radius" in wrong.stderr
    assert [each["name"] for each in seller.json("endpoint", "list")] == [serving]


def test_market_and_money(seller: Shell, buyer: Shell, serving: str, tmp_path: Path) -> None:
    record, truth = data.a_row(3)
    card = tmp_path / "card.md"
    card.write_text(CARD)
    publish = ("market", "publish", "cli-breast-check", "--endpoint", serving, "--title", "Breast check", "--card", str(card))
    assert seller.json(*publish, "--price", "0.002")["state"] == "published"
    assert "cli-breast-check" in {listing["slug"] for listing in buyer.json("market", "list", "--query", "breast")}
    assert "malignant" in buyer.run("market", "show", "cli-breast-check").stdout

    ask = ("market", "invoke", "cli-breast-check", "--record", json.dumps(record))
    assert "lepton market subscribe" in buyer.run(*ask, code=2).stderr
    buyer.json("market", "subscribe", "cli-breast-check")
    for _ in range(2):
        assert [answer["prediction"] for answer in buyer.json(*ask)["predictions"]] == [truth]
    buyer.json("market", "review", "cli-breast-check", "--stars", "5", "--text", "agrees with our lab")
    assert [review["stars"] for review in buyer.json("market", "reviews", "cli-breast-check")] == [5]

    def earned() -> list[Any]:
        lines: list[Any] = seller.json("account", "earnings")["lines"]
        return lines if sum(line["quantity"] for line in lines) == 2 else []

    (line,) = eventually(earned, interval=0.3)
    assert (line["listing"], line["buyer"], line["gross"]["micros"]) == ("cli-breast-check", "cli-hospital", 4000)
    assert "cli-breast-check" in seller.run("account", "earnings").stdout
    invoice = buyer.json("account", "invoice")
    assert [row["amount"]["micros"] for row in invoice["lines"] if "cli-breast-check" in row["resource"]] == [4000]
    assert buyer.json("account", "invoice", invoice["number"]) == invoice
    assert invoice["number"] in buyer.run("account", "invoices").stdout
    used = eventually(lambda: {row["metric"] for row in seller.json("account", "usage")["lines"]} >= {"cpu_seconds"}, interval=0.3)
    assert used
    assert seller.json("market", "withdraw", "cli-breast-check")["state"] == "withdrawn"


def test_trace_and_machines(seller: Shell, trained: dict[str, Any]) -> None:
    trace = seller.json("trace", trained["trace_id"])
    assert {span["service"] for span in trace["spans"]} >= {"gateway", "training", "compute"}
    drawn = seller.run("trace", trained["trace_id"]).stdout
    assert trained["trace_id"] in drawn
    assert "├─" in drawn
    # Beside nodes that were lost not long ago.
    ready = [node for node in seller.json("compute", "nodes") if node["state"] == "ready"]
    assert ready
    assert all(node["cpu_millis"] >= 1000 for node in ready)
    assert [each["state"] for each in seller.json("compute", "allocations") if trained["id"] in each["holder"]] == ["released"]


def test_account(seller: Shell) -> None:
    me = seller.json("account", "me")
    assert (me["workspace"]["name"], me["role"]) == ("cli-clinic", "owner")
    assert {plan["name"] for plan in seller.json("account", "plans")} >= {"trial", "pro"}
    assert seller.json("account", "set-member", "ada@acme.org", "editor")["role"] == "editor"
    assert {member["email"] for member in seller.json("account", "members")} >= {"ada@acme.org"}
    made = seller.json("account", "create-key", "ci", "--role", "viewer")
    other = Shell.__new__(Shell)
    other.env = {**seller.env, "LEPTON_API_KEY": made["secret"]}
    assert other.json("account", "me")["role"] == "viewer"
    assert "role" in other.run("dataset", "delete", "wdbc", code=2).stderr
    assert seller.json("account", "revoke-key", made["api_key"]["id"])["revoke_time"]
    refused = other.run("account", "me", code=2)
    assert "unknown or revoked" in refused.stderr


def test_exit_codes(seller: Shell, trained: dict[str, Any]) -> None:
    # 2: the request. Two lines say what is wrong, and what would be right.
    job = ("--dataset", "wdbc@2", "--task", "classification", "--target", "targte", "--architecture", "mlp", "--output-model", "x")
    assert "targte" in seller.run("train", "submit", *job, code=2).stderr
    assert "lepton dataset list" in seller.run("dataset", "show", "nothing-here", code=2).stderr
    assert "no step" in seller.run("dataset", "transform", "wdbc", "--step", "polish", code=2).stderr
    assert "cannot read" in seller.run("dataset", "upload", "x", "/nowhere/at/all.csv", code=2).stderr
    assert "--help" in seller.run("dataset", "upload", code=2).stderr
    assert "--help" in seller.run("dataset", "uplaod", code=2).stderr
    assert "LEPTON_API_KEY" in seller.run("--api-key", "nobody", "account", "me", code=2).stderr
    # 3: nobody there.
    assert "lepton up" in seller.run("--url", f"http://127.0.0.1:{free_port()}", "account", "me", code=3).stderr
    # 1: what was asked for was right, and failed there.
    spec = {
        "dataset": "wdbc@2",
        "task": "regression",
        "target": "mean_area",
        "output_model": "diverging",
        "model": {"architecture": "linear"},
        "training": {"epochs": 30, "batch_size": 8, "learning_rate": 10, "optimizer": "sgd"},
    }
    failed = seller.run("train", "submit", "-f", "-", "--watch", code=1, stdin=json.dumps(spec))
    assert len(failed.stderr.splitlines()) >= 2
    assert "learning rate" in failed.stderr.replace("_", " ")


def commands() -> list[tuple[str, ...]]:
    """Every verb, by walking the application."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if not hasattr(command, "commands"):
            yield words
            return
        for name, each in command.commands.items():
            yield from walk(each, (*words, name))

    return list(walk(typer.main.get_command(_app([])), ()))


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_verb_has_an_example(words: tuple[str, ...]) -> None:
    command: Any = typer.main.get_command(_app([words[0]]))
    for word in words:
        command = command.commands[word]
    assert f"Example: lepton {' '.join(words)}" in (command.help or "")
    assert command.help[0].isupper()
    if words[0] in NOUNS or words == ("trace",):
        assert "--json" in {option for parameter in command.params for option in parameter.opts}


def test_help_as_a_user_sees_it() -> None:
    assert len(commands()) > 45
    for words in ((), ("dataset",), ("train", "submit"), ("up",)):
        done = lepton(*words, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert "lepton" in done.stdout
    assert "Exit codes" in lepton("--help").stdout
