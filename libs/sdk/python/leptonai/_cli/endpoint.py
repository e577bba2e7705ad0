"""`lepton endpoint`."""

import sys
from typing import Annotated, Any

import typer

from leptonai._cli._run import SHOWN, Json, Limit, Usage, client, done, print_json, read_json, show, show_list

app = typer.Typer()

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the endpoint.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait until it answers; 0 returns at once.")]
Instances = Annotated[str, typer.Option("--file", "-f", help='JSON file with records, [{"radius": 17.9}, …]; - is stdin.')]
Record = Annotated[list[str] | None, typer.Option("--record", "-r", help="One record as JSON; may be given again.")]


Least = Annotated[int | None, typer.Option("--min-replicas", min=0, help="Scale down to so many; 0 lets it sleep while nobody asks.")]
Most = Annotated[int | None, typer.Option("--max-replicas", min=1, help="Scale up to so many.")]


@app.command()
def create(
    name: Name,
    model: Annotated[str, typer.Option("--model", "-m", metavar="NAME[@N]", help="Model version to serve.")],
    replicas: Annotated[int | None, typer.Option(min=0, help="How many processes; default 1.")] = None,
    min_replicas: Least = None,
    max_replicas: Most = None,
    wait: Wait = 120,
    json: Json = False,
) -> None:
    """Serve a model version.

    Example: lepton endpoint create wdbc --model wdbc@1
    """
    endpoints = client().endpoints
    endpoint = endpoints.create(name, model, replicas=replicas, min_replicas=min_replicas, max_replicas=max_replicas)
    if wait and replicas != 0:
        endpoint = endpoints.wait_ready(name, wait)
    show(endpoint, json, f"{endpoint.name} is {endpoint.state}")


@app.command("list")
def list_(limit: Limit = SHOWN, json: Json = False) -> None:
    """List the endpoints of the workspace.

    Example: lepton endpoint list
    """
    columns = ("name", "model", "revision", "state", "ready_replicas", "replicas", "scaling", "reason")
    show_list(client().endpoints.list(), columns, json, limit, "no endpoints yet: lepton endpoint create --help")


@app.command("show")
def show_(name: Name, json: Json = False) -> None:
    """Show one endpoint.

    Example: lepton endpoint show wdbc
    """
    show(client().endpoints.get(name), json)


@app.command()
def update(
    name: Name,
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="NAME[@N]", help="Another model version.")] = None,
    replicas: Annotated[int | None, typer.Option(min=0, help="Another number of processes; 0 stops it.")] = None,
    min_replicas: Least = None,
    max_replicas: Most = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="The new model gets copies of requests alone, until it is promoted.")] = False,
    wait: Wait = 120,
    json: Json = False,
) -> None:
    """Serve another model version, or by other numbers of processes.

    Example: lepton endpoint update wdbc --model wdbc@2
    """
    if model is None and replicas is None and min_replicas is None and max_replicas is None:
        raise Usage("there is nothing to change", "name --model NAME@N, --replicas N, or --min-replicas N and --max-replicas N")
    endpoints = client().endpoints
    rollout = {"shadow": True} if shadow else None
    scaling = {"min_replicas": min_replicas, "max_replicas": max_replicas}
    endpoint = endpoints.update(name, model=model, rollout=rollout, replicas=replicas, scaling=scaling)
    if wait and replicas != 0 and endpoint.state != "stopped":
        endpoint = endpoints.wait_ready(name, wait)
    show(endpoint, json, f"{endpoint.name} is {endpoint.state}" + (f": {endpoint.reason}" if endpoint.reason else ""))


@app.command()
def revisions(name: Name, json: Json = False) -> None:
    """List the model versions of an endpoint, with what each gets of the requests.

    Example: lepton endpoint revisions wdbc
    """
    columns = ("number", "model", "state", "percent", "ready_replicas", "requests", "errors", "reason")
    show_list(client().endpoints.revisions(name), columns, json)


@app.command()
def scaling(name: Name, json: Json = False) -> None:
    """Show what an endpoint's scaling sees, and what it did.

    Example: lepton endpoint scaling wdbc
    """
    found = client().endpoints.scaling(name)
    show(found, json, "\n".join(f"{d.time}: {d.from_replicas} to {d.to_replicas}, {d.why}" for d in found.decisions))


@app.command()
def predict(name: Name, file: Instances = "", record: Record = None, json: Json = False) -> None:
    """Ask an endpoint: one answer a record.

    Example: lepton endpoint predict wdbc --record '{"radius_mean": 17.99, "texture_mean": 10.38}'
    """
    answer(client().endpoints.predict(name, instances_of(file, record)), json)


@app.command()
def delete(name: Name, json: Json = False) -> None:
    """End an endpoint.

    Example: lepton endpoint delete wdbc
    """
    client().endpoints.delete(name)
    done(f"deleted {name}", json, deleted=name)


def instances_of(file: str, record: list[str] | None) -> list[Any]:
    """Records from a file (an array, an object, or {"instances": […]}) and from options."""
    import json

    found: list[Any] = []
    if file:
        value = read_json(file, 'the records, such as [{"radius": 17.9}]')
        value = value.get("instances", value) if isinstance(value, dict) else value
        found += value if isinstance(value, list) else [value]
    for text in record or []:
        try:
            found.append(json.loads(text))
        except ValueError:
            raise Usage(f"--record {text!r:.80} is not JSON", """it looks like --record '{"radius": 17.9}'""") from None
    if not found:
        raise Usage("no records are given", """--record '{"radius": 17.9}', or -f records.json""")
    return found


def answer(predictions: list[Any], as_json: bool) -> None:
    """Predictions: {"predictions": […]} as JSON, else one a line."""
    import json

    if as_json:
        print_json({"predictions": predictions})
        return
    for prediction in predictions:
        sys.stdout.write((prediction if isinstance(prediction, str) else json.dumps(prediction)) + "\n")
