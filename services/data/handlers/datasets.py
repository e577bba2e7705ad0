"""Datasets: names under which versions are kept."""

from libs.db import Unit
from libs.errors import Conflict, Violation
from services.data import repository, wire
from services.data.domain import words
from services.data.domain.states import State
from services.data.tables import Dataset, Version


async def create_dataset(unit: Unit, *, workspace: str, name: str, description: str, now: float) -> Dataset:
    found = await repository.find_dataset(unit.session, workspace, name, deleted=True, lock=True)
    if found and not found.deleted:
        raise _taken(name)
    if found:
        found.deleted, found.kind, found.description, found.create_time = False, "", description, now
        return found
    row = Dataset(workspace=workspace, name=name, description=description, create_time=now)
    return await unit.insert(row, taken=_taken(name))


def _taken(name: str) -> Conflict:
    message = f"dataset '{name}' exists already; upload a new version of it, or take another name"
    return Conflict(message, code="name_taken", errors=[Violation("name", message)])


async def update_dataset(unit: Unit, *, workspace: str, name: str, description: str | None) -> Dataset:
    row = await get_dataset(unit, workspace=workspace, name=name, lock=True)
    if description is not None:
        row.description = description
        row.implicit = False
    return row


async def delete_dataset(unit: Unit, *, workspace: str, name: str, now: float) -> None:
    """The name is free again, its numbers stay used. The objects go when no other row names them."""
    row = await get_dataset(unit, workspace=workspace, name=name, lock=True)
    versions = await repository.all_versions(unit.session, workspace, name)
    row.deleted, row.implicit = True, False
    row.used_numbers = max([row.used_numbers, *(version.number for version in versions)])
    for version in versions:
        await repository.note_orphans(unit.session, await repository.delete_version(unit.session, version), now)
    await unit.emit(wire.deleted(row, [version.number for version in versions]))


async def get_dataset(unit: Unit, *, workspace: str, name: str, lock: bool = False) -> Dataset:
    row = await repository.find_dataset(unit.session, workspace, name, lock=lock)
    if row is None:
        raise words.no_dataset(name, await repository.dataset_names(unit.session, workspace))
    return row


async def place_for_version(unit: Unit, *, workspace: str, name: str, now: float) -> tuple[Dataset, int]:
    """The dataset, made where there is none, and the number of its next version. Locks the dataset."""
    row = await repository.find_dataset(unit.session, workspace, name, deleted=True, lock=True)
    if row is None:
        row = await unit.insert(Dataset(workspace=workspace, name=name, create_time=now, implicit=True))
    elif row.deleted:
        row.deleted, row.implicit, row.kind, row.description, row.create_time = False, True, "", "", now
    return row, max(row.used_numbers, await repository.last_number(unit.session, workspace, name)) + 1


async def leave_version(unit: Unit, version: Version, now: float) -> None:
    """Removes a version that nobody was told of, and the dataset that was made for it alone."""
    row = await repository.find_dataset(unit.session, version.workspace, version.dataset, lock=True)
    digests = await repository.delete_version(unit.session, version)
    await repository.note_orphans(unit.session, digests, now)
    if row and row.implicit and not await repository.last_number(unit.session, version.workspace, version.dataset):
        if row.used_numbers:
            row.deleted, row.implicit = True, False
        else:
            await unit.session.delete(row)
            await unit.session.flush()


async def settle_kind(unit: Unit, version: Version, kind: str) -> Dataset | None:
    """A version is about to be ready: its dataset is there to stay, and of this kind. None where it is gone; raises Invalid where it holds
    another kind."""
    row = await repository.find_dataset(unit.session, version.workspace, version.dataset, lock=True)
    if row is None:
        return None
    if row.kind and row.kind != kind:
        raise words.other_kind(row.name, row.kind, kind)
    row.kind, row.implicit = kind, False
    return row


def is_heard(version: Version) -> bool:
    """Whether its maker's request has its final answer in it."""
    return version.state in (State.READY, State.FAILED, State.REFUSED)
