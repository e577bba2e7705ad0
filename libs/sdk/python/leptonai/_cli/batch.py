"""`lepton batch`."""

import sys
from typing import Annotated

import typer

from leptonai._cli._run import SHOWN, Json, Limit, client, say, show, show_list

app = typer.Typer()

Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the batch prediction.")]


@app.command()
def predict(
    dataset: Annotated[str, typer.Argument(metavar="DATASET[@N]", help="Whose rows to predict.")],
    model: Annotated[str, typer.Option("--model", "-m", help="NAME or NAME@N.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Dataset that gets the answers as a new version.")],
    columns: Annotated[str | None, typer.Option(help="Columns to keep, with commas between. Default: all but pictures.")] = None,
    probabilities: Annotated[bool | None, typer.Option("--probabilities/--no-probabilities", help="A column a class.")] = None,
    memory: Annotated[int | None, typer.Option(help="Bytes of main memory.")] = None,
    cores: Annotated[int | None, typer.Option(help="How many cores.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the end.")] = False,
    json: Json = False,
) -> None:
    """Predict every row of a dataset version, into a new version. No endpoint is needed.

    Example: lepton batch predict wdbc@2 --model wdbc@1 --output wdbc-predicted --columns id
    """
    lepton = client()
    resources = {name: value for name, value in (("memory_bytes", memory), ("count", cores)) if value is not None}
    kept = [part.strip() for part in columns.split(",")] if columns else None
    made = lepton.batch_predictions.create(model, dataset, output, columns=kept, probabilities=probabilities, resources=resources or None)
    if detach:
        show(made, json, f"{made.id} is {made.state}: lepton batch wait {made.id}")
    else:
        _follow(made.id, json)


@app.command("list")
def list_(limit: Limit = SHOWN, json: Json = False) -> None:
    """List batch predictions, newest first.

    Example: lepton batch list
    """
    columns = ("id", "state", "model", "dataset", "output", "output_version", "rows_done", "rows", "create_time")
    show_list(client().batch_predictions.list(), columns, json, limit, "no batch predictions yet: lepton batch predict --help")


@app.command("show")
def show_(id: Id, json: Json = False) -> None:
    """Show one: how many of its rows are done, and why it failed where it has.

    Example: lepton batch show bp-0192
    """
    show(client().batch_predictions.get(id), json)


@app.command()
def wait(id: Id, json: Json = False) -> None:
    """Wait for the end of one, with a bar of its rows.

    Example: lepton batch wait bp-0192
    """
    _follow(id, json)


@app.command()
def cancel(id: Id, json: Json = False) -> None:
    """End one. Rows that are done are billed.

    Example: lepton batch cancel bp-0192
    """
    batch = client().batch_predictions.cancel(id)
    show(batch, json, f"{batch.id} is {batch.state}")


def _follow(id: str, json: bool) -> None:
    """Raises JobFailed. Ctrl-C leaves it running, and says so."""
    try:
        done = client().batch_predictions.wait(id, progress=False if json else None)
    except KeyboardInterrupt:
        print(f"\n{id} goes on: lepton batch wait {id}, or lepton batch cancel {id}", file=sys.stderr)
        raise
    if json:
        show(done, json)
    else:
        say(f"{done.version}: {done.rows} rows of {done.dataset}, predicted by {done.model}: lepton dataset preview {done.version}")
