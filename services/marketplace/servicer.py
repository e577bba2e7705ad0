"""gRPC of the marketplace."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from lepton.deployment.v1.deployment_service_pb2 import GetEndpointRequest
from lepton.marketplace.v1 import listing_pb2
from lepton.marketplace.v1 import marketplace_service_pb2 as pb
from lepton.marketplace.v1.marketplace_service_pb2_grpc import MarketplaceServiceServicer
from libs.db import Database, page_size, page_token, start_after
from libs.errors import Invalid, NotFound, Violation
from libs.service.edge import Edge
from services.marketplace import handlers, repository, wire
from services.marketplace.domain.prices import check_price

# What was called is recorded by then.
TOLD_SECONDS = 2.0


class Deployment(Protocol):
    """What is asked of the deployment service, in the caller's name."""

    @property
    def GetEndpoint(self) -> Callable[[GetEndpointRequest], Awaitable[Any]]: ...


class MarketplaceServicer(Edge, MarketplaceServiceServicer):
    """`clock` tells seconds since 1970."""

    def __init__(self, database: Database, deployment: Deployment, clock: Callable[[], float] = time.time) -> None:
        super().__init__(database)
        self.deployment, self.clock = deployment, clock

    async def CreateListing(self, request: pb.CreateListingRequest, context: Any) -> listing_pb2.Listing:
        price = _price(request.price)
        async with self.unit(request):
            pass  # Was it answered before? Then nobody is asked again.
        seen = await self._check_endpoint(request.endpoint)
        async with self.unit(request) as unit:
            listing = await handlers.create_listing(
                unit,
                workspace=self.workspace,
                slug=request.slug,
                title=request.title,
                summary=request.summary,
                card=request.card,
                endpoint=request.endpoint,
                price=price,
                now=self.clock(),
                seen=seen,
            )
            return await unit.reply(wire.listing_message(listing))

    async def GetListing(self, request: pb.GetListingRequest, context: Any) -> listing_pb2.Listing:
        async with self.read() as session:
            return wire.listing_message(await handlers.get_listing(session, slug=request.slug))

    async def ListListings(self, request: pb.ListListingsRequest, context: Any) -> pb.ListListingsResponse:
        size, before = page_size(request.page_size), start_after(request.page_token)
        words = request.query.casefold().split()
        async with self.read() as session:
            found = await repository.listings(session, self.workspace, words, before, size + 1)
        messages = [wire.listing_message(listing, card=False) for listing in found[:size]]
        return pb.ListListingsResponse(listings=messages, next_page_token=_next(found, size))

    async def UpdateListing(self, request: pb.UpdateListingRequest, context: Any) -> listing_pb2.Listing:
        price = _price(request.price) if request.HasField("price") else None
        fields = {name: getattr(request, name) for name in ("title", "summary", "card", "endpoint") if request.HasField(name)}
        async with self.unit(request):
            pass  # Was it answered before? Then nobody is asked again.
        seen = await self._check_endpoint(fields["endpoint"]) if "endpoint" in fields else 0.0
        async with self.unit(request) as unit:
            changes = handlers.Changes(**fields, price=price)
            listing = await handlers.update_listing(
                unit, workspace=self.workspace, slug=request.slug, changes=changes, now=self.clock(), seen=seen
            )
            return await unit.reply(wire.listing_message(listing))

    async def DeleteListing(self, request: pb.DeleteListingRequest, context: Any) -> listing_pb2.Listing:
        async with self.unit(request) as unit:
            listing = await handlers.delete_listing(unit, workspace=self.workspace, slug=request.slug, now=self.clock())
            return await unit.reply(wire.listing_message(listing))

    async def Subscribe(self, request: pb.SubscribeRequest, context: Any) -> listing_pb2.Subscription:
        async with self.unit(request) as unit:
            subscription = await handlers.subscribe(unit, workspace=self.workspace, slug=request.slug, now=self.clock())
            return await unit.reply(wire.subscription_message(subscription))

    async def Unsubscribe(self, request: pb.UnsubscribeRequest, context: Any) -> listing_pb2.Subscription:
        async with self.unit(request) as unit:
            subscription = await handlers.unsubscribe(unit, workspace=self.workspace, slug=request.slug, now=self.clock())
            return await unit.reply(wire.subscription_message(subscription))

    async def ListSubscriptions(self, request: pb.ListSubscriptionsRequest, context: Any) -> pb.ListSubscriptionsResponse:
        size, before = page_size(request.page_size), start_after(request.page_token)
        async with self.read() as session:
            found = await repository.subscriptions(session, self.workspace, before, size + 1)
        messages = [wire.subscription_message(subscription) for subscription in found[:size]]
        return pb.ListSubscriptionsResponse(subscriptions=messages, next_page_token=_next(found, size))

    async def CreateReview(self, request: pb.CreateReviewRequest, context: Any) -> listing_pb2.Review:
        await self._hear_of_calls(request.slug)
        async with self.unit(request) as unit:
            review = await handlers.create_review(
                unit, workspace=self.workspace, slug=request.slug, stars=request.stars, text=request.text, now=self.clock()
            )
            return await unit.reply(wire.review_message(review))

    async def _hear_of_calls(self, slug: str) -> None:
        """A gateway tells of a call a moment after it was answered."""
        workspace, give_up = self.workspace, time.monotonic() + TOLD_SECONDS
        while True:
            async with self.read() as session:
                subscription = await repository.last_subscription(session, workspace, slug)
                if subscription is None or await repository.has_called(session, workspace, slug):
                    return
            if time.monotonic() > give_up:
                return
            await asyncio.sleep(0.1)

    async def ListReviews(self, request: pb.ListReviewsRequest, context: Any) -> pb.ListReviewsResponse:
        size, before = page_size(request.page_size), start_after(request.page_token)
        async with self.read() as session:
            await handlers.get_listing(session, slug=request.slug)
            found = await repository.reviews(session, request.slug, before, size + 1)
        return pb.ListReviewsResponse(reviews=[wire.review_message(review) for review in found[:size]], next_page_token=_next(found, size))

    async def ResolveInvocation(self, request: pb.ResolveInvocationRequest, context: Any) -> pb.ResolveInvocationResponse:
        async with self.read() as session:
            listing, subscription = await handlers.resolve_invocation(session, buyer=request.buyer, slug=request.slug)
        return pb.ResolveInvocationResponse(publisher=listing.publisher, endpoint=listing.endpoint, subscription=subscription.id)

    async def RecordInvocations(self, request: pb.RecordInvocationsRequest, context: Any) -> pb.RecordInvocationsResponse:
        records = [handlers.Invocation(record.subscription, record.requests, record.rows) for record in request.records]
        async with self.unit(request) as unit:
            await handlers.record_invocations(unit, batch_id=request.batch_id, records=records, now=self.clock())
            return await unit.reply(pb.RecordInvocationsResponse())

    async def _check_endpoint(self, name: str) -> float:
        """A time at which the workspace has the endpoint. Raises NotFound where it has none, whoever else has one."""
        seen = self.clock()
        try:
            await self.deployment.GetEndpoint(GetEndpointRequest(name=name))
        except NotFound as missing:
            hints = missing.errors[0].suggestions if missing.errors else ()
            raise NotFound(missing.detail, errors=[Violation("endpoint", f"'{name}' does not exist", hints)]) from missing
        return seen


def _price(price: listing_pb2.Price) -> int:
    if not price.HasField("per_row"):
        raise Invalid.of([Violation("price.per_row", 'is required; {"currency": "USD", "micros": 0} is free')])
    return check_price(price.per_row.currency, price.per_row.micros)


def _next(found: list[Any], size: int) -> str:
    """The token of the next page, where there is one: `found` was asked for one more than the page holds."""
    return page_token(found[size - 1].id) if len(found) > size else ""
