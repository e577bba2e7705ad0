"""Entities as messages, and the events of the marketplace."""

from typing import cast

from google.protobuf.timestamp_pb2 import Timestamp

from lepton.common.v1 import resource_pb2
from lepton.marketplace.v1 import events_pb2, listing_pb2
from libs.events import Event
from services.marketplace.domain.prices import CURRENCY, MICROS
from services.marketplace.tables import Listing, Review, Subscription


def timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(round(seconds * MICROS))
    return stamp


def money(micros: int) -> resource_pb2.Money:
    return resource_pb2.Money(currency=CURRENCY, micros=micros)


def price_message(micros: int) -> listing_pb2.Price:
    return listing_pb2.Price(per_row=money(micros))


def listing_message(listing: Listing, *, card: bool = True) -> listing_pb2.Listing:
    """Without the card in lists: a page of a thousand would be a hundred megabytes."""
    return listing_pb2.Listing(
        slug=listing.slug,
        publisher=listing.publisher,
        title=listing.title,
        summary=listing.summary,
        card=listing.card if card else "",
        endpoint=listing.endpoint,
        price=price_message(listing.price),
        state=cast(listing_pb2.ListingState, int(listing.state)),
        version=listing.version,
        reviews=listing.reviews,
        rating=listing.rating,
        subscribers=listing.subscribers,
        create_time=timestamp(listing.create_time),
        update_time=timestamp(listing.update_time),
        withdrawal_reason=cast(listing_pb2.WithdrawalReason, int(listing.reason)),
    )


def subscription_message(subscription: Subscription) -> listing_pb2.Subscription:
    return listing_pb2.Subscription(
        id=subscription.id,
        listing=subscription.listing,
        workspace=subscription.workspace,
        state=cast(listing_pb2.SubscriptionState, int(subscription.state)),
        price=price_message(subscription.price),
        create_time=timestamp(subscription.create_time),
        end_time=None if subscription.end_time is None else timestamp(subscription.end_time),
    )


def review_message(review: Review) -> listing_pb2.Review:
    return listing_pb2.Review(
        listing=review.listing,
        workspace=review.workspace,
        stars=review.stars,
        text=review.text,
        create_time=timestamp(review.create_time),
    )


def listing_published(listing: Listing) -> Event:
    return Event.of(events_pb2.ListingPublished(listing=listing_message(listing)), key=listing.slug)


def listing_updated(listing: Listing) -> Event:
    return Event.of(events_pb2.ListingUpdated(listing=listing_message(listing)), key=listing.slug)


def listing_withdrawn(listing: Listing) -> Event:
    return Event.of(events_pb2.ListingWithdrawn(listing=listing_message(listing)), key=listing.slug)


def subscription_started(subscription: Subscription) -> Event:
    message = events_pb2.SubscriptionStarted(subscription=subscription_message(subscription))
    return Event.of(message, key=subscription.id)


def subscription_ended(subscription: Subscription) -> Event:
    return Event.of(events_pb2.SubscriptionEnded(subscription=subscription_message(subscription)), key=subscription.id)


def listing_invoked(subscription: Subscription, publisher: str, *, requests: int, rows: int, time: float) -> Event:
    message = events_pb2.ListingInvoked(
        listing=subscription.listing,
        subscription=subscription.id,
        buyer=subscription.workspace,
        publisher=publisher,
        requests=requests,
        rows=rows,
        unit_price=money(subscription.price),
        time=timestamp(time),
    )
    return Event.of(message, key=subscription.id)


def review_created(review: Review) -> Event:
    return Event.of(events_pb2.ReviewCreated(review=review_message(review)), key=review.listing)
