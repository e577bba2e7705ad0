"""`lepton account`."""

from typing import Annotated

import typer

from leptonai._cli._run import SHOWN, Json, Limit, client, console, print_json, say, show, show_list, show_rows
from leptonai._record import records_table
from leptonai._types import Invoice, Money, Usage

app = typer.Typer()

Period = Annotated[str, typer.Option(help="A month, such as 2026-11; default: the running one.")]
_LINES = ("metric", "resource", "quantity", "unit_price", "amount")


@app.command()
def me(json: Json = False) -> None:
    """Show who you are, and what is left of the plan.

    Example: lepton account me
    """
    found = client().account.me()
    if json:
        print_json(found)
        return
    say(f"{found.member}, {found.role} of {found.workspace}")
    console().print(records_table(found.quotas, ("metric", "used", "limit", "remaining")))


@app.command()
def workspaces(limit: Limit = SHOWN, json: Json = False) -> None:
    """List the workspaces that you are a member of.

    Example: lepton account workspaces
    """
    show_list(client().account.workspaces(), ("name", "display_name", "plan", "role", "create_time"), json, limit)


@app.command("create-workspace")
def create_workspace(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    display_name: Annotated[str, typer.Option(help="For people.")] = "",
    plan: Annotated[str, typer.Option(help="Default: trial.")] = "",
    json: Json = False,
) -> None:
    """Make a workspace; prints its first key, this once.

    Example: lepton account create-workspace acme --plan trial
    """
    made = client().account.create_workspace(name, display_name=display_name, plan=plan)
    show(made, json)
    if not json:
        say(f"key: {made.secret}\nkeep it: it is not shown again")


@app.command()
def members(limit: Limit = SHOWN, json: Json = False) -> None:
    """List everybody in the workspace.

    Example: lepton account members
    """
    show_list(client().account.members(), ("email", "role", "create_time"), json, limit)


@app.command("set-member")
def set_member(
    email: Annotated[str, typer.Argument(metavar="EMAIL")],
    role: Annotated[str, typer.Argument(metavar="ROLE", help="viewer, editor, admin, owner; none removes them.")],
    json: Json = False,
) -> None:
    """Add a member, or change their role.

    Example: lepton account set-member ada@acme.org editor
    """
    account = client().account
    if role == "none":
        account.delete_member(email)
        print_json({"deleted": email}) if json else say(f"{email} is no member any more")
    else:
        show(account.set_member(email, role), json)


@app.command()
def keys(limit: Limit = SHOWN, json: Json = False) -> None:
    """List API keys, without their secrets.

    Example: lepton account keys
    """
    show_list(client().account.api_keys(), ("id", "name", "prefix", "role", "member", "create_time", "revoke_time"), json, limit)


@app.command("create-key")
def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    role: Annotated[str, typer.Option(help="viewer, editor, admin, owner; default: the most that both of you may.")] = "",
    member: Annotated[str, typer.Option(metavar="EMAIL", help="Whom it is for; default: you.")] = "",
    json: Json = False,
) -> None:
    """Make an API key; prints it, this once.

    Example: lepton account create-key ci --role editor
    """
    made = client().account.create_api_key(name, role=role, member=member)
    show(made, json)
    if not json:
        say(f"key: {made.secret}\nkeep it: it is not shown again")


@app.command("revoke-key")
def revoke_key(id: Annotated[str, typer.Argument(metavar="ID", help="Of `lepton account keys`.")], json: Json = False) -> None:
    """Revoke an API key for good.

    Example: lepton account revoke-key key-0192
    """
    show(client().account.revoke_api_key(id), json)


@app.command()
def plans(json: Json = False) -> None:
    """List plans with their quotas and prices.

    Example: lepton account plans
    """
    found = client().account.plans()
    if json:
        print_json(list(found))
        return
    metrics = list(dict.fromkeys(quota.metric for plan in found for quota in plan.quotas))
    prices = list(dict.fromkeys(price.metric for plan in found for price in plan.prices))
    rows: list[list[object]] = [["monthly price", *(plan.monthly_price for plan in found)]]
    rows += [[f"{name}, at most", *(next((q.limit for q in plan.quotas if q.metric == name), None) for plan in found)] for name in metrics]
    rows += [
        [f"price of {name}", *(next((p.unit_price for p in plan.prices if p.metric == name), None) for plan in found)] for name in prices
    ]
    show_rows(["", *(plan.name for plan in found)], rows)


@app.command("set-plan")
def set_plan(plan: Annotated[str, typer.Argument(metavar="PLAN", help="Of `lepton account plans`.")], json: Json = False) -> None:
    """Change the workspace's plan.

    Example: lepton account set-plan pro
    """
    account = client().account
    workspace = account.me().workspace
    show(account.update_workspace(workspace.name if workspace else "", plan=plan), json)


@app.command()
def usage(period: Period = "", json: Json = False) -> None:
    """Show use and cost of a month.

    Example: lepton account usage --period 2026-11
    """
    _show_lines(client().account.usage(period), json)


@app.command()
def invoices(limit: Limit = SHOWN, json: Json = False) -> None:
    """List invoices, newest first, and the draft of the running month.

    Example: lepton account invoices
    """
    show_list(client().account.invoices(), ("number", "period", "state", "total", "issue_time"), json, limit, "no invoices yet")


@app.command()
def invoice(
    number: Annotated[str, typer.Argument(metavar="[NUMBER]", help="Without one: issue an invoice now for all use not yet invoiced.")] = "",
    json: Json = False,
) -> None:
    """Show an invoice, or issue one now.

    Example: lepton account invoice INV-2026-11-0001
    """
    account = client().account
    _show_lines(account.invoice(number) if number else account.create_invoice(), json)


@app.command()
def earnings(period: Period = "", json: Json = False) -> None:
    """Show what others' calls have brought in.

    Example: lepton account earnings
    """
    found = client().account.earnings(period)
    if json:
        print_json(found)
        return
    console().print(records_table(found.lines, ("listing", "buyer", "quantity", "gross", "fee", "net")))
    say(f"{found.period}: {found.net or Money(currency='USD')}")


def _show_lines(found: Usage | Invoice, json: bool) -> None:
    if json:
        print_json(found)
        return
    console().print(records_table(found.lines, _LINES))
    number = f"{found.number} ({found.state}) " if isinstance(found, Invoice) else ""
    say(f"{number}{found.period}: {found.total or Money(currency='USD')}")
