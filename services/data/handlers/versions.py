"""A version's way: begun under a number, confirmed once its quota is taken, claimed by a worker, and ready, failed or withdrawn.

What a worker writes is fenced by its lease: under one that was lost, LeaseLost is raised and nothing changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.db import Unit
from libs.errors import AppError, Conflict, Transient
from services.data import repository, wire
from services.data.domain import words
from services.data.domain.states import MAX_ATTEMPTS, State
from services.data.handlers import datasets
from services.data.tables import SPLIT, File, Version, VersionProfile


class LeaseLost(AppError):
    """Another worker has the version, or it is gone."""

    default_code = "stale"


@dataclass(frozen=True)
class Key:
    """Which version."""

    workspace: str
    dataset: str
    number: int

    @classmethod
    def of(cls, version: Version) -> "Key":
        return cls(version.workspace, version.dataset, version.number)


@dataclass(frozen=True)
class Lease:
    """A worker's right to write about a version."""

    key: Key
    token: int


@dataclass(frozen=True)
class Source:
    """What a version is made of: files that it names while it is made, and what the engine does with them."""

    job: dict[str, Any]
    lineage: bytes
    # (role, name, digest, size)
    files: Sequence[tuple[str, str, str, int]]


# By the service


async def begin_version(
    unit: Unit, *, workspace: str, dataset: str, source: Source, request_key: str | None, awaited_until: float, traceparent: str, now: float
) -> Version:
    """Takes a number. Nobody works at it before `confirm_version`."""
    row, number = await datasets.place_for_version(unit, workspace=workspace, name=dataset, now=now)
    version = Version(
        workspace=workspace,
        dataset=row.name,
        number=number,
        job=source.job,
        lineage=source.lineage,
        request_key=request_key,
        awaited_until=awaited_until,
        traceparent=traceparent,
        create_time=now,
    )
    await unit.insert(version, taken=Conflict("the same request is still being answered; wait for it", code="in_progress"))
    for position, (role, name, digest, size) in enumerate(source.files):
        unit.session.add(
            File(workspace=workspace, dataset=row.name, number=number, role=role, position=position, name=name, digest=digest, size=size)
        )
    await unit.session.flush()
    return version


async def confirm_version(unit: Unit, key: Key) -> Version:
    """Its quota is taken: workers may take it up. Raises Transient where it took so long that the reconciler has withdrawn it."""
    version = await _find(unit, key)
    if version is None:
        raise Transient("making the version took too long; try again")
    if version.state == State.RESERVING:
        version.state = State.PROCESSING
    return version


async def stop_waiting(unit: Unit, key: Key) -> Version | None:
    """The caller goes: from now on the version itself says what became of it. A refusal that is there already still answers the caller.
    None where the version is gone."""
    version = await _find(unit, key)
    if version is not None and version.state == State.PROCESSING:
        version.awaited_until = 0.0
    return version


async def withdraw_version(unit: Unit, key: Key, now: float) -> None:
    """Removes one that nobody may see: refused while the caller waited, or never confirmed. Its quota must have been given back."""
    version = await _find(unit, key)
    if version is not None and not State(version.state).visible:
        await datasets.leave_version(unit, version, now)


# By workers


async def claim_version(unit: Unit, key: Key, *, holder: str, now: float, lease_seconds: float) -> tuple[Lease, Version] | None:
    """The lease; None where there is nothing to do. A version that was interrupted too often fails instead."""
    version = await _find(unit, key)
    if version is None or not version.is_claimable(now):
        return None
    if version.attempts >= MAX_ATTEMPTS:
        why = AppError(f"making it was interrupted {version.attempts} times; try again, or with a smaller file", code="process_failed")
        await _refuse(unit, version, why)
        return None
    version.claim(holder, now + lease_seconds)
    return Lease(key, version.lease_token), version


async def renew_lease(unit: Unit, lease: Lease, expires: float) -> None:
    (await _held(unit, lease)).lease_expires = expires


async def put_back(unit: Unit, lease: Lease, *, now: float, counts: bool, pause: float = 0.0) -> None:
    """Gives it to whoever comes next."""
    (await _held(unit, lease)).put_back(now, counts=counts, pause=pause)


async def refuse_version(unit: Unit, lease: Lease, error: AppError) -> None:
    """The data or the steps are wrong: it will never be ready."""
    await _refuse(unit, await _held(unit, lease), error)


async def finish_version(unit: Unit, lease: Lease, made: Mapping[str, Any], digests: Mapping[str, str], now: float) -> None:
    """Ready, with its event. `made` is what the engine answered, `digests` where the splits lie by their names."""
    version = await _held(unit, lease)
    try:
        dataset = await datasets.settle_kind(unit, version, made["kind"])
    except AppError as error:
        if error.entry.retryable:
            raise
        await _refuse(unit, version, error)
        return
    if dataset is None:
        raise LeaseLost(f"dataset {version.dataset} is gone")
    version.finish(dict(made), now)
    await repository.note_orphans(unit.session, await repository.delete_inputs(unit.session, version), now)
    splits = [
        File(
            workspace=version.workspace,
            dataset=version.dataset,
            number=version.number,
            role=SPLIT,
            position=position,
            name=split["name"],
            rows=split["rows"],
            digest=digests[split["name"]],
            size=split["size_bytes"],
        )
        for position, split in enumerate(made["splits"])
    ]
    profile = wire.profile_message(made["profile"]).SerializeToString()
    unit.session.add_all(splits)
    unit.session.add(VersionProfile(workspace=version.workspace, dataset=version.dataset, number=version.number, message=profile))
    await unit.emit(wire.ready(version, splits))


async def _refuse(unit: Unit, version: Version, error: AppError) -> None:
    version.refuse(error.as_dict())
    if version.state == State.FAILED:
        await repository.delete_inputs(unit.session, version)
        await unit.emit(wire.failed(version))


async def _find(unit: Unit, key: Key) -> Version | None:
    return await repository.find_version(unit.session, key.workspace, key.dataset, key.number, lock=True)


async def _held(unit: Unit, lease: Lease) -> Version:
    version = await _find(unit, lease.key)
    if version is None or version.lease_token != lease.token or not version.lease_holder:
        raise LeaseLost(f"version {lease.key.dataset}@{lease.key.number} is no longer this worker's")
    return version


# Reading


async def ready_version(session: Any, *, workspace: str, dataset: str, number: int) -> Version:
    """Raises NotFound or Conflict in words."""
    version = await visible_version(session, workspace=workspace, dataset=dataset, number=number)
    if version.state != State.READY:
        why = version.error["detail"] if version.error else ""
        raise words.not_ready(dataset, version.number, State(version.state), why)
    return version


async def visible_version(session: Any, *, workspace: str, dataset: str, number: int) -> Version:
    """Number 0: the newest that is ready."""
    if await repository.find_dataset(session, workspace, dataset) is None:
        raise words.no_dataset(dataset, await repository.dataset_names(session, workspace))
    if not number:
        newest = await repository.newest_ready(session, workspace, dataset)
        if newest is None:
            raise words.nothing_ready(dataset, await repository.version_states(session, workspace, dataset))
        return newest
    version = await repository.find_version(session, workspace, dataset, number)
    if version is None or not State(version.state).visible:
        raise words.no_version(dataset, number, [one for one, _ in await repository.version_states(session, workspace, dataset)])
    return version


async def refuse_other_kind(session: Any, *, workspace: str, dataset: str, kind: str) -> None:
    """Before a version of a known kind is begun in a dataset that holds another one."""
    row = await repository.find_dataset(session, workspace, dataset)
    if row is not None and row.kind and row.kind != kind:
        raise words.other_kind(dataset, row.kind, kind)


def refusal(version: Version) -> AppError:
    """What the waiting caller is told."""
    return AppError.from_dict(version.error) if version.error else Conflict("the version was refused")
