"""`lepton train`."""

import sys
from typing import Annotated, Any

import typer

from leptonai._cli._run import SHOWN, Json, Limit, Usage, client, print_json, read_object, say, show, show_list, value_of
from leptonai._cli._watch import watcher
from leptonai._client import Client
from leptonai._errors import JobFailed
from leptonai._record import clean

app = typer.Typer()

Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the job.")]


@app.command()
def submit(
    file: Annotated[str, typer.Option("--file", "-f", help="JSON file with the job; - is stdin. Options override it.")] = "",
    dataset: Annotated[str | None, typer.Option(help="NAME or NAME@N.")] = None,
    task: Annotated[
        str | None, typer.Option(help="regression, classification, image_classification, text_classification, text_generation.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    features: Annotated[str | None, typer.Option(help="Columns to predict from, with commas between. Default: all others.")] = None,
    architecture: Annotated[str | None, typer.Option(help="linear, mlp, cnn, rnn, transformer.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="Of the architecture, such as hidden=[64,64]; may be given again.")] = None,
    init: Annotated[str | None, typer.Option(help="random, or the model version to start from.")] = None,
    output_model: Annotated[str | None, typer.Option(help="Name of the model that it makes.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job.")] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    lr: Annotated[float | None, typer.Option("--lr", "--learning-rate", help="Learning rate.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam, adamw, lbfgs.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without improvement.")] = None,
    validation_fraction: Annotated[float | None, typer.Option()] = None,
    test_fraction: Annotated[float | None, typer.Option()] = None,
    double_precision: Annotated[bool | None, typer.Option("--double-precision/--single-precision")] = None,
    time_limit: Annotated[int | None, typer.Option(help="Seconds.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that train one model together, each with the resources asked for.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="cpu, gpu, tpu.")] = None,
    count: Annotated[int | None, typer.Option(help="How many cores or devices.")] = None,
    memory: Annotated[int | None, typer.Option(help="Bytes of main memory.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and draw the loss as it falls.")] = False,
    json: Json = False,
) -> None:
    """Start a training job.

    Example: lepton train submit --dataset wdbc@2 --task classification --target diagnosis --architecture mlp --param hidden=[64,64]
    --epochs 30 --lr 0.001 --output-model wdbc --watch
    """
    options = {
        "dataset": dataset,
        "task": task,
        "target": target,
        "features": [part.strip() for part in features.split(",")] if features else None,
        "output_model": output_model,
        "name": name,
        "architecture": architecture,
        "params": dict(_param(text) for text in param) if param else None,
        "init": init,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": lr,
        "optimizer": optimizer,
        "seed": seed,
        "weight_decay": weight_decay,
        "early_stopping": patience,
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "double_precision": double_precision,
        "time_limit_seconds": time_limit,
        "workers": workers,
        "accelerator": accelerator,
        "count": count,
        "memory_bytes": memory,
    }
    if not file and all(value is None for value in options.values()):
        raise Usage(
            "no job is given", "lepton train submit -f job.json, or --dataset NAME --task TASK --target COLUMN --architecture mlp …"
        )
    spec = read_object(file, "the job") if file else None
    lepton = client()
    given: dict[str, Any] = options
    job = lepton.training_jobs.create(spec, **given)
    if watch:
        _follow(lepton, job.id, json)
    else:
        show(job, json, f"{job.id} is {job.state}: lepton train watch {job.id}")


@app.command("list")
def list_(
    state: Annotated[str, typer.Option(help="queued, starting, running, succeeded, failed, cancelled.")] = "",
    limit: Limit = SHOWN,
    json: Json = False,
) -> None:
    """List training jobs, newest first.

    Example: lepton train list --state running
    """
    columns = ("id", "name", "state", "dataset", "task", "model_version", "progress", "create_time")
    show_list(client().training_jobs.list(state=state), columns, json, limit, "no training jobs yet: lepton train submit --help")


@app.command("show")
def show_(id: Id, json: Json = False) -> None:
    """Show one job.

    Example: lepton train show job-0192
    """
    show(client().training_jobs.get(id), json)


@app.command()
def watch(id: Id, json: Json = False) -> None:
    """Follow a job to its end: the loss as it falls, and what it writes. With --json one event a line.

    Example: lepton train watch job-0192
    """
    _follow(client(), id, json)


@app.command()
def cancel(id: Id, json: Json = False) -> None:
    """End a job.

    Example: lepton train cancel job-0192
    """
    job = client().training_jobs.cancel(id)
    show(job, json, f"{job.id} is {job.state}")


@app.command()
def logs(id: Id, json: Json = False) -> None:
    """Print what a job has written.

    Example: lepton train logs job-0192
    """
    lines = client().training_jobs.logs(id)
    if json:
        print_json(list(lines))
        return
    for line in lines:
        sys.stdout.write(clean(line.text) + "\n")


@app.command()
def metrics(id: Id, name: Annotated[str, typer.Option(help="Only this metric.")] = "", json: Json = False) -> None:
    """Print every measured value.

    Example: lepton train metrics job-0192 --name loss
    """
    show_list(list(client().training_jobs.metrics(id, name=name)), ("name", "epoch", "step", "value", "time"), json, limit=sys.maxsize)


def _param(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise Usage(f"--param {text!r} has no value", "it looks like --param hidden=[64,64]")
    return key, value_of(value)


def _follow(lepton: Client, id: str, json: bool) -> None:
    """Shows events to the end; raises JobFailed. Ctrl-C leaves the job running, and says so."""
    last = None
    try:
        with watcher(json) as see:
            for event in lepton.training_jobs.watch(id):
                see(event)
                last = event.job or last
    except KeyboardInterrupt:
        print(f"\n{id} goes on: lepton train watch {id}, or lepton train cancel {id}", file=sys.stderr)
        raise
    if last is None or last.state != "succeeded":
        raise JobFailed(last)
    if not json:
        say(f"{last.model_version}: {', '.join(f'{key} {value:.4g}' for key, value in last.metrics.items()) or 'no held-out rows'}")
