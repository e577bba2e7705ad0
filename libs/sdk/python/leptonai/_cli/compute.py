"""`lepton compute`."""

from typing import Annotated

import typer

from leptonai._cli._run import SHOWN, Json, Limit, client, show_list

app = typer.Typer()


@app.command()
def nodes(limit: Limit = SHOWN, json: Json = False) -> None:
    """List the machines, and what is free on them.

    Example: lepton compute nodes
    """
    columns = ("name", "pool", "state", "free_cpu_millis", "cpu_millis", "free_memory_bytes", "memory_bytes", "devices", "cpu_model")
    show_list(client().compute.nodes(), columns, json, limit, "no machine has registered yet")


@app.command()
def allocations(
    state: Annotated[str, typer.Option(help="queued, granted, released, expired.")] = "", limit: Limit = SHOWN, json: Json = False
) -> None:
    """List who holds or waits for a share, and why it waits.

    Example: lepton compute allocations --state queued
    """
    columns = ("id", "holder", "state", "reason", "queue_position", "node", "resources", "create_time")
    show_list(client().compute.allocations(state=state), columns, json, limit, "nothing is allocated")
