"""`lepton model`."""

from typing import Annotated

import typer

from leptonai._cli._run import SHOWN, Json, Limit, client, done, read_json, read_text, show, show_list

app = typer.Typer()

Ref = Annotated[str, typer.Argument(metavar="NAME[@N]", help="A version; without @N the newest.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")]


@app.command("list")
def list_(limit: Limit = SHOWN, json: Json = False) -> None:
    """List the models of the workspace.

    Example: lepton model list
    """
    show_list(client().models.list(), ("name", "latest_version", "create_time"), json, limit, "no models yet: lepton train submit --help")


@app.command("show")
def show_(ref: Ref, json: Json = False) -> None:
    """Show one version: metrics, signature, files, where it came from.

    Example: lepton model show wdbc@1
    """
    show(client().models.version(ref), json)


@app.command()
def versions(name: Name, limit: Limit = SHOWN, json: Json = False) -> None:
    """List a model's versions, newest first.

    Example: lepton model versions wdbc
    """
    columns = ("number", "task", "architecture", "metrics", "parameters", "dataset", "create_time")
    show_list(client().models.versions(name), columns, json, limit)


@app.command()
def push(
    name: Name,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="With model.py and what its class Model reads; or an ONNX file.")],
    signature: Annotated[
        str, typer.Option(metavar="FILE", help="JSON with inputs and outputs; default: the folder's signature.json.")
    ] = "",
    wheels: Annotated[
        str, typer.Option(metavar="FOLDER", help="Wheels for requirements.txt; default: pip downloads what the platform lacks.")
    ] = "",
    features: Annotated[
        str, typer.Option(metavar="A,B,…", help="Of an ONNX file: names of the numbers that it takes, or @FILE with one a line.")
    ] = "",
    classes: Annotated[
        str, typer.Option(metavar="A,B,…", help="Of an ONNX file: names of the classes whose probabilities it gives, or @FILE.")
    ] = "",
    json: Json = False,
) -> None:
    """Make a version of your own code: a folder whose model.py has a class Model with load(self, folder) and predict(self, records).

    Example: lepton model push mine mine/
    Example: lepton model push iris iris.onnx --classes setosa,versicolor,virginica
    """
    version = client().models.push(
        name,
        folder,
        signature=read_json(signature, "the signature") if signature else None,
        wheels=wheels or None,
        features=_names(features, "the features"),
        classes=_names(classes, "the classes"),
    )
    show(version, json, f"{version.ref} is registered: lepton endpoint create {version.model} --model {version.ref}")


def _names(given: str, what: str) -> list[str] | None:
    if not given:
        return None
    names = read_text(given[1:], what).strip().splitlines() if given.startswith("@") else given.split(",")
    return [name.strip() for name in names]


@app.command()
def download(
    ref: Ref, folder: Annotated[str, typer.Argument(metavar="[FOLDER]", help="Where to put the files.")] = ".", json: Json = False
) -> None:
    """Write a version's files (weights as safetensors), digests checked.

    Example: lepton model download wdbc@1 wdbc-1/
    """
    places = client().models.download(ref, folder)
    done("\n".join(f"wrote {place}" for place in places), json, paths=[str(place) for place in places])


@app.command()
def delete(name: Name, json: Json = False) -> None:
    """Delete a model with every version; refused while an endpoint serves one.

    Example: lepton model delete wdbc
    """
    client().models.delete(name)
    done(f"deleted {name}", json, deleted=name)
