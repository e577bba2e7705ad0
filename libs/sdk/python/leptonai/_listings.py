"""Listings: models offered to other workspaces, and what those do with them."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from leptonai._endpoints import CHUNK_ROWS, Rows, predictions
from leptonai._errors import InvalidInput
from leptonai._refs import name_of
from leptonai._session import AsyncPages, AsyncSession, Call, Pages, Session, page_of, path
from leptonai._types import Listing, Money, Price, Review, Subscription


class Listings:
    """`client.listings`. A price is USD a row (0 is free), a Money, or the API's {"per_row": {…}}. Errors: APIError and its kin."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, slug: str, *, endpoint: Any, title: str, card: str, price: Any, summary: str = "") -> Listing:
        """Publishes an endpoint. card: Markdown with YAML front matter (license, tags, …)."""
        return self._session.run(_create(slug, endpoint, title, card, price, summary))

    def get(self, slug: Any) -> Listing:
        """One listing."""
        return self._session.run(Call("GET", path("listings", name_of(slug)), Listing.from_json))

    def list(self, *, query: str = "") -> Pages[Listing]:
        """Everybody's, newest first; only those that contain the words of `query`."""
        return Pages(self._session, page_of(("listings",), "listings", Listing, query=query))

    def update(self, slug: Any, *, price: Any = None, **changes: Any) -> Listing:
        """Changes title, summary, card, endpoint or price; a new price holds for subscriptions made from now on."""
        return self._session.run(_update(slug, price, changes))

    def withdraw(self, slug: Any) -> Listing:
        """Takes no new subscribers; those that it has go on."""
        return self._session.run(Call("DELETE", path("listings", name_of(slug)), Listing.from_json))

    def subscribe(self, slug: Any) -> Subscription:
        """Agrees to the price. Again: the same subscription."""
        return self._session.run(_subscribe("POST", slug))

    def unsubscribe(self, slug: Any) -> Subscription:
        """Ends the subscription."""
        return self._session.run(_subscribe("DELETE", slug))

    def subscriptions(self) -> Pages[Subscription]:
        """The workspace's own."""
        return Pages(self._session, page_of(("subscriptions",), "subscriptions", Subscription))

    def invoke(self, slug: Any, instances: Any, *, chunk_rows: int = CHUNK_ROWS) -> Rows:
        """As Endpoints.predict, at the agreed price; rows must be records or a DataFrame. Raises Forbidden without a subscription."""
        return self._session.flow(predictions(path("listings", name_of(slug), "invoke"), instances, chunk_rows))

    def review(self, slug: Any, stars: int, text: str = "") -> Review:
        """1 to 5 stars; only for a listing that the workspace has called. Again: replaces the first."""
        return self._session.run(_review(slug, stars, text))

    def reviews(self, slug: Any) -> Pages[Review]:
        """What others think."""
        return Pages(self._session, page_of(("listings", name_of(slug), "reviews"), "reviews", Review))


class AsyncListings:
    """As Listings, for an event loop."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def create(self, slug: str, *, endpoint: Any, title: str, card: str, price: Any, summary: str = "") -> Listing:
        """As Listings.create."""
        return await self._session.run(_create(slug, endpoint, title, card, price, summary))

    async def get(self, slug: Any) -> Listing:
        """As Listings.get."""
        return await self._session.run(Call("GET", path("listings", name_of(slug)), Listing.from_json))

    def list(self, *, query: str = "") -> AsyncPages[Listing]:
        """As Listings.list."""
        return AsyncPages(self._session, page_of(("listings",), "listings", Listing, query=query))

    async def update(self, slug: Any, *, price: Any = None, **changes: Any) -> Listing:
        """As Listings.update."""
        return await self._session.run(_update(slug, price, changes))

    async def withdraw(self, slug: Any) -> Listing:
        """As Listings.withdraw."""
        return await self._session.run(Call("DELETE", path("listings", name_of(slug)), Listing.from_json))

    async def subscribe(self, slug: Any) -> Subscription:
        """As Listings.subscribe."""
        return await self._session.run(_subscribe("POST", slug))

    async def unsubscribe(self, slug: Any) -> Subscription:
        """As Listings.unsubscribe."""
        return await self._session.run(_subscribe("DELETE", slug))

    def subscriptions(self) -> AsyncPages[Subscription]:
        """As Listings.subscriptions."""
        return AsyncPages(self._session, page_of(("subscriptions",), "subscriptions", Subscription))

    async def invoke(self, slug: Any, instances: Any, *, chunk_rows: int = CHUNK_ROWS) -> Rows:
        """As Listings.invoke."""
        return await self._session.flow(predictions(path("listings", name_of(slug), "invoke"), instances, chunk_rows))

    async def review(self, slug: Any, stars: int, text: str = "") -> Review:
        """As Listings.review."""
        return await self._session.run(_review(slug, stars, text))

    def reviews(self, slug: Any) -> AsyncPages[Review]:
        """As Listings.reviews."""
        return AsyncPages(self._session, page_of(("listings", name_of(slug), "reviews"), "reviews", Review))


def price_json(price: Any) -> dict[str, Any]:
    """A price as the API takes it. Raises InvalidInput for what is no exact amount of at most 6 decimals."""
    if isinstance(price, Mapping):
        return dict(price)
    if isinstance(price, Price) and price.per_row is not None:
        price = price.per_row
    if isinstance(price, Money):
        return {"per_row": {"currency": price.currency, "micros": price.micros}}
    try:
        micros = Decimal(str(price)) * 1_000_000
        if not micros.is_finite() or micros != int(micros) or isinstance(price, bool):
            raise ValueError
    except (ArithmeticError, ValueError):
        raise InvalidInput(f"{price!r} is not a price", "it takes USD a row with at most 6 decimals, such as 0.002") from None
    return {"per_row": {"currency": "USD", "micros": int(micros)}}


def _create(slug: str, endpoint: Any, title: str, card: str, price: Any, summary: str) -> Call[Listing]:
    body = {"slug": slug, "endpoint": name_of(endpoint), "title": title, "card": card, "price": price_json(price), "summary": summary}
    return Call("POST", path("listings"), Listing.from_json, body=body)


def _update(slug: Any, price: Any, changes: dict[str, Any]) -> Call[Listing]:
    body = {key: value for key, value in changes.items() if value is not None}
    if price is not None:
        body["price"] = price_json(price)
    if not body:
        raise InvalidInput("there is nothing to change", "name title=, summary=, card=, endpoint= or price=")
    return Call("PATCH", path("listings", name_of(slug)), Listing.from_json, body=body)


def _subscribe(method: str, slug: Any) -> Call[Subscription]:
    body: dict[str, Any] | None = {} if method == "POST" else None
    return Call(method, path("listings", name_of(slug), "subscribe"), Subscription.from_json, body=body)


def _review(slug: Any, stars: int, text: str) -> Call[Review]:
    return Call("POST", path("listings", name_of(slug), "reviews"), Review.from_json, body={"stars": stars, "text": text})
