"""The command line: exit codes, two lines of error, JSON and nothing else."""

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fake_platform import KEY, TRACE, FakePlatform, event, problem

import leptonai as la
from leptonai._cli import main
from leptonai._cli._watch import plot
from leptonai._cli.dataset import step_of
from leptonai._cli.trace import bar, branches

JOB = {"dataset": "d@1", "task": "classification", "target": "y", "output_model": "m", "model": {"architecture": "mlp"}}


class Lepton:
    """Runs `lepton` in this process."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.url = url
        self._capsys = capsys

    def __call__(self, *words: str, key: str = KEY) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--url", self.url, "--api-key", key])
        out, err = self._capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), out, err


@pytest.fixture
def lepton(platform: FakePlatform, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Lepton:
    for name in ("LEPTON_API_KEY", "LEPTON_URL"):
        monkeypatch.delenv(name, raising=False)
    return Lepton(platform.url, capsys)


def two(err: str) -> tuple[str, str]:
    lines = err.splitlines()
    assert len(lines) == 2, err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  fix: ")
    return lines[0], lines[1]


def test_names_of_an_onnx_file_are_given_with_commas_or_as_a_file(lepton: Lepton, platform: FakePlatform, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    (tmp_path / "classes.txt").write_text("yes, of course\nno\n")
    classes = f"@{tmp_path}/classes.txt"
    code, _, err = lepton("model", "push", "mine", str(tmp_path / "net.onnx"), "--features", "a, b", "--classes", classes)
    assert code == 0, err
    with zipfile.ZipFile(io.BytesIO(platform.asked("PUT", "/v1/models/mine/content")[0]["body"])) as archive:
        assert json.loads(archive.read("names.json")) == {"features": ["a", "b"], "classes": ["yes, of course", "no"]}
    code, _, err = lepton("model", "push", "mine", str(tmp_path / "net.onnx"), "--classes", "@nowhere")
    assert code != 0 and "cannot read nowhere" in two(err)[0]


def test_json_is_the_only_thing_on_stdout(lepton: Lepton, platform: FakePlatform, tmp_path: Path) -> None:
    data, job = tmp_path / "d.csv", tmp_path / "job.json"
    data.write_text("x,y\n1,2\n")
    (tmp_path / "model.py").write_text("class Model: ...\n")
    job.write_text(json.dumps(JOB))
    for words, check in [
        (["dataset", "upload", "d", str(data)], lambda v: v["number"] == 1),
        (["dataset", "list"], lambda v: v[0]["name"] == "d"),
        (["dataset", "show", "d@1"], lambda v: v["state"] == "ready"),
        (["dataset", "preview", "d"], lambda v: v["rows"] == [{"x": "1", "y": "2"}]),
        (["dataset", "transform", "d", "--step", "dedupe"], lambda v: v["lineage"]["steps"] == [{"dedupe": {}}]),
        (["dataset", "download", "d", str(tmp_path)], lambda v: v["size_bytes"] == 3_000_004),
        (["train", "submit", "-f", str(job)], lambda v: v["id"] == "job-1"),
        (["train", "list"], lambda v: len(v) == 1),
        (["train", "logs", "job-1"], lambda v: v[0]["stream"] == "stdout"),
        (["model", "show", "m"], lambda v: v["number"] == 1),
        (["model", "push", "mine", str(tmp_path)], lambda v: v["source"] == "uploaded"),
        (
            ["batch", "predict", "d@1", "-m", "m", "-o", "answers", "--columns", "x"],
            lambda v: (v["state"], v["rows_done"]) == ("succeeded", 4),
        ),
        (["batch", "predict", "d@1", "-m", "m", "-o", "more", "--detach"], lambda v: v["state"] == "queued"),
        (["batch", "cancel", "bp-2"], lambda v: v["state"] == "cancelled"),
        (["batch", "list"], lambda v: [batch["output"] for batch in v] == ["answers", "more"]),
        (["endpoint", "create", "e", "-m", "m@1"], lambda v: v["state"] == "ready"),
        (["endpoint", "predict", "e", "-r", '{"x": 1}'], lambda v: v == {"predictions": [1.0]}),
        (["endpoint", "delete", "e"], lambda v: v == {"deleted": "e"}),
        (["account", "me"], lambda v: v["surprise"] == 7),
        (["trace", TRACE], lambda v: len(v["spans"]) == 4),
    ]:
        code, out, err = lepton(*words, "--json")
        assert (code, err) == (0, ""), words
        assert check(json.loads(out)), words


def test_people_get_tables(lepton: Lepton, platform: FakePlatform) -> None:
    platform.datasets = {"wdbc": [{"dataset": "wdbc", "number": 1, "rows": 569}]}
    assert "wdbc" in lepton("dataset", "list")[1]
    assert "ada@acme.org, owner of acme (trial)" in lepton("account", "me")[1]
    code, out, _ = lepton("trace", TRACE)
    assert code == 0
    assert "└─ train" in out
    assert "3.00 s" in out


def test_what_the_platform_refuses_is_two_lines_and_2(lepton: Lepton, platform: FakePlatform, tmp_path: Path) -> None:
    code, out, err = lepton("train", "submit", "--dataset", "d", "--output-model", "m", "--lr=-1")
    assert (code, out) == (2, "")
    what, fix = two(err)
    assert what == "error: training.learning_rate: -1 is not a learning rate: use a number above 0"
    assert fix == f"  fix: accepted: 0.001 (trace {TRACE})"
    assert lepton("dataset", "show", "nope")[0] == 2
    assert "lepton dataset list" in two(lepton("dataset", "show", "nope")[2])[1]
    bad = tmp_path / "bad.csv"
    bad.write_bytes(b"\xff\xfe")
    code, _, err = lepton("dataset", "upload", "d", str(bad))
    assert code == 2
    assert "line 1" in two(err)[0]
    several = [{"field": "a", "message": "is wrong"}, {"field": "b\n\x1b[31m", "message": "too", "suggestions": ["c"]}]
    platform.script["GET /v1/me"] = [problem(422, "invalid_spec", "two things\nare wrong", errors=several)]
    what, fix = two(lepton("account", "me")[2])
    assert what == "error: a: two things are wrong"
    assert fix.startswith("  fix: a: is wrong; b [31m: too (accepted: c)")


def test_a_batch_prediction_that_failed_says_why(lepton: Lepton, platform: FakePlatform) -> None:
    problem = {"code": "invalid_data", "detail": "row 1 lacks 'a'; drop such rows", "errors": []}
    platform.batches["bp-1"] = {"id": "bp-1", "state": "failed", "reason": "", "error": problem}
    code, out, err = lepton("batch", "wait", "bp-1")
    assert (code, out) == (1, "")
    assert two(err) == (
        "error: batch prediction bp-1 failed: row 1 lacks 'a'; drop such rows",
        "  fix: look at it with `lepton batch show bp-1`",
    )


def test_a_used_up_quota_says_what_is_left_and_who_has_more(lepton: Lepton, platform: FakePlatform) -> None:
    platform.script["POST /v1/training-jobs"] = [
        problem(403, "quota_exceeded", "no jobs left", limit=2, used=2, remaining=0, plans=["pro"])
    ]
    code, _, err = lepton("train", "submit", "--dataset", "d", "--output-model", "m")
    assert code == 2
    assert "limit 2, used 2, remaining 0; more with the plan pro: `lepton account set-plan pro`" in two(err)[1]


def test_exit_codes(lepton: Lepton, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for status, code, wanted in [
        (401, "unauthenticated", 2),
        (403, "forbidden", 2),
        (400, "x", 2),
        (409, "name_taken", 2),
        (500, "internal", 1),
    ]:
        platform.script["GET /v1/me"] = [problem(status, code, "no")]
        got, out, err = lepton("account", "me")
        assert (got, out) == (wanted, "")
        two(err)
    assert lepton("account", "me", key="wrong")[0] == 2
    nobody = Lepton("http://127.0.0.1:9", capsys)
    code, _, err = nobody("account", "me")
    assert code == 3
    assert "http://127.0.0.1:9" in two(err)[0]
    assert "lepton up" in two(err)[1]
    monkeypatch.setattr(la._account.Account, "me", _interrupt)
    assert lepton("account", "me")[0] == 130


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "words",
    [
        ["train", "submit"],
        ["train", "submit", "--lr", "fast"],
        ["train", "submit", "--lr", "nan", "--dataset", "d"],
        ["train", "submit", "--param", "hidden"],
        ["train", "submit", "-f", "/nonexistent"],
        ["dataset", "upload", "d", "/nonexistent.csv"],
        ["dataset", "upload", "d"],
        ["dataset", "show", "d@0"],
        ["dataset", "frob"],
        ["dataset", "transform", "d"],
        ["dataset", "transform", "d", "--step", "inpute:mean"],
        ["dataset", "preview", "d", "--rows", "0"],
        ["endpoint", "predict", "e"],
        ["endpoint", "predict", "e", "-r", "{"],
        ["market", "review", "s", "--stars", "6"],
        ["nonsense"],
        ["trace"],
        ["--frob"],
    ],
)
def test_a_wrong_command_line_is_two_lines_and_2(lepton: Lepton, platform: FakePlatform, words: list[str]) -> None:
    code, out, err = lepton(*words)
    assert (code, out) == (2, "")
    two(err)
    assert not platform.requests


@pytest.mark.parametrize("text", ["{", "", "[1", '{"a": NaN', "\x00", "7", "[]", '"x"'])
def test_a_job_that_is_no_job(lepton: Lepton, platform: FakePlatform, tmp_path: Path, text: str) -> None:
    job = tmp_path / "job.json"
    job.write_text(text)
    code, out, err = lepton("train", "submit", "-f", str(job))
    assert (code, out) == (2, "")
    assert "job.json" in two(err)[0]
    assert not platform.requests


def test_options_override_the_file(lepton: Lepton, platform: FakePlatform, tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text(json.dumps({**JOB, "training": {"epochs": 3, "seed": 7}}))
    words = ["--epochs", "9", "--param", "hidden=[8,8]", "--param", "activation=tanh", "--patience", "2", "--features", "a, b"]
    assert lepton("train", "submit", "-f", str(job), *words)[0] == 0
    sent = json.loads(platform.requests[0]["body"])
    assert sent["training"] == {"epochs": 9, "seed": 7, "early_stopping": {"patience": 2}}
    assert sent["model"] == {"architecture": "mlp", "params": {"hidden": [8, 8], "activation": "tanh"}}
    assert sent["features"] == ["a", "b"]


def test_watch_in_plain_lines_and_as_json(lepton: Lepton, platform: FakePlatform) -> None:
    job = {"id": "job-1", "state": "succeeded", "model_version": "m@1", "metrics": {"accuracy": 0.97}}
    platform.jobs["job-1"] = job
    platform.events = [
        event("0", "job", {**job, "state": "queued", "reason": "waits for a cpu"}),
        event("1", "metric", {"name": "loss", "epoch": 1, "value": 0.5}),
        event("2", "metric", {"name": "validation_loss", "epoch": 1, "value": 0.6}),
        event("3", "metric", {"name": "loss", "epoch": 2, "value": 0.25}),
        event("4", "log", {"stream": "stderr", "text": "careful \x1b[2J"}),
        event("5", "job", job),
    ]
    code, out, _ = lepton("train", "watch", "job-1")
    assert code == 0
    assert out.splitlines() == [
        "job-1 queued: waits for a cpu",
        "epoch 1  loss 0.5  validation_loss 0.6",
        "careful [2J",
        "epoch 2  loss 0.25",
        "job-1 succeeded",
        "m@1: accuracy 0.97",
    ]
    code, out, _ = lepton("train", "watch", "job-1", "--json")
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["job", "metric", "metric", "metric", "log", "job"]


def test_a_failed_job_is_1(lepton: Lepton, platform: FakePlatform) -> None:
    error = {"code": "loss_diverged", "detail": "the loss became NaN; use a lower learning rate"}
    platform.jobs["job-1"] = {"id": "job-1", "state": "failed", "error": error}
    platform.events = [event("1", "job", platform.jobs["job-1"])]
    code, _, err = lepton("train", "watch", "job-1")
    assert code == 1
    assert "the loss became NaN" in two(err)[0]
    assert "lepton train logs job-1" in two(err)[1]


def test_ctrl_c_leaves_the_job_running_and_says_so(lepton: Lepton, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(la._training_jobs.TrainingJobs, "watch", _interrupt)
    code, _, err = lepton("train", "watch", "job-1")
    assert code == 130
    assert "job-1 goes on" in err


def test_logs_do_not_steer_the_terminal(lepton: Lepton, platform: FakePlatform) -> None:
    platform.jobs["job-1"] = {"id": "job-1"}
    assert lepton("train", "logs", "job-1")[1] == "hello [31mred\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("dedupe", {"dedupe": {}}),
        ("dedupe:id, name", {"dedupe": {"columns": ["id", "name"]}}),
        ("impute:strategy=median", {"impute": {"strategy": "median"}}),
        ("impute:constant,columns=[a,b],value=0", {"impute": {"strategy": "constant", "columns": ["a", "b"], "value": 0}}),
        ('impute:strategy=mean,columns=["a,b"]', {"impute": {"strategy": "mean", "columns": ["a,b"]}}),
        ("cast:age=double", {"cast": {"column": "age", "type": "double"}}),
        ("cast:column=age,type=double,lenient=true", {"cast": {"column": "age", "type": "double", "lenient": True}}),
        ("filter:a > 0 AND b IN ('x', 'y=z')", {"filter": {"expression": "a > 0 AND b IN ('x', 'y=z')"}}),
        ("filter:expression=a=1", {"filter": {"expression": "a=1"}}),
        ("derive:d=upper(trim(d), 'x')", {"derive": {"column": "d", "expression": "upper(trim(d), 'x')"}}),
        ("derive:column=d,expression=a=b", {"derive": {"column": "d", "expression": "a=b"}}),
        ("rename:a=b", {"rename": {"column": "a", "to": "b"}}),
        ("drop-columns:id", {"drop_columns": {"columns": ["id"]}}),
        ('map_values:column=d,values={"m":"M","b":"B"}', {"map_values": {"column": "d", "values": {"m": "M", "b": "B"}}}),
        ("split:test=0.2,seed=7,stratify=d", {"split": {"test": 0.2, "seed": 7, "stratify": "d"}}),
    ],
)
def test_steps_in_shorthand(text: str, wanted: dict[str, Any]) -> None:
    assert step_of(text).to_json() == wanted


@pytest.mark.parametrize("text", ["", ":", "nope", "cast:", "cast:a", "rename:=b", "split:0.2"])
def test_steps_that_are_none(text: str) -> None:
    with pytest.raises(la.InvalidInput, match="--step"):
        step_of(text)


def test_plot() -> None:
    lines = plot([1.0, 0.5, 0.25, float("nan"), 0.1], 20, 4)
    assert len(lines) == 4
    assert (lines[0].split()[0], lines[-1].split()[0]) == ("1", "0.1")
    assert all(len(line) == 30 for line in lines)
    assert plot([float("nan")], 20, 4) == []
    assert len(plot([1.0, 1.0], 20, 4)) == 4


def test_tree_and_bars() -> None:
    assert branches([0, 1, 2, 1, 0]) == ["", "├─ ", "│  └─ ", "└─ ", ""]
    assert bar(0, 100, 100) == "█" * 30
    assert bar(100, 100, 100).strip() == "█"
    assert len(bar(-5, 1000, 100)) == 30


def test_platform_commands_come_from_entry_points(lepton: Lepton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leptonai._cli.entry_points", lambda group: [])
    code, _, err = lepton("up")
    assert code == 2
    assert "install lepton-platform" in two(err)[1]

    class Entry:
        def __init__(self, broken: bool) -> None:
            self.broken = broken

        def load(self) -> Any:
            if self.broken:
                raise ImportError("no module named services")
            return lambda app: app.command("up")(lambda: print("going up"))

    monkeypatch.setattr("leptonai._cli.entry_points", lambda group: [Entry(False)])
    monkeypatch.setattr("sys.argv", ["lepton", "up"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    monkeypatch.setattr("leptonai._cli.entry_points", lambda group: [Entry(True)])
    code, _, err = lepton("up")
    assert code == 2
    assert "no module named services" in two(err)[0]
    assert lepton("account", "me")[0] == 0


def test_every_verb_has_help_with_an_example(lepton: Lepton, capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    from leptonai._cli import _app

    root: Any = typer.main.get_command(_app([]))
    verbs = [[noun, verb] for noun, group in root.commands.items() for verb in getattr(group, "commands", {})]
    assert len(verbs) > 40
    for words in [*verbs, ["trace"], []]:
        code, out, err = lepton(*words, "--help")
        assert (code, err) == (0, "")
        assert "Example: lepton" in out, words
        assert not words or "--json" in out, words
    assert "130" in lepton("--help")[1]


def _run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = str(Path(la.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "leptonai", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
        check=False,
        timeout=30,
    )


def test_as_a_process(platform: FakePlatform) -> None:
    done = _run("account", "me", "--json", LEPTON_URL=platform.url, LEPTON_API_KEY=KEY)
    assert (done.returncode, done.stderr, json.loads(done.stdout)["role"]) == (0, "", "owner")
    done = _run("account", "me", LEPTON_URL="http://127.0.0.1:9", LEPTON_API_KEY=KEY)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 2)


def test_starts_fast_and_loads_little() -> None:
    done = _run("dataset", "transform", "d", "--step", "nope", LEPTON_API_KEY=KEY)
    assert done.returncode == 2
    started = time.monotonic()
    _run("dataset", "transform", "d", "--step", "nope", LEPTON_API_KEY=KEY)
    assert time.monotonic() - started < 1.5  # 0.3 s on an idle machine
    code = "import sys, leptonai; print([m for m in ('httpx', 'rich', 'typer', 'numpy', 'pandas', 'pyarrow') if m in sys.modules])"
    path = str(Path(la.__file__).parents[1])
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=True
    )
    assert loaded.stdout.strip() == "[]"
