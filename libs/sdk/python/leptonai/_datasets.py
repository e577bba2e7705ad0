"""Datasets: bytes in, typed immutable versions out."""

import os
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from leptonai._errors import APIError, InvalidInput, error_from_problem
from leptonai._files import content_of, saved, sha256_of
from leptonai._refs import name_of, parse
from leptonai._session import AsyncPages, AsyncSession, Call, Flow, Pages, Put, Session, Work, as_given, page_of, path, until
from leptonai._steps import Step
from leptonai._transport import CHUNK, Content, TransportFailure, digest_of
from leptonai._types import Dataset, DatasetVersion, Preview, Profile

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")

WAIT_AT_ONCE = 30
# Less is there sooner than a place in the store is found, and no store takes more in one request.
DIRECT_BYTES = 8 << 20
DIRECT_LIMIT = 5 << 30
# Of platforms without uploads to the store, or which do not know this one any more.
_NOT_OFFERED = (404, 405, 501)


class Datasets:
    """`client.datasets`. A version is meant by "name@n", or by "name" for the newest that is ready. Errors: APIError and its kin."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def upload(self, name: str, source: Any, *, filename: str | None = None, wait: float | None = 600) -> DatasetVersion:
        """Makes a new version of `source` and returns it, ready.

        source: path of a CSV, TSV, JSON lines or Parquet file, of a ZIP or of a folder with a folder of pictures a class; bytes; or a
        pandas DataFrame (without its index). filename tells the format of bytes. wait: seconds; 0 returns a version still processing.
        Raises InvalidData, with the line, for a file that cannot be read; then nothing is stored.
        """
        return self._session.flow(_upload(name, source, filename, wait))

    def create(self, name: str, *, description: str = "") -> Dataset:
        """Makes a dataset without versions; not needed before an upload."""
        return self._session.run(_create(name, description))

    def get(self, name: str) -> Dataset:
        """One dataset."""
        return self._session.run(Call("GET", path("datasets", name_of(name)), Dataset.from_json))

    def list(self) -> Pages[Dataset]:
        """All of the workspace."""
        return Pages(self._session, page_of(("datasets",), "datasets", Dataset))

    def update(self, name: str, *, description: str) -> Dataset:
        """Changes the description."""
        return self._session.run(_update(name, description))

    def delete(self, name: str) -> None:
        """Deletes every version."""
        self._session.run(Call("DELETE", path("datasets", name_of(name)), _nothing))

    def version(self, ref: Any) -> DatasetVersion:
        """One version."""
        return self._session.run(_version(*parse(ref)))

    def versions(self, name: str) -> Pages[DatasetVersion]:
        """All versions, newest first."""
        return Pages(self._session, page_of(("datasets", name_of(name), "versions"), "versions", DatasetVersion))

    def wait_ready(self, ref: Any, timeout: float | None = 600) -> DatasetVersion:
        """Waits until a version is ready; raises what made it fail, or Timeout after `timeout` seconds."""
        return self._session.flow(_ready(*parse(ref), timeout))

    def preview(self, ref: Any, *, rows: int = 20, split: str = "") -> Preview:
        """First rows (at most 1000)."""
        return self._session.flow(_part(ref, "preview", Preview.from_json, {"rows": rows, "split": split}))

    def profile(self, ref: Any) -> Profile:
        """What is in each column."""
        return self._session.flow(_part(ref, "profile", Profile.from_json, {}))

    def transform(
        self, ref: Any, steps: Sequence[Step | Mapping[str, Any]], *, output: str = "", wait: float | None = 600
    ) -> DatasetVersion:
        """Makes a new version by steps (see `la.steps`) over one, in this dataset or in `output`. wait: seconds, 0 for none."""
        return self._session.flow(_transform(ref, steps, output, wait))

    def download(self, ref: Any, target: str | os.PathLike[str], *, split: str = "") -> Path:
        """Writes a version as Parquet, its digest checked, and returns where; `split` is needed where it has several.

        A folder gets <name>-<n>.parquet.
        """
        name, number = self._session.flow(_number(ref))
        place = _place(target, name, number, split)
        call = _content(name, number, split)
        with self._session.stream(call) as stream, saved(place, digest_of(stream.headers.get("etag", ""))) as file:
            try:
                for chunk in stream.chunks():
                    file.write(chunk)
            except TransportFailure as failure:
                raise self._session.settings.failure(self._session.settings.request(call), failure) from None
        return place

    def to_pandas(self, ref: Any, *, split: str = "") -> "pandas.DataFrame":
        """A version, or one split of it, as a DataFrame; needs pandas and pyarrow."""
        import pandas

        version = self.version(ref)
        splits = [split] if split else [part.name for part in version.splits] or [""]
        with tempfile.TemporaryDirectory() as folder:
            frames = [pandas.read_parquet(self.download(version, folder, split=part)) for part in splits]
        return frames[0] if len(frames) == 1 else pandas.concat(frames, ignore_index=True)


class AsyncDatasets:
    """As Datasets, for an event loop."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def upload(self, name: str, source: Any, *, filename: str | None = None, wait: float | None = 600) -> DatasetVersion:
        """As Datasets.upload."""
        return await self._session.flow(_upload(name, source, filename, wait))

    async def create(self, name: str, *, description: str = "") -> Dataset:
        """As Datasets.create."""
        return await self._session.run(_create(name, description))

    async def get(self, name: str) -> Dataset:
        """As Datasets.get."""
        return await self._session.run(Call("GET", path("datasets", name_of(name)), Dataset.from_json))

    def list(self) -> AsyncPages[Dataset]:
        """As Datasets.list."""
        return AsyncPages(self._session, page_of(("datasets",), "datasets", Dataset))

    async def update(self, name: str, *, description: str) -> Dataset:
        """As Datasets.update."""
        return await self._session.run(_update(name, description))

    async def delete(self, name: str) -> None:
        """As Datasets.delete."""
        await self._session.run(Call("DELETE", path("datasets", name_of(name)), _nothing))

    async def version(self, ref: Any) -> DatasetVersion:
        """As Datasets.version."""
        return await self._session.run(_version(*parse(ref)))

    def versions(self, name: str) -> AsyncPages[DatasetVersion]:
        """As Datasets.versions."""
        return AsyncPages(self._session, page_of(("datasets", name_of(name), "versions"), "versions", DatasetVersion))

    async def wait_ready(self, ref: Any, timeout: float | None = 600) -> DatasetVersion:
        """As Datasets.wait_ready."""
        return await self._session.flow(_ready(*parse(ref), timeout))

    async def preview(self, ref: Any, *, rows: int = 20, split: str = "") -> Preview:
        """As Datasets.preview."""
        return await self._session.flow(_part(ref, "preview", Preview.from_json, {"rows": rows, "split": split}))

    async def profile(self, ref: Any) -> Profile:
        """As Datasets.profile."""
        return await self._session.flow(_part(ref, "profile", Profile.from_json, {}))

    async def transform(
        self, ref: Any, steps: Sequence[Step | Mapping[str, Any]], *, output: str = "", wait: float | None = 600
    ) -> DatasetVersion:
        """As Datasets.transform."""
        return await self._session.flow(_transform(ref, steps, output, wait))

    async def download(self, ref: Any, target: str | os.PathLike[str], *, split: str = "") -> Path:
        """As Datasets.download."""
        name, number = await self._session.flow(_number(ref))
        place = _place(target, name, number, split)
        call = _content(name, number, split)
        async with self._session.stream(call) as stream:
            with saved(place, digest_of(stream.headers.get("etag", ""))) as file:
                try:
                    async for chunk in stream.chunks():
                        file.write(chunk)
                except TransportFailure as failure:
                    raise self._session.settings.failure(self._session.settings.request(call), failure) from None
        return place


def _nothing(_: Any) -> None:
    return None


def _create(name: str, description: str) -> Call[Dataset]:
    return Call("POST", path("datasets"), Dataset.from_json, body={"name": name, "description": description})


def _update(name: str, description: str) -> Call[Dataset]:
    return Call("PATCH", path("datasets", name_of(name)), Dataset.from_json, body={"description": description})


def _version(name: str, number: int) -> Call[DatasetVersion]:
    return Call("GET", path("datasets", name, "versions", number), DatasetVersion.from_json)


def _content(name: str, number: int, split: str) -> Call[None]:
    accept = {"accept": "application/vnd.apache.parquet, application/octet-stream, application/problem+json"}
    return Call("GET", path("datasets", name, "versions", number, "content"), _nothing, query={"split": split}, headers=accept)


def _upload(name: str, source: Any, filename: str | None, wait: float | None) -> Flow[DatasetVersion]:
    content, file_name = content_of(source, filename)
    size = len(content) if isinstance(content, bytes) else content.size
    at_once = min(WAIT_AT_ONCE if wait is None else wait, WAIT_AT_ONCE)
    place, query = path("datasets", name_of(name), "content"), {"filename": file_name, "wait": f"{at_once:g}"}
    # Once for both ways: what was named is not sent a second time where only the answer got lost.
    headers = {"idempotency-key": uuid.uuid4().hex, "content-type": "application/octet-stream"}
    seconds = max(60.0, at_once + 30 + size / CHUNK)
    version: DatasetVersion | None = None
    if DIRECT_BYTES < size <= DIRECT_LIMIT and (upload := (yield from _sent(content, size, seconds))):
        call = Call("PUT", place, DatasetVersion.from_json, query={**query, "upload": upload}, headers=headers, timeout=seconds)
        version = yield from _unless(call, *_NOT_OFFERED)
    if version is None:
        version = yield Call("PUT", place, DatasetVersion.from_json, query=query, content=content, headers=headers, timeout=seconds)
    return (yield from _settled(version, wait))


def _sent(content: Content | bytes, size: int, seconds: float) -> Flow[str]:
    """Sends the content to the store itself; what names it there, or "" where that cannot be done and it has to go through the platform."""
    digits = yield Work(lambda: sha256_of(content))
    call = Call("POST", path("uploads"), as_given, body={"sha256": digits, "size_bytes": size})
    told = yield from _unless(call, *_NOT_OFFERED)
    told = told if isinstance(told, dict) else {}
    headers = told.get("headers")
    headers = {str(name): str(value) for name, value in headers.items()} if isinstance(headers, dict) else {}
    is_there = yield Put(str(told.get("url", "")), headers, content, seconds)
    return str(told.get("upload", "")) if is_there else ""


def _unless(call: Call[T], *statuses: int) -> Flow[T | None]:
    """None where the platform answers with one of these."""
    try:
        return (yield call)
    except APIError as error:
        if error.status not in statuses:
            raise
        return None


def _settled(version: DatasetVersion, wait: float | None) -> Flow[DatasetVersion]:
    if wait == 0 and version.state != "failed":
        return version
    if version.state == "processing":
        version = yield from _ready(version.dataset, version.number, wait)
    return _usable(version)


def _ready(name: str, number: int, timeout: float | None) -> Flow[DatasetVersion]:
    what = f"version {name}@{number} was not ready"
    found = yield from until(lambda: _version(name, number), lambda version: version.state != "processing", timeout, what)
    return _usable(found)


def _usable(version: DatasetVersion) -> DatasetVersion:
    if version.state == "failed":
        problem = version.error.raw if version.error else {}
        raise error_from_problem(422, problem, fallback=f"version {version.ref} failed and does not say why")
    return version


def _number(ref: Any) -> Flow[tuple[str, int]]:
    name, number = parse(ref)
    if number == 0:
        number = (yield _version(name, 0)).number
    return name, number


def _part(ref: Any, part: str, read: Callable[[Any], T], query: Mapping[str, Any]) -> Flow[T]:
    name, number = yield from _number(ref)
    found: T = yield Call("GET", path("datasets", name, "versions", number, part), read, query=query)
    return found


def _transform(ref: Any, steps: Sequence[Step | Mapping[str, Any]], output: str, wait: float | None) -> Flow[DatasetVersion]:
    name, number = parse(ref)
    if isinstance(steps, Step | Mapping):
        steps = [steps]
    body: dict[str, Any] = {"steps": [step.to_json() if isinstance(step, Step) else step for step in steps]}
    if not body["steps"]:
        raise InvalidInput("there are no steps", "name at least one, such as la.steps.dedupe()")
    if number:
        body["version"] = number
    if output:
        body["output"] = output
    version = yield Call("POST", path("datasets", name, "transforms"), DatasetVersion.from_json, body=body)
    return (yield from _settled(version, wait))


def _place(target: str | os.PathLike[str], name: str, number: int, split: str) -> Path:
    place = Path(target).expanduser()
    return place / f"{name}-{number}{'-' + split if split else ''}.parquet" if place.is_dir() else place
