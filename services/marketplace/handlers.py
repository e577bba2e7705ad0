"""The use cases of the marketplace: publish, subscribe, call, review."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from libs.db import Unit, new_id
from libs.errors import Conflict, Forbidden, Invalid, NotFound, Violation, near
from services.marketplace import repository, wire
from services.marketplace.domain.cards import check_card
from services.marketplace.domain.prices import words
from services.marketplace.tables import InvocationBatch, Listing, ListingState, Review, Subscription, SubscriptionState, WithdrawalReason

# More rows than one record can hold without the sum leaving 64 bits.
MOST_ROWS = 10**12


class Changes(NamedTuple):
    """What a publisher changes of a listing; None leaves as it is."""

    title: str | None = None
    summary: str | None = None
    card: str | None = None
    endpoint: str | None = None
    price: int | None = None


async def create_listing(
    unit: Unit, *, workspace: str, slug: str, title: str, summary: str, card: str, endpoint: str, price: int, now: float, seen: float
) -> Listing:
    """Publishes an endpoint of the workspace, which the caller has `seen`; also in place of a withdrawn listing of its own."""
    check_card(card)
    taken = Conflict(f"the slug '{slug}' is taken; choose another one", code="name_taken")
    listing = await repository.lock_listing(unit.session, slug)
    if listing is not None:
        if listing.publisher != workspace or listing.state != ListingState.WITHDRAWN:
            raise taken
        listing.title, listing.summary, listing.card, listing.price = title, summary, card, price
        listing.endpoint, listing.endpoint_time = endpoint, seen
        listing.state, listing.reason = ListingState.PUBLISHED, WithdrawalReason.NONE
        listing.changed(now)
        await unit.emit(wire.listing_published(listing))
        return listing
    listing = Listing(
        slug=slug,
        id=new_id("lst"),
        publisher=workspace,
        title=title,
        summary=summary,
        card=card,
        endpoint=endpoint,
        endpoint_time=seen,
        price=price,
        version=0,
        words="",
        create_time=now,
        update_time=now,
    )
    listing.changed(now)
    await unit.insert(listing, taken=taken)
    await unit.emit(wire.listing_published(listing))
    return listing


async def get_listing(session: AsyncSession, *, slug: str) -> Listing:
    """Anybody's; NotFound suggests near ones."""
    listing = await repository.listing(session, slug)
    if listing is None:
        raise _no_listing(slug, await repository.slugs(session))
    return listing


async def update_listing(unit: Unit, *, workspace: str, slug: str, changes: Changes, now: float, seen: float) -> Listing:
    """The publisher's alone; to others it is not there. A new endpoint was `seen` by the caller."""
    listing = await _own(unit, workspace, slug)
    if listing.state == ListingState.WITHDRAWN:
        raise Conflict(f"'{slug}' was withdrawn and changes no more; publish it again under the same slug: POST /v1/listings")
    if changes.title == "":
        raise Invalid.of([Violation("title", "must not be empty")])
    if changes.card is not None:
        check_card(changes.card)
    for field, value in changes._asdict().items():
        if value is not None:
            setattr(listing, field, value)
    if changes.endpoint is not None:
        listing.endpoint_time = seen
    listing.changed(now)
    await unit.emit(wire.listing_updated(listing))
    return listing


async def delete_listing(unit: Unit, *, workspace: str, slug: str, now: float) -> Listing:
    """Withdraws it; again: the same answer. Subscribers go on."""
    listing = await _own(unit, workspace, slug)
    if listing.state != ListingState.WITHDRAWN:
        listing.withdraw(WithdrawalReason.REQUESTED, now)
        await unit.emit(wire.listing_withdrawn(listing))
    return listing


async def withdraw_endpoint(unit: Unit, *, workspace: str, endpoint: str, deleted: float) -> None:
    """Withdraws every listing of an endpoint that was deleted at a time; one that was withdrawn before answers its subscribers no more."""
    for listing in await repository.lock_listings_of(unit.session, workspace, endpoint, deleted):
        if listing.reason == WithdrawalReason.ENDPOINT_DELETED:
            continue
        event = wire.listing_withdrawn if listing.state == ListingState.PUBLISHED else wire.listing_updated
        listing.withdraw(WithdrawalReason.ENDPOINT_DELETED, max(deleted, listing.update_time))
        await unit.emit(event(listing))


async def subscribe(unit: Unit, *, workspace: str, slug: str, now: float) -> Subscription:
    """Agrees to the price of now; who has subscribed keeps theirs."""
    listing = await _locked(unit, slug)
    active = await repository.active_subscription(unit.session, workspace, slug)
    if active is not None:
        return active
    if listing.state == ListingState.WITHDRAWN:
        raise Conflict(f"'{slug}' was withdrawn by its publisher and takes no new subscribers")
    subscription = Subscription(id=new_id("sub"), listing=slug, workspace=workspace, price=listing.price, create_time=now)
    await unit.insert(subscription)
    listing.subscribers += 1
    await unit.emit(wire.subscription_started(subscription))
    return subscription


async def unsubscribe(unit: Unit, *, workspace: str, slug: str, now: float) -> Subscription:
    """Ends it; again: the same answer."""
    listing = await _locked(unit, slug)
    subscription = await repository.last_subscription(unit.session, workspace, slug)
    if subscription is None:
        raise NotFound(f"workspace {workspace} has no subscription to '{slug}'")
    if subscription.state == SubscriptionState.ACTIVE:
        subscription.state, subscription.end_time = SubscriptionState.ENDED, now
        listing.subscribers -= 1
        await unit.emit(wire.subscription_ended(subscription))
    return subscription


async def create_review(unit: Unit, *, workspace: str, slug: str, stars: int, text: str, now: float) -> Review:
    """By those who have called it; again: instead of the first."""
    listing = await _locked(unit, slug)
    if listing.publisher == workspace:
        raise Forbidden("publishers do not review their own listings")
    if not await repository.has_called(unit.session, workspace, slug):
        raise Conflict(f"only those who have called '{slug}' review it; subscribe to it and call it first")
    review = await repository.review(unit.session, workspace, slug)
    if review is None:
        review = Review(listing=slug, workspace=workspace, id=new_id("rev"), stars=stars, text=text, create_time=now)
        unit.session.add(review)
        listing.reviews += 1
        listing.stars += stars
    else:
        listing.stars += stars - review.stars
        review.id, review.stars, review.text, review.create_time = new_id("rev"), stars, text, now
    await unit.emit(wire.review_created(review))
    return review


async def resolve_invocation(session: AsyncSession, *, buyer: str, slug: str) -> tuple[Listing, Subscription]:
    """Whose endpoint answers and under which subscription; Forbidden says how to get one, Conflict that the endpoint is gone."""
    listing = await get_listing(session, slug=slug)
    subscription = await repository.active_subscription(session, buyer, slug)
    if subscription is not None:
        if listing.reason == WithdrawalReason.ENDPOINT_DELETED:
            raise Conflict(
                f"'{slug}' is not answered any more: its publisher {listing.publisher} has withdrawn the endpoint behind it; "
                f"nothing is charged, and your subscription goes on if {listing.publisher} publishes it again",
                meta={"listing": slug},
            )
        return listing, subscription
    if listing.state == ListingState.WITHDRAWN:
        advice = "it was withdrawn and takes no new subscribers"
    else:
        advice = f"subscribe first: POST /v1/listings/{slug}/subscribe agrees to its price ({words(listing.price)})"
    raise Forbidden(f"workspace {buyer} has no subscription to '{slug}'; {advice}", code="subscription_required", meta={"listing": slug})


class Invocation(NamedTuple):
    """Rows answered under a subscription."""

    subscription: str
    requests: int
    rows: int


async def record_invocations(unit: Unit, *, batch_id: str, records: Sequence[Invocation], now: float) -> None:
    """Tells of each once: a batch that was recorded is not recorded again. Whole or not at all."""
    if await repository.batch(unit.session, batch_id):
        return
    unit.session.add(InvocationBatch(batch_id=batch_id, time=now))
    found = await repository.subscriptions_of_batch(unit.session, {record.subscription for record in records})
    for index, record in enumerate(records):
        if record.subscription not in found:
            raise NotFound(f"records[{index}]: there is no subscription '{record.subscription}'")
        if max(record.rows, record.requests) > MOST_ROWS:
            raise Invalid.of([Violation(f"records[{index}].rows", f"must be at most {MOST_ROWS}, got {record.rows}")])
        # An ended one too: the rows were answered before.
        subscription, publisher = found[record.subscription]
        subscription.requests += record.requests
        subscription.rows += record.rows
        await unit.emit(wire.listing_invoked(subscription, publisher, requests=record.requests, rows=record.rows, time=now))
    await unit.session.flush()


async def _locked(unit: Unit, slug: str) -> Listing:
    listing = await repository.lock_listing(unit.session, slug)
    if listing is None:
        raise _no_listing(slug, await repository.slugs(unit.session))
    return listing


async def _own(unit: Unit, workspace: str, slug: str) -> Listing:
    listing = await repository.lock_listing(unit.session, slug)
    if listing is None or listing.publisher != workspace:
        raise _no_listing(slug, await repository.slugs(unit.session, workspace), f" of workspace {workspace}")
    return listing


def _no_listing(slug: str, slugs: list[str], whose: str = "") -> NotFound:
    hints = near(slug, slugs)
    hint = f"; did you mean {' or '.join(hints)}?" if hints else ""
    errors = [Violation("slug", f"'{slug}' does not exist", tuple(hints))] if hints else []
    return NotFound(f"there is no listing '{slug}'{whose}{hint}", errors=errors)
