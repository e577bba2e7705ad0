"""`lepton market`."""

from typing import Annotated

import typer

from leptonai._cli._run import SHOWN, Json, Limit, client, console, print_json, read_text, say, show, show_list
from leptonai._cli.endpoint import Instances, Record, answer, instances_of
from leptonai._record import clean

app = typer.Typer()

Slug = Annotated[str, typer.Argument(metavar="SLUG", help="Name of the listing.")]


@app.command()
def publish(
    slug: Slug,
    endpoint: Annotated[str, typer.Option(help="Endpoint that answers.")],
    title: Annotated[str, typer.Option(help="In a few words.")],
    card: Annotated[str, typer.Option(metavar="FILE", help="Model card: Markdown with YAML front matter.")],
    price: Annotated[str, typer.Option(help="USD a row, such as 0.002; 0 is free.")],
    summary: Annotated[str, typer.Option(help="In a sentence.")] = "",
    json: Json = False,
) -> None:
    """Offer an endpoint to other workspaces.

    Example: lepton market publish breast-check --endpoint wdbc --title "Breast check" --card card.md --price 0.002
    """
    text = read_text(card, "the model card")
    listing = client().listings.create(slug, endpoint=endpoint, title=title, card=text, price=price, summary=summary)
    show(listing, json, f"{listing.slug} is {listing.state}")


@app.command("list")
def list_(
    query: Annotated[str, typer.Option("--query", "-q", help="Words that it must contain.")] = "", limit: Limit = SHOWN, json: Json = False
) -> None:
    """List what is offered, newest first.

    Example: lepton market list --query breast
    """
    columns = ("slug", "title", "publisher", "price", "rating", "subscribers", "state")
    show_list(client().listings.list(query=query), columns, json, limit, "nothing is offered yet: lepton market publish --help")


@app.command("show")
def show_(slug: Slug, json: Json = False) -> None:
    """Show a listing with its model card.

    Example: lepton market show breast-check
    """
    listing = client().listings.get(slug)
    if json:
        print_json(listing)
        return
    console().print(listing)
    say(clean(listing.card))


@app.command()
def subscribe(
    slug: Slug, end: Annotated[bool, typer.Option("--end", help="End the subscription instead.")] = False, json: Json = False
) -> None:
    """Agree to a listing's price, so that you may call it.

    Example: lepton market subscribe breast-check
    """
    listings = client().listings
    show(listings.unsubscribe(slug) if end else listings.subscribe(slug), json)


@app.command()
def invoke(slug: Slug, file: Instances = "", record: Record = None, json: Json = False) -> None:
    """Call a listing: one answer a record, at the agreed price.

    Example: lepton market invoke breast-check --record '{"radius_mean": 17.99}'
    """
    answer(client().listings.invoke(slug, instances_of(file, record)), json)


@app.command()
def review(
    slug: Slug,
    stars: Annotated[int, typer.Option(min=1, max=5, help="1 to 5.")],
    text: Annotated[str, typer.Option(help="What you think.")] = "",
    json: Json = False,
) -> None:
    """Review a listing that you have called.

    Example: lepton market review breast-check --stars 5 --text "agrees with our lab"
    """
    show(client().listings.review(slug, stars, text), json)


@app.command()
def reviews(slug: Slug, limit: Limit = SHOWN, json: Json = False) -> None:
    """List what others think.

    Example: lepton market reviews breast-check
    """
    show_list(client().listings.reviews(slug), ("stars", "workspace", "text", "create_time"), json, limit, "no reviews yet")


@app.command()
def withdraw(slug: Slug, json: Json = False) -> None:
    """Take no new subscribers; those that there are go on.

    Example: lepton market withdraw breast-check
    """
    listing = client().listings.withdraw(slug)
    show(listing, json, f"{listing.slug} is {listing.state}")
