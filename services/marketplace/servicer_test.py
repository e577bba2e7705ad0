"""Through a socket, as the gateway calls: what others may not, then buying, calling and reviewing."""

import asyncio
from typing import Any

import pytest

from lepton.common.v1.options_pb2 import ROLE_VIEWER
from lepton.common.v1.resource_pb2 import Money
from lepton.marketplace.v1 import events_pb2, listing_pb2
from lepton.marketplace.v1 import marketplace_service_pb2 as pb
from libs.db import Database
from libs.errors import Conflict, Forbidden, Invalid, NotFound
from libs.rpc import Call, Client, acting
from libs.testing import as_member, schema_differences
from services.marketplace import tables
from services.marketplace.conftest import events, listing, price, publish, record, subscribe


async def test_the_migration_makes_the_tables() -> None:
    assert await schema_differences("services.marketplace", tables.Table.metadata) == []


# -- what others may not


async def test_only_the_publisher_changes_a_listing(market: Client) -> None:
    made = await publish(market)
    await subscribe(market)
    with as_member("evil"):
        for call in (
            lambda: market.UpdateListing(pb.UpdateListingRequest(slug="breast-check", title="mine")),
            lambda: market.DeleteListing(pb.DeleteListingRequest(slug="breast-check")),
            lambda: market.Unsubscribe(pb.UnsubscribeRequest(slug="breast-check")),
            lambda: market.UpdateListing(pb.UpdateListingRequest(slug="nothing", title="mine")),
            lambda: market.CreateListing(listing("stolen")),
        ):
            with pytest.raises(NotFound):
                await call()
        assert not (await market.ListSubscriptions(pb.ListSubscriptionsRequest())).subscriptions
        after = await market.GetListing(pb.GetListingRequest(slug="breast-check"))
    assert (after.title, after.version, after.subscribers) == (made.title, 1, 1)


async def test_nobody_calls_without_a_subscription_of_their_own(market: Client) -> None:
    await publish(market)
    with acting(Call()):
        with pytest.raises(Forbidden) as refused:
            await market.ResolveInvocation(pb.ResolveInvocationRequest(buyer="buyer", slug="breast-check"))
        assert refused.value.code == "subscription_required"
        assert refused.value.detail == (
            "workspace buyer has no subscription to 'breast-check'; "
            "subscribe first: POST /v1/listings/breast-check/subscribe agrees to its price (0.002 USD a row)"
        )
    await subscribe(market, "other")
    with acting(Call()), pytest.raises(Forbidden):
        await market.ResolveInvocation(pb.ResolveInvocationRequest(buyer="buyer", slug="breast-check"))


async def test_viewers_read_only(market: Client) -> None:
    await publish(market)
    with as_member("acme", role=ROLE_VIEWER):
        await market.GetListing(pb.GetListingRequest(slug="breast-check"))
        for call in (
            lambda: market.CreateListing(listing("other")),
            lambda: market.UpdateListing(pb.UpdateListingRequest(slug="breast-check")),
            lambda: market.DeleteListing(pb.DeleteListingRequest(slug="breast-check")),
            lambda: market.Subscribe(pb.SubscribeRequest(slug="breast-check")),
            lambda: market.Unsubscribe(pb.UnsubscribeRequest(slug="breast-check")),
            lambda: market.CreateReview(pb.CreateReviewRequest(slug="breast-check", stars=5)),
        ):
            with pytest.raises(Forbidden):
                await call()


# -- publishing


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"price": listing_pb2.Price()}, "price.per_row: is required"),
        ({"price": listing_pb2.Price(per_row=Money(currency="EUR", micros=1))}, "must be USD"),
        ({"price": price(-1)}, "must be 0"),
        ({"price": price(1_000_000_001)}, "1000 USD"),
        ({"card": "no front matter"}, "card line 1"),
        ({"slug": "A"}, "3 to 63 lower-case"),
        ({"title": ""}, "title: is required"),
    ],
)
async def test_a_wrong_listing_is_refused_and_not_kept(market: Client, database: Database, more: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        await publish(market, **more)
    with as_member("acme"):
        assert not (await market.ListListings(pb.ListListingsRequest())).listings
    assert not await events(database, events_pb2.ListingPublished)


async def test_a_slug_is_taken_once_and_an_endpoint_must_be_there(market: Client) -> None:
    await publish(market)
    with pytest.raises(Conflict) as taken:
        await publish(market)
    assert taken.value.code == "name_taken"
    with pytest.raises(NotFound, match="did you mean wdbc") as missing:
        await publish(market, slug="other", endpoint="wdbcc")
    assert missing.value.errors[0].field == "endpoint"


async def test_the_same_request_publishes_once(market: Client, database: Database) -> None:
    with as_member("acme"):
        first = await market.CreateListing(listing(), idempotency_key="k1")
        assert await market.CreateListing(listing(), idempotency_key="k1") == first
    assert len(await events(database, events_pb2.ListingPublished)) == 1


async def test_listings_are_found_by_words_and_pages(market: Client) -> None:
    for slug, title in (("one", "Äpfel sort"), ("two", "50% less"), ("three", "Sort words")):
        await publish(market, slug=slug, title=title)
    with as_member("reader"):

        async def found(query: str) -> list[str]:
            return [each.slug for each in (await market.ListListings(pb.ListListingsRequest(query=query))).listings]

        assert await found("") == ["three", "two", "one"]
        assert await found("SORT") == ["three", "one"]
        assert await found("sort äpfel") == ["one"]
        assert await found("%") == ["two"]
        assert await found("o_e") == []
        page = await market.ListListings(pb.ListListingsRequest(page_size=2))
        rest = await market.ListListings(pb.ListListingsRequest(page_size=2, page_token=page.next_page_token))
        assert [each.slug for each in [*page.listings, *rest.listings]] == ["three", "two", "one"]
        assert not rest.next_page_token and not rest.listings[0].card
        with pytest.raises(NotFound, match="did you mean three"):
            await market.GetListing(pb.GetListingRequest(slug="thre"))


async def test_withdrawn_is_for_those_who_have_it(market: Client, database: Database) -> None:
    await publish(market)
    held = await subscribe(market)
    with as_member("acme"):
        changed = await market.UpdateListing(pb.UpdateListingRequest(slug="breast-check", price=price(5), title="New"))
        assert (changed.version, changed.title, changed.price.per_row.micros) == (2, "New", 5)
        with pytest.raises(Invalid, match="card line 1"):
            await market.UpdateListing(pb.UpdateListingRequest(slug="breast-check", card="x"))
        gone = await market.DeleteListing(pb.DeleteListingRequest(slug="breast-check"))
        assert gone == await market.DeleteListing(pb.DeleteListingRequest(slug="breast-check"))
        with pytest.raises(Conflict, match="withdrawn"):
            await market.UpdateListing(pb.UpdateListingRequest(slug="breast-check", title="x"))
        assert len((await market.ListListings(pb.ListListingsRequest())).listings) == 1
    assert await subscribe(market) == held
    with pytest.raises(Conflict, match="takes no new subscribers"):
        await subscribe(market, "late")
    with as_member("late"):
        assert not (await market.ListListings(pb.ListListingsRequest())).listings
    with acting(Call()):
        answer = await market.ResolveInvocation(pb.ResolveInvocationRequest(buyer="buyer", slug="breast-check"))
    assert (answer.publisher, answer.endpoint, answer.subscription) == ("acme", "wdbc", held.id)
    assert len(await events(database, events_pb2.ListingWithdrawn)) == 1


# -- buying, calling, reviewing


async def test_a_subscription_keeps_its_price(market: Client, database: Database) -> None:
    await publish(market)
    first, second = await asyncio.gather(subscribe(market), subscribe(market))
    assert first == second and first.price.per_row.micros == 2000
    with as_member("acme"):
        await market.UpdateListing(pb.UpdateListingRequest(slug="breast-check", price=price(9)))
    await record(market, "b1", (first.id, 7), (first.id, 3))
    await record(market, "b1", (first.id, 7), (first.id, 3))
    invoked = await events(database, events_pb2.ListingInvoked)
    assert [(e.buyer, e.publisher, e.rows, e.unit_price.micros) for e in invoked] == [
        ("buyer", "acme", 7, 2000),
        ("buyer", "acme", 3, 2000),
    ]
    with as_member("buyer"):
        ended = await market.Unsubscribe(pb.UnsubscribeRequest(slug="breast-check"))
        assert ended == await market.Unsubscribe(pb.UnsubscribeRequest(slug="breast-check"))
    # Answered before the end, told after it.
    await record(market, "b2", (first.id, 1))
    again = await subscribe(market)
    assert again.id != first.id and again.price.per_row.micros == 9
    with as_member("buyer"):
        held = (await market.ListSubscriptions(pb.ListSubscriptionsRequest())).subscriptions
        assert [each.id for each in held] == [again.id, first.id]
        assert (await market.GetListing(pb.GetListingRequest(slug="breast-check"))).subscribers == 1
    assert len(await events(database, events_pb2.SubscriptionStarted)) == 2


async def test_a_batch_is_whole_or_nothing(market: Client, database: Database) -> None:
    await publish(market)
    held = await subscribe(market)
    with pytest.raises(NotFound, match=r"records\[1\]"):
        await record(market, "b1", (held.id, 1), ("sub-unknown", 1))
    with pytest.raises(Invalid, match="must be at most"):
        await record(market, "b1", (held.id, 2**63))
    assert not await events(database, events_pb2.ListingInvoked)
    await record(market, "b1", (held.id, 1))
    assert len(await events(database, events_pb2.ListingInvoked)) == 1


async def test_those_who_called_review(market: Client) -> None:
    await publish(market)
    request = pb.CreateReviewRequest(slug="breast-check", stars=4, text="good")
    held = {name: await subscribe(market, name) for name in ("buyer", "second", "acme")}
    with as_member("buyer"), pytest.raises(Conflict, match="call it first"):
        await market.CreateReview(request)
    await record(market, "b1", *((each.id, 1) for each in held.values()))
    with as_member("acme"), pytest.raises(Forbidden, match="their own"):
        await market.CreateReview(request)
    with as_member("buyer"):
        await market.CreateReview(request)
        await market.CreateReview(pb.CreateReviewRequest(slug="breast-check", stars=1, text="bad"))
        with pytest.raises(Invalid, match="at most 5"):
            await market.CreateReview(pb.CreateReviewRequest(slug="breast-check", stars=6))
    with as_member("second"):
        await market.CreateReview(request)
        rated = await market.GetListing(pb.GetListingRequest(slug="breast-check"))
        assert (rated.reviews, rated.rating) == (2, 2.5)
        written = (await market.ListReviews(pb.ListReviewsRequest(slug="breast-check"))).reviews
    assert [(each.workspace, each.stars, each.text) for each in written] == [("second", 4, "good"), ("buyer", 1, "bad")]
