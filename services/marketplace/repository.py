"""Every query. Listings and reviews are public; a subscription is asked for by its workspace."""

from sqlalchemy import delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from services.marketplace.tables import InvocationBatch, Listing, ListingState, Review, Subscription, SubscriptionState

# As many slugs are looked through for near ones.
NEAR = 10_000


async def listing(session: AsyncSession, slug: str) -> Listing | None:
    return await session.get(Listing, slug)


async def lock_listing(session: AsyncSession, slug: str) -> Listing | None:
    """Makes others who would change the listing, its subscriptions or reviews wait. SQLite's writers do so by themselves."""
    query = select(Listing).where(Listing.slug == slug).with_for_update().execution_options(populate_existing=True)
    return (await session.execute(query)).scalar()


async def lock_listings_of(session: AsyncSession, publisher: str, endpoint: str, seen_before: float) -> list[Listing]:
    """Those behind which the endpoint stands, unless it was seen since."""
    where = (Listing.publisher == publisher, Listing.endpoint == endpoint, Listing.endpoint_time < seen_before)
    query = select(Listing).where(*where).order_by(Listing.slug).with_for_update().execution_options(populate_existing=True)
    return list((await session.execute(query)).scalars())


async def listings(session: AsyncSession, workspace: str, words: list[str], before: str | None, limit: int) -> list[Listing]:
    """Published ones and the workspace's own withdrawn ones that contain all (case-folded) words; newest first."""
    query = select(Listing).where(or_(Listing.state == ListingState.PUBLISHED, Listing.publisher == workspace))
    for word in words:
        query = query.where(col(Listing.words).contains(word, autoescape=True))
    if before is not None:
        query = query.where(Listing.id < before)
    return list((await session.execute(query.order_by(col(Listing.id).desc()).limit(limit))).scalars())


async def slugs(session: AsyncSession, publisher: str = "") -> list[str]:
    """Of published listings, or of all of one publisher."""
    query = select(Listing.slug).where(Listing.publisher == publisher if publisher else Listing.state == ListingState.PUBLISHED)
    return list((await session.execute(query.order_by(col(Listing.id).desc()).limit(NEAR))).scalars())


async def active_subscription(session: AsyncSession, workspace: str, slug: str) -> Subscription | None:
    where = (Subscription.workspace == workspace, Subscription.listing == slug, Subscription.state == SubscriptionState.ACTIVE)
    return (await session.execute(select(Subscription).where(*where))).scalar()


async def last_subscription(session: AsyncSession, workspace: str, slug: str) -> Subscription | None:
    query = select(Subscription).where(Subscription.workspace == workspace, Subscription.listing == slug)
    return (await session.execute(query.order_by(col(Subscription.id).desc()).limit(1))).scalar()


async def subscriptions(session: AsyncSession, workspace: str, before: str | None, limit: int) -> list[Subscription]:
    """Newest first, the ended ones among them."""
    query = select(Subscription).where(Subscription.workspace == workspace)
    if before is not None:
        query = query.where(Subscription.id < before)
    return list((await session.execute(query.order_by(col(Subscription.id).desc()).limit(limit))).scalars())


async def has_called(session: AsyncSession, workspace: str, slug: str) -> bool:
    where = (Subscription.workspace == workspace, Subscription.listing == slug, Subscription.requests > 0)
    return (await session.execute(select(Subscription.id).where(*where).limit(1))).scalar() is not None


async def subscriptions_of_batch(session: AsyncSession, ids: set[str]) -> dict[str, tuple[Subscription, str]]:
    """Subscription and publisher by id, whosever they are: for what the gateway records."""
    query = (
        select(Subscription, Listing.publisher)
        .join(Listing, col(Listing.slug) == Subscription.listing)
        .where(col(Subscription.id).in_(ids))
        .order_by(Subscription.id)
        .with_for_update(of=Subscription)
    )
    return {found.id: (found, publisher) for found, publisher in await session.execute(query)}


async def batch(session: AsyncSession, batch_id: str) -> InvocationBatch | None:
    return await session.get(InvocationBatch, batch_id)


async def forget_batches(session: AsyncSession, before: float) -> None:
    await session.execute(delete(InvocationBatch).where(col(InvocationBatch.time) < before))


async def review(session: AsyncSession, workspace: str, slug: str) -> Review | None:
    return await session.get(Review, (slug, workspace))


async def reviews(session: AsyncSession, slug: str, before: str | None, limit: int) -> list[Review]:
    """Newest first."""
    query = select(Review).where(Review.listing == slug)
    if before is not None:
        query = query.where(Review.id < before)
    return list((await session.execute(query.order_by(col(Review.id).desc()).limit(limit))).scalars())
