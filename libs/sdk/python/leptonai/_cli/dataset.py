"""`lepton dataset`."""

import re
from typing import Annotated, Any

import typer

from leptonai import _steps as steps
from leptonai._cli._run import SHOWN, Json, Limit, Usage, client, console, done, print_json, read_json, say, show, show_list, value_of
from leptonai._record import records_table, text_table
from leptonai._steps import Step

app = typer.Typer()

Ref = Annotated[str, typer.Argument(metavar="NAME[@N]", help="A version; without @N the newest.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the dataset.")]
_FIGURES = ("name", "type", "nulls", "nans", "distinct", "min", "max", "mean", "std")


@app.command()
def upload(
    name: Name,
    source: Annotated[str, typer.Argument(metavar="PATH", help="CSV, TSV, JSON lines, Parquet, a ZIP or a folder of pictures.")],
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until it is ready; 0 returns at once.")] = 600,
    json: Json = False,
) -> None:
    """Make a new version of a file, or of a folder with a folder of pictures a class.

    Example: lepton dataset upload wdbc wdbc.csv
    """
    version = client().datasets.upload(name, source, wait=wait)
    show(version, json, f"{version.ref} is {version.state}: {version.rows} rows, {len(version.columns)} columns")


@app.command("list")
def list_(limit: Limit = SHOWN, json: Json = False) -> None:
    """List the datasets of the workspace.

    Example: lepton dataset list
    """
    columns = ("name", "kind", "latest_version", "description", "create_time")
    show_list(client().datasets.list(), columns, json, limit, "no datasets yet: lepton dataset upload NAME PATH")


@app.command("show")
def show_(ref: Ref, versions: Annotated[bool, typer.Option("--versions", help="All versions.")] = False, json: Json = False) -> None:
    """Show one version: columns, splits, where it came from.

    Example: lepton dataset show wdbc@2
    """
    datasets = client().datasets
    if versions:
        show_list(datasets.versions(ref.partition("@")[0]), ("number", "state", "rows", "size_bytes", "lineage", "create_time"), json)
    else:
        show(datasets.version(ref), json)


@app.command()
def preview(
    ref: Ref,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, max=1000, help="How many rows.")] = 20,
    split: Annotated[str, typer.Option(help="Of this split, such as test.")] = "",
    json: Json = False,
) -> None:
    """Show the first rows.

    Example: lepton dataset preview wdbc@2 --rows 5
    """
    found = client().datasets.preview(ref, rows=rows, split=split)
    if json:
        print_json(found)
        return
    names = [column.name for column in found.columns]
    console().print(text_table([str(column) for column in found.columns], ([row.get(name) for name in names] for row in found.rows)))


@app.command()
def profile(ref: Ref, json: Json = False) -> None:
    """Show what is in each column.

    Example: lepton dataset profile wdbc
    """
    found = client().datasets.profile(ref)
    if json:
        print_json(found)
        return
    console().print(records_table(found.columns, _FIGURES))
    say(f"{found.rows} rows, {found.duplicate_rows} of them repeat others")


@app.command()
def transform(
    ref: Ref,
    file: Annotated[str, typer.Option("--file", "-f", help='JSON file with steps, [{"dedupe": {}}, …]; - is stdin.')] = "",
    step: Annotated[list[str] | None, typer.Option(help="One step, such as impute:strategy=median; may be given again.")] = None,
    output: Annotated[str, typer.Option(help="Dataset that gets the new version; default: the same.")] = "",
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until it is ready; 0 returns at once.")] = 600,
    json: Json = False,
) -> None:
    """Make a new version by steps over one.

    Steps: drop_missing[:COLUMN,…] · impute:STRATEGY[,columns=[a,b]] · dedupe[:COLUMN,…] · cast:COLUMN=TYPE · filter:SQL ·
    derive:COLUMN=SQL · rename:OLD=NEW · drop_columns:COLUMN,… · map_values:column=C,values={"b":"B"} · split:test=0.2,stratify=C

    Example: lepton dataset transform wdbc@1 --step dedupe --step impute:strategy=median --step 'split:test=0.2,stratify=diagnosis'
    """
    wanted: list[Any] = _steps_of(file) if file else []
    wanted += [step_of(text) for text in step or []]
    if not wanted:
        raise Usage("no steps are given", "name some: --step dedupe --step impute:strategy=median, or -f steps.json")
    version = client().datasets.transform(ref, wanted, output=output, wait=wait)
    show(version, json, f"{version.ref} is {version.state}: {version.rows} rows, {len(version.columns)} columns")


@app.command()
def download(
    ref: Ref,
    target: Annotated[str, typer.Argument(metavar="[PATH]", help="File or folder.")] = ".",
    split: Annotated[str, typer.Option(help="Only this split, such as test.")] = "",
    json: Json = False,
) -> None:
    """Write a version as Parquet.

    Example: lepton dataset download wdbc@2 wdbc.parquet --split test
    """
    place = client().datasets.download(ref, target, split=split)
    done(f"wrote {place}", json, path=str(place), size_bytes=place.stat().st_size)


@app.command()
def delete(name: Name, json: Json = False) -> None:
    """Delete a dataset with every version.

    Example: lepton dataset delete wdbc
    """
    client().datasets.delete(name)
    done(f"deleted {name}", json, deleted=name)


def _steps_of(file: str) -> list[Any]:
    found = read_json(file, 'the steps, such as [{"dedupe": {}}]')
    found = found.get("steps", found) if isinstance(found, dict) else found
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise Usage(f"{file} holds no list of steps", 'it looks like [{"dedupe": {}}, {"impute": {"strategy": "median"}}]')
    return found


_COLUMNS = {"drop_missing", "dedupe", "drop_columns"}
_PAIRS = {"cast": ("column", "type"), "derive": ("column", "expression"), "rename": ("column", "to")}
_KINDS = ("drop_missing", "impute", "dedupe", "cast", "filter", "derive", "rename", "drop_columns", "map_values", "split")


def step_of(text: str) -> Step:
    """A step in shorthand: "impute:strategy=median". Raises Usage."""
    kind, _, rest = text.partition(":")
    kind, rest = kind.strip().replace("-", "_"), rest.strip()
    if kind not in _KINDS:
        raise Usage(f"--step {text!r}: there is no step {kind!r}", f"there are: {', '.join(_KINDS)}")
    if kind == "filter":
        return steps.filter(re.sub(r"^expression=", "", rest))
    if kind in _PAIRS:
        return _pair(kind, rest, text)
    options: dict[str, Any] = {}
    for part in _parts(rest):
        key, equals, value = part.partition("=")
        if equals:
            options[key.strip()] = _list(value) if key.strip() == "columns" else value_of(value.strip())
        elif kind == "impute":
            options["strategy"] = part
        elif kind in _COLUMNS:
            options.setdefault("columns", []).append(part)
        else:
            raise Usage(f"--step {text!r}: {part!r} is not an option", f"it looks like {kind}:key=value")
    return Step(kind, options)


def _pair(kind: str, rest: str, text: str) -> Step:
    first, second = _PAIRS[kind]
    named = re.fullmatch(rf"{first}=(.+?),\s*{second}=(.+?)(,\s*lenient=true)?", rest, re.DOTALL)
    if named:
        lenient = {"lenient": True} if named[3] and kind == "cast" else {}
        return Step(kind, {first: named[1].strip(), second: named[2].strip(), **lenient})
    left, equals, right = rest.partition("=")
    if not equals or not left.strip() or not right.strip():
        raise Usage(f"--step {text!r} is not whole", f"it looks like {kind}:COLUMN={second.upper()}")
    return Step(kind, {first: left.strip(), second: right.strip()})


def _parts(text: str) -> list[str]:
    """Split at commas outside of brackets and quotes."""
    parts, depth, quoted, start = [], 0, "", 0
    for at, sign in enumerate(text):
        if quoted:
            quoted = "" if sign == quoted else quoted
        elif sign in "\"'":
            quoted = sign
        elif sign in "[{(":
            depth += 1
        elif sign in "]})":
            depth -= 1
        elif sign == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _list(text: str) -> list[str]:
    value = value_of(text.strip())
    if isinstance(value, list):
        return [str(item) for item in value]
    return _parts(text.strip().removeprefix("[").removesuffix("]"))
