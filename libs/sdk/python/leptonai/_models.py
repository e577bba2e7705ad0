"""Models: names under which immutable, evaluated versions are kept."""

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leptonai._errors import InvalidInput
from leptonai._files import inside, model_zip, saved
from leptonai._refs import name_of, parse
from leptonai._session import AsyncPages, AsyncSession, Call, Flow, Pages, Session, Work, as_given, page_of, path
from leptonai._transport import CHUNK, Content, TransportFailure
from leptonai._types import Artifact, Model, ModelVersion
from leptonai._wheels import downloaded, given_wheels, may_lack


class Models:
    """`client.models`. A version is meant by "name@n", or by "name" for the newest. Errors: APIError and its kin."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, name: str) -> Model:
        """One model."""
        return self._session.run(Call("GET", path("models", name_of(name)), Model.from_json))

    def list(self) -> Pages[Model]:
        """All of the workspace."""
        return Pages(self._session, page_of(("models",), "models", Model))

    def version(self, ref: Any) -> ModelVersion:
        """One version, with its metrics, signature and files."""
        return self._session.run(_version(ref))

    def versions(self, name: str) -> Pages[ModelVersion]:
        """All versions, newest first."""
        return Pages(self._session, page_of(("models", name_of(name), "versions"), "model_versions", ModelVersion))

    def push(
        self,
        name: str,
        folder: str | os.PathLike[str],
        *,
        signature: Mapping[str, Any] | None = None,
        wheels: str | os.PathLike[str] | None = None,
        features: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
    ) -> ModelVersion:
        """Makes a version of your own code, a folder whose model.py has a class Model; or of an ONNX file, which says itself what it takes.

        `load(self, folder)` is called once, `predict(self, records)` answers a list, one JSON value a record; with `batch = False` in the
        class it gets one record at a time. signature: {"inputs": [{"name", "type", …}], "outputs": […]} has records and answers checked;
        without it they are any JSON. A requirements.txt pins packages: pip downloads the wheels of those that the platform lacks and
        of what they need; nothing is built. wheels: a folder whose wheels are taken instead. Raises InvalidInput and InvalidData in words.

        Of an ONNX file: features name the numbers of its input, in their order, and records have them as fields; classes name the
        probabilities that it gives, and it answers as a classifier that the platform trained.
        """
        return self._session.flow(_push(name, folder, signature, wheels, features, classes))

    def download(self, ref: Any, folder: str | os.PathLike[str]) -> Sequence[Path]:
        """Writes a version's files (weights as safetensors, preprocessing as JSON, …) into a folder, digests checked; returns where."""
        version = self.version(ref)
        places = []
        for file in version.files:
            place = _place(folder, file)
            call = _file(version, file)
            with self._session.stream(call) as stream, saved(place, file.digest) as out:
                try:
                    for chunk in stream.chunks():
                        out.write(chunk)
                except TransportFailure as failure:
                    raise self._session.settings.failure(self._session.settings.request(call), failure) from None
            places.append(place)
        return places

    def delete(self, name: str) -> None:
        """Deletes every version; refused while an endpoint serves one."""
        self._session.run(Call("DELETE", path("models", name_of(name)), _nothing))


class AsyncModels:
    """As Models, for an event loop."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, name: str) -> Model:
        """As Models.get."""
        return await self._session.run(Call("GET", path("models", name_of(name)), Model.from_json))

    def list(self) -> AsyncPages[Model]:
        """As Models.list."""
        return AsyncPages(self._session, page_of(("models",), "models", Model))

    async def version(self, ref: Any) -> ModelVersion:
        """As Models.version."""
        return await self._session.run(_version(ref))

    def versions(self, name: str) -> AsyncPages[ModelVersion]:
        """As Models.versions."""
        return AsyncPages(self._session, page_of(("models", name_of(name), "versions"), "model_versions", ModelVersion))

    async def push(
        self,
        name: str,
        folder: str | os.PathLike[str],
        *,
        signature: Mapping[str, Any] | None = None,
        wheels: str | os.PathLike[str] | None = None,
        features: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
    ) -> ModelVersion:
        """As Models.push."""
        return await self._session.flow(_push(name, folder, signature, wheels, features, classes))

    async def download(self, ref: Any, folder: str | os.PathLike[str]) -> Sequence[Path]:
        """As Models.download."""
        version = await self.version(ref)
        places = []
        for file in version.files:
            place = _place(folder, file)
            call = _file(version, file)
            async with self._session.stream(call) as stream:
                with saved(place, file.digest) as out:
                    try:
                        async for chunk in stream.chunks():
                            out.write(chunk)
                    except TransportFailure as failure:
                        raise self._session.settings.failure(self._session.settings.request(call), failure) from None
            places.append(place)
        return places

    async def delete(self, name: str) -> None:
        """As Models.delete."""
        await self._session.run(Call("DELETE", path("models", name_of(name)), _nothing))


def _nothing(_: Any) -> None:
    return None


def _push(
    name: str,
    folder: str | os.PathLike[str],
    signature: Mapping[str, Any] | None,
    wheels: str | os.PathLike[str] | None,
    features: Sequence[str] | None,
    classes: Sequence[str] | None,
) -> Flow[ModelVersion]:
    place, runtime = path("models", name_of(name), "content"), None
    names = {what: list(given) for what, given in (("features", features), ("classes", classes)) if given is not None}
    if wheels is None and may_lack(folder):
        runtime = yield Call("GET", path("model-runtime"), as_given)
    content: Content = yield Work(lambda: _packed(folder, signature, names, wheels, runtime))
    # What was sent makes no second version where only the answer got lost.
    headers = {"idempotency-key": uuid.uuid4().hex, "content-type": "application/zip"}
    seconds = max(330.0, 60 + content.size / CHUNK)
    version: ModelVersion = yield Call("PUT", place, ModelVersion.from_json, content=content, headers=headers, timeout=seconds)
    return version


def _packed(
    folder: str | os.PathLike[str],
    signature: Mapping[str, Any] | None,
    called: Mapping[str, Sequence[str]],
    wheels: str | os.PathLike[str] | None,
    runtime: Mapping[str, Any] | None,
) -> Content:
    if runtime is None:
        return model_zip(folder, signature, called, () if wheels is None else given_wheels(wheels))
    with downloaded(folder, runtime) as found:
        return model_zip(folder, signature, called, found)


def _version(ref: Any) -> Call[ModelVersion]:
    name, number = parse(ref)
    return Call("GET", path("models", name, "versions", number), ModelVersion.from_json)


def _file(version: ModelVersion, file: Artifact) -> Call[None]:
    segments: tuple[str | int, ...] = ("models", version.model, "versions", version.number, "files", *file.path.split("/"))
    return Call("GET", path(*segments), _nothing, headers={"accept": "*/*"})


def _place(folder: str | os.PathLike[str], file: Artifact) -> Path:
    target = Path(folder).expanduser()
    if target.exists() and not target.is_dir():
        raise InvalidInput(f"{target} is a file", "name a folder for the model's files")
    return inside(target, file.path)
