"""Every query of the service. What looks over all workspaces says so in its name."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.data.domain.states import VISIBLE, State
from services.data.tables import INPUT, SPLIT, Dataset, File, Orphan, Version, VersionProfile

NEAR_NAMES = 2000


# Datasets


async def find_dataset(session: AsyncSession, workspace: str, name: str, *, deleted: bool = False, lock: bool = False) -> Dataset | None:
    """`deleted`: also one that is deleted."""
    query = select(Dataset).where(Dataset.workspace == workspace, Dataset.name == name)
    if not deleted:
        query = query.where(Dataset.deleted.is_(False))
    return (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()


async def dataset_names(session: AsyncSession, workspace: str) -> list[str]:
    query = select(Dataset.name).where(Dataset.workspace == workspace, Dataset.deleted.is_(False)).order_by(Dataset.name)
    return list((await session.execute(query.limit(NEAR_NAMES))).scalars())


async def list_datasets(session: AsyncSession, workspace: str, *, after: str | None, limit: int) -> list[Dataset]:
    """By name."""
    query = select(Dataset).where(Dataset.workspace == workspace, Dataset.deleted.is_(False)).order_by(Dataset.name)
    if after is not None:
        query = query.where(Dataset.name > after)
    return list((await session.execute(query.limit(limit))).scalars())


async def latest_numbers(session: AsyncSession, workspace: str, names: Sequence[str]) -> dict[str, int]:
    """By dataset, the number of its newest visible version; those without one are left out."""
    query = select(Version.dataset, func.max(Version.number)).where(
        Version.workspace == workspace, Version.dataset.in_(names), Version.state.in_(VISIBLE)
    )
    return {row[0]: row[1] for row in await session.execute(query.group_by(Version.dataset))}


async def last_number(session: AsyncSession, workspace: str, dataset: str) -> int:
    """The highest number that any row has; 0 for none."""
    query = select(func.max(Version.number)).where(Version.workspace == workspace, Version.dataset == dataset)
    return (await session.execute(query)).scalar() or 0


# Versions


async def find_version(session: AsyncSession, workspace: str, dataset: str, number: int, *, lock: bool = False) -> Version | None:
    """In whatever state."""
    query = select(Version).where(Version.workspace == workspace, Version.dataset == dataset, Version.number == number)
    return (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()


async def find_version_of_request(session: AsyncSession, workspace: str, request_key: str) -> Version | None:
    query = select(Version).where(Version.workspace == workspace, Version.request_key == request_key)
    return (await session.execute(query)).scalar_one_or_none()


async def newest_ready(session: AsyncSession, workspace: str, dataset: str) -> Version | None:
    query = select(Version).where(Version.workspace == workspace, Version.dataset == dataset, Version.state == State.READY)
    return (await session.execute(query.order_by(Version.number.desc()).limit(1))).scalar_one_or_none()


async def version_states(session: AsyncSession, workspace: str, dataset: str) -> list[tuple[int, State]]:
    """Of the visible ones, newest first."""
    query = select(Version.number, Version.state).where(
        Version.workspace == workspace, Version.dataset == dataset, Version.state.in_(VISIBLE)
    )
    return [(row[0], State(row[1])) for row in await session.execute(query.order_by(Version.number.desc()))]


async def list_versions(session: AsyncSession, workspace: str, dataset: str, *, before: int | None, limit: int) -> list[Version]:
    """The visible ones, newest first."""
    query = select(Version).where(Version.workspace == workspace, Version.dataset == dataset, Version.state.in_(VISIBLE))
    if before is not None:
        query = query.where(Version.number < before)
    return list((await session.execute(query.order_by(Version.number.desc()).limit(limit))).scalars())


async def all_versions(session: AsyncSession, workspace: str, dataset: str) -> list[Version]:
    """In whatever state, locked."""
    query = select(Version).where(Version.workspace == workspace, Version.dataset == dataset).order_by(Version.number)
    return list((await session.execute(query.with_for_update())).scalars())


async def delete_version(session: AsyncSession, version: Version) -> list[str]:
    """With all that belongs to it; answers the digests it had named."""
    digests = [file.digest for file in await files(session, [version])]
    await session.execute(delete(File).where(*_of(File, version)))
    await session.execute(delete(VersionProfile).where(*_of(VersionProfile, version)))
    await session.delete(version)
    await session.flush()
    return digests


def _of(table: type[File] | type[VersionProfile], version: Version) -> tuple[Any, Any, Any]:
    return (table.workspace == version.workspace, table.dataset == version.dataset, table.number == version.number)


# Files and profiles


async def files(session: AsyncSession, versions: Sequence[Version], roles: Sequence[str] = ()) -> list[File]:
    """Of versions of one dataset, in order."""
    if not versions:
        return []
    query = select(File).where(
        File.workspace == versions[0].workspace, File.dataset == versions[0].dataset, File.number.in_([v.number for v in versions])
    )
    if roles:
        query = query.where(File.role.in_(roles))
    return list((await session.execute(query.order_by(File.number, File.role, File.position))).scalars())


async def splits(session: AsyncSession, version: Version) -> list[File]:
    return await files(session, [version], [SPLIT])


async def delete_inputs(session: AsyncSession, version: Version) -> list[str]:
    """Once it is made, it needs its source no more; answers their digests."""
    digests = [file.digest for file in await files(session, [version], [INPUT])]
    await session.execute(delete(File).where(*_of(File, version), File.role == INPUT))
    return digests


async def find_profile(session: AsyncSession, version: Version) -> VersionProfile | None:
    return await session.get(VersionProfile, (version.workspace, version.dataset, version.number))


async def note_orphans(session: AsyncSession, digests: Iterable[str], now: float) -> None:
    for digest in set(digests):
        await session.merge(Orphan(digest=digest, time=now))


# Over all workspaces: for workers, reconciler and sweep


async def claimable_of_all_workspaces(session: AsyncSession, now: float, limit: int) -> list[tuple[str, str, int]]:
    """(workspace, dataset, number) of versions that are to be made and that nobody is at; oldest first."""
    query = select(Version.workspace, Version.dataset, Version.number).where(
        Version.state == State.PROCESSING, Version.lease_expires <= now, Version.not_before <= now
    )
    return [(row[0], row[1], row[2]) for row in await session.execute(query.order_by(Version.create_time).limit(limit))]


async def abandoned_of_all_workspaces(session: AsyncSession, *, reserving_since: float, awaited_until: float) -> list[Version]:
    """Those whose caller went away: before the quota was taken, or before hearing of the outcome."""
    reserving = (Version.state == State.RESERVING) & (Version.create_time < reserving_since)
    unheard = (Version.state.in_((State.PROCESSING, State.REFUSED))) & (Version.awaited_until > 0) & (Version.awaited_until < awaited_until)
    return list((await session.execute(select(Version).where(or_(reserving, unheard)))).scalars())


async def due_orphans_of_all_workspaces(session: AsyncSession, before: float, limit: int = 200) -> list[str]:
    return list((await session.execute(select(Orphan.digest).where(Orphan.time < before).limit(limit))).scalars())


async def forget_orphans_of_all_workspaces(session: AsyncSession, digests: Sequence[str]) -> None:
    await session.execute(delete(Orphan).where(Orphan.digest.in_(digests)))


async def unnamed_of_all_workspaces(session: AsyncSession, digests: Sequence[str]) -> list[str]:
    """Those that no row names."""
    named = set((await session.execute(select(File.digest).where(File.digest.in_(digests)))).scalars())
    return [digest for digest in digests if digest not in named]
