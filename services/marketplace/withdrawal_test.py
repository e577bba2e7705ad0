"""A listing ends with its endpoint, its subscribers are told so in words, and its publisher alone brings it back."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from lepton.common.v1.resource_pb2 import Money
from lepton.deployment.v1.events_pb2 import EndpointDeleted
from lepton.marketplace.v1 import events_pb2, listing_pb2
from lepton.marketplace.v1 import marketplace_service_pb2 as pb
from libs.db import Database
from libs.errors import Conflict, Forbidden, Invalid, NotFound
from libs.events import Event, handling
from libs.rpc import Call, Client, acting
from libs.testing import FakeClock, as_member
from services.marketplace.conftest import events, listing, price, publish, record, subscribe
from services.marketplace.consumers import reactions

GET = pb.GetListingRequest(slug="breast-check")


async def deleted(database: Database, when: float, workspace: str = "acme", endpoint: str = "wdbc") -> None:
    """Tells that an endpoint was deleted at a time."""
    message = EndpointDeleted(workspace=workspace, endpoint=endpoint)
    event = replace(Event.of(message, key="k"), time=datetime.fromtimestamp(when, UTC).isoformat())
    async with database.unit() as unit:
        with handling(event):
            await reactions()[EndpointDeleted](unit, message)


async def seen(market: Client, workspace: str = "reader") -> listing_pb2.Listing:
    with as_member(workspace):
        return await market.GetListing(GET)


async def resolve(market: Client, buyer: str = "buyer") -> pb.ResolveInvocationResponse:
    with acting(Call()):
        return await market.ResolveInvocation(pb.ResolveInvocationRequest(buyer=buyer, slug="breast-check"))


# -- others' deletions, and late ones


@pytest.mark.parametrize(("workspace", "endpoint"), [("evil", "wdbc"), ("acme", "wdb"), ("acme", "WDBC"), ("", ""), ("acme", "%")])
async def test_another_endpoints_end_withdraws_nothing(
    market: Client, database: Database, clock: FakeClock, workspace: str, endpoint: str
) -> None:
    made = await publish(market)
    await deleted(database, clock() + 1, workspace, endpoint)
    assert await seen(market) == made


async def test_an_endpoint_that_was_made_again_is_not_the_one_that_ended(market: Client, database: Database, clock: FakeClock) -> None:
    """The news of the deletion comes after the listing of its namesake."""
    await publish(market)
    before = clock()
    clock.advance(2)
    with as_member("acme"):
        await market.UpdateListing(pb.UpdateListingRequest(slug="breast-check", endpoint="wdbc"))
    await deleted(database, before + 1)
    assert (await seen(market)).state == listing_pb2.LISTING_STATE_PUBLISHED
    # A change of words says nothing of the endpoint.
    clock.advance(2)
    with as_member("acme"):
        await market.UpdateListing(pb.UpdateListingRequest(slug="breast-check", title="New"))
    await deleted(database, clock() - 1)
    assert (await seen(market)).state == listing_pb2.LISTING_STATE_WITHDRAWN


async def test_nobody_else_takes_a_withdrawn_slug(market: Client, database: Database, clock: FakeClock) -> None:
    await publish(market)
    await subscribe(market)
    await deleted(database, clock() + 1)
    before = await seen(market)
    with as_member("evil"), pytest.raises(NotFound):
        await market.CreateListing(listing())
    with as_member("globex"), pytest.raises(Conflict) as taken:
        await market.CreateListing(listing(endpoint="theirs"))
    assert taken.value.code == "name_taken"
    # Nor does its publisher without an endpoint, or with a card that says nothing.
    with pytest.raises(NotFound):
        await publish(market, endpoint="gone")
    with pytest.raises(Invalid, match="card line 1"):
        await publish(market, card="x")
    assert await seen(market) == before


# -- what subscribers and publishers see


async def test_a_listing_ends_with_its_endpoint(market: Client, database: Database, clock: FakeClock) -> None:
    made = await publish(market)
    held = await subscribe(market)
    for _ in range(2):
        await deleted(database, clock() + 1)
    after = await seen(market)
    assert (after.state, after.withdrawal_reason, after.version) == (
        listing_pb2.LISTING_STATE_WITHDRAWN,
        listing_pb2.WITHDRAWAL_REASON_ENDPOINT_DELETED,
        made.version + 1,
    )
    with pytest.raises(Conflict) as refused:
        await resolve(market)
    assert refused.value.code == "conflict"
    assert refused.value.detail == (
        "'breast-check' is not answered any more: its publisher acme has withdrawn the endpoint behind it; "
        "nothing is charged, and your subscription goes on if acme publishes it again"
    )
    with pytest.raises(Forbidden, match="withdrawn and takes no new subscribers"):
        await resolve(market, "late")
    with pytest.raises(Conflict, match="takes no new subscribers"):
        await subscribe(market, "late")
    # Rows that were answered before are owed.
    await record(market, "b1", (held.id, 3))
    [told] = await events(database, events_pb2.ListingWithdrawn)
    assert told.listing == after
    with as_member("buyer"):
        await market.Unsubscribe(pb.UnsubscribeRequest(slug="breast-check"))


async def test_every_listing_of_the_endpoint_ends(market: Client, database: Database, clock: FakeClock) -> None:
    for slug in ("breast-check", "second-check"):
        await publish(market, slug=slug)
    with as_member("globex"):
        await market.CreateListing(listing("their-check", endpoint="theirs"))
    await deleted(database, clock() + 1)
    with as_member("reader"):
        assert [each.slug for each in (await market.ListListings(pb.ListListingsRequest())).listings] == ["their-check"]


async def test_withdrawn_first_and_deleted_later(market: Client, database: Database, clock: FakeClock) -> None:
    await publish(market)
    await subscribe(market)
    with as_member("acme"):
        gone = await market.DeleteListing(pb.DeleteListingRequest(slug="breast-check"))
    assert gone.withdrawal_reason == listing_pb2.WITHDRAWAL_REASON_REQUESTED
    assert (await resolve(market)).endpoint == "wdbc"
    await deleted(database, clock() + 1)
    with pytest.raises(Conflict, match="withdrawn the endpoint"):
        await resolve(market)
    after = await seen(market)
    assert (after.withdrawal_reason, after.version) == (listing_pb2.WITHDRAWAL_REASON_ENDPOINT_DELETED, gone.version + 1)
    with as_member("acme"):
        assert await market.DeleteListing(pb.DeleteListingRequest(slug="breast-check")) == after
    assert len(await events(database, events_pb2.ListingWithdrawn)) == 1
    assert len(await events(database, events_pb2.ListingUpdated)) == 1


async def test_its_publisher_publishes_it_again(market: Client, database: Database, clock: FakeClock) -> None:
    made = await publish(market)
    held = await subscribe(market)
    await deleted(database, clock() + 1)
    with as_member("acme"), pytest.raises(Conflict, match="publish it again under the same slug"):
        await market.UpdateListing(pb.UpdateListingRequest(slug="breast-check", title="x"))
    clock.advance(60)
    again = await publish(market, title="Better", price=price(9))
    assert (again.state, again.withdrawal_reason, again.version) == (
        listing_pb2.LISTING_STATE_PUBLISHED,
        listing_pb2.WITHDRAWAL_REASON_UNSPECIFIED,
        made.version + 2,
    )
    assert (again.title, again.summary, again.subscribers, again.create_time) == ("Better", "", 1, made.create_time)
    # The one of old goes on at the price agreed to; the deletion, told again, is older than this endpoint.
    await deleted(database, clock() - 30)
    assert (await resolve(market)).subscription == held.id
    assert (await subscribe(market)).price.per_row == Money(currency="USD", micros=2000)
    assert (await subscribe(market, "late")).price.per_row.micros == 9
    with pytest.raises(Conflict, match="taken"):
        await publish(market)
    assert [each.listing.version for each in await events(database, events_pb2.ListingPublished)] == [made.version, again.version]
