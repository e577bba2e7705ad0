"""Training jobs: from a dataset version to an evaluated model version, and what happens on the way."""

import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from leptonai._errors import ConnectionFailed, InvalidInput, JobFailed, LeptonError, Timeout, Unavailable
from leptonai._progress import job_progress
from leptonai._refs import name_of
from leptonai._session import AsyncPages, AsyncSession, Call, Pages, Session, Settings, page_of, path
from leptonai._sse import Event, Parser
from leptonai._transport import TransportFailure
from leptonai._types import JobEvent, LogLine, MetricPoint, TrainingJob

QUIET = 30.0
"""Seconds without an event after which the stream is opened again."""


class TrainingJobs:
    """`client.training_jobs`. A job is meant by its id, or by the TrainingJob itself. Errors: APIError and its kin."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(
        self,
        spec: Mapping[str, Any] | None = None,
        /,
        *,
        dataset: Any = None,
        task: str | None = None,
        target: str | None = None,
        output_model: str | None = None,
        features: Sequence[str] | None = None,
        name: str | None = None,
        architecture: str | None = None,
        params: Mapping[str, Any] | None = None,
        init: Any = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        optimizer: str | None = None,
        seed: int | None = None,
        weight_decay: float | None = None,
        early_stopping: int | Mapping[str, Any] | None = None,
        validation_fraction: float | None = None,
        test_fraction: float | None = None,
        double_precision: bool | None = None,
        time_limit_seconds: int | None = None,
        workers: int | None = None,
        accelerator: str | None = None,
        count: int | None = None,
        memory_bytes: int | None = None,
        cpu_millis: int | None = None,
    ) -> TrainingJob:
        """Starts a job; raises InvalidData naming every field that does not fit.

        spec: the JSON of the REST API, where there is one; arguments override it, and what is None is the platform's default.
        dataset: "name@n". task: regression, classification, image_classification, text_classification, text_generation. target: column to
        predict, or of the texts to write. architecture: linear, mlp, cnn, rnn, transformer. init: "random" or a model version to start
        from. early_stopping: patience in epochs, or {"patience", "min_delta"}. workers: processes that train one model together, each with
        the resources that follow.
        accelerator: cpu, gpu, tpu.
        """
        given = {key: value for key, value in locals().items() if key not in ("self", "spec")}
        return self._session.run(_create(job_spec(spec, **given)))

    def get(self, job: Any) -> TrainingJob:
        """The job as it now is."""
        return self._session.run(_get(job))

    def list(self, *, state: str = "") -> Pages[TrainingJob]:
        """All of the workspace, newest first; only those in `state` where given."""
        return Pages(self._session, page_of(("training-jobs",), "training_jobs", TrainingJob, state=state))

    def cancel(self, job: Any) -> TrainingJob:
        """Ends a job; its process is gone within 2 s."""
        return self._session.run(_cancel(job))

    def metrics(self, job: Any, *, name: str = "") -> Pages[MetricPoint]:
        """Every measured value in order; only of one metric where `name` is given."""
        return Pages(self._session, page_of(("training-jobs", name_of(job), "metrics"), "metrics", MetricPoint, name=name))

    def logs(self, job: Any) -> Pages[LogLine]:
        """Every line that it wrote."""
        return Pages(self._session, page_of(("training-jobs", name_of(job), "logs"), "logs", LogLine))

    def watch(self, job: Any, *, timeout: float | None = None) -> Iterator[JobEvent]:
        """What happens to a job, from its beginning, ending after its last state. A broken connection is resumed where it broke.

        Raises Timeout after `timeout` seconds, ConnectionFailed when the platform stays away.
        """
        watch = _Watch(job, timeout, self._session.settings.retries)
        while not watch.over():
            try:
                with self._session.stream(watch.call()) as stream:
                    for chunk in stream.chunks():
                        yield from watch.feed(chunk)
                        if watch.over():
                            return
                pause = watch.broke(None)
            except (TransportFailure, ConnectionFailed, Unavailable) as failure:
                pause = watch.broke(failure)
            if pause is None:
                raise watch.told(self._session.settings) from None
            time.sleep(pause)

    def wait(self, job: Any, *, timeout: float | None = None, progress: bool | None = None) -> TrainingJob:
        """Waits for the end, with a bar of epochs and loss in terminals and notebooks (`progress` forces or forbids it).

        Returns the succeeded job; raises JobFailed when it failed or was cancelled, Timeout after `timeout` seconds.
        """
        with job_progress(progress) as show:
            last = None
            for event in self.watch(job, timeout=timeout):
                show(event)
                last = event.job or last
        return _succeeded(last)


class AsyncTrainingJobs:
    """As TrainingJobs, for an event loop."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def create(self, spec: Mapping[str, Any] | None = None, /, **options: Any) -> TrainingJob:
        """As TrainingJobs.create, with the same options."""
        return await self._session.run(_create(job_spec(spec, **options)))

    async def get(self, job: Any) -> TrainingJob:
        """As TrainingJobs.get."""
        return await self._session.run(_get(job))

    def list(self, *, state: str = "") -> AsyncPages[TrainingJob]:
        """As TrainingJobs.list."""
        return AsyncPages(self._session, page_of(("training-jobs",), "training_jobs", TrainingJob, state=state))

    async def cancel(self, job: Any) -> TrainingJob:
        """As TrainingJobs.cancel."""
        return await self._session.run(_cancel(job))

    def metrics(self, job: Any, *, name: str = "") -> AsyncPages[MetricPoint]:
        """As TrainingJobs.metrics."""
        return AsyncPages(self._session, page_of(("training-jobs", name_of(job), "metrics"), "metrics", MetricPoint, name=name))

    def logs(self, job: Any) -> AsyncPages[LogLine]:
        """As TrainingJobs.logs."""
        return AsyncPages(self._session, page_of(("training-jobs", name_of(job), "logs"), "logs", LogLine))

    async def watch(self, job: Any, *, timeout: float | None = None) -> AsyncIterator[JobEvent]:
        """As TrainingJobs.watch."""
        import asyncio  # 40 ms that `lepton` does not need

        watch = _Watch(job, timeout, self._session.settings.retries)
        while not watch.over():
            try:
                async with self._session.stream(watch.call()) as stream:
                    async for chunk in stream.chunks():
                        for event in watch.feed(chunk):
                            yield event
                        if watch.over():
                            return
                pause = watch.broke(None)
            except (TransportFailure, ConnectionFailed, Unavailable) as failure:
                pause = watch.broke(failure)
            if pause is None:
                raise watch.told(self._session.settings) from None
            await asyncio.sleep(pause)

    async def wait(self, job: Any, *, timeout: float | None = None, progress: bool | None = None) -> TrainingJob:
        """As TrainingJobs.wait."""
        with job_progress(progress) as show:
            last = None
            async for event in self.watch(job, timeout=timeout):
                show(event)
                last = event.job or last
        return _succeeded(last)


class _Watch:
    """Where a watch stands: the last event seen, how often in a row it broke, when it must be over."""

    def __init__(self, job: Any, timeout: float | None, retries: int) -> None:
        self._path = path("training-jobs", name_of(job), "events")
        self._job = name_of(job)
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._retries = retries
        self._breaks = 0
        self._parser = Parser()
        self._over = False
        self._begun = False
        self._failure: TransportFailure | ConnectionFailed | Unavailable = TransportFailure("broken", "the events ended again and again")

    def over(self) -> bool:
        """The job's last state was seen."""
        return self._over

    def call(self) -> Call[None]:
        """Opens the stream after the last event seen; raises Timeout."""
        left = self._left()
        resume = {"last-event-id": self._parser.last_id} if self._parser.last_id else {}
        headers = {"accept": "text/event-stream", "cache-control": "no-store", **resume}
        return Call("GET", self._path, lambda _: None, headers=headers, timeout=QUIET if left is None else min(QUIET, left + 0.05))

    def feed(self, chunk: bytes) -> Iterator[JobEvent]:
        """The events that a chunk completes."""
        try:
            for item in self._parser.feed(chunk):
                event = _event(item)
                if event is not None:
                    self._breaks = 0
                    self._begun = True
                    self._over = event.job is not None and event.job.ended
                    yield event
                    if self._over:
                        return
        except ValueError as error:
            raise LeptonError(f"the events of {self._job} cannot be read: {error}") from None
        self._left()

    def broke(self, failure: TransportFailure | ConnectionFailed | Unavailable | None) -> float | None:
        """Seconds to wait before resuming; None when it broke too often. A quiet stream is resumed without counting."""
        self._left()
        self._parser = self._parser.resumed()
        if isinstance(failure, TransportFailure) and failure.kind == "timeout":
            return 0.0
        self._breaks += 1
        if failure is not None:
            self._failure = failure
        if self._breaks > 2 * self._retries + 2 or (isinstance(failure, LeptonError) and not self._begun):
            return None
        return self._parser.retry if self._parser.retry is not None else min(0.1 * 2**self._breaks, 5.0)

    def told(self, settings: Settings) -> LeptonError:
        """What to raise when it broke too often."""
        return self._failure if isinstance(self._failure, LeptonError) else settings.failure(settings.request(self.call()), self._failure)

    def _left(self) -> float | None:
        if self._deadline is None:
            return None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Timeout(f"training job {self._job} did not end within {self._timeout:g} s; it goes on: watch it again, or cancel it")
        return left


def _event(item: Event) -> JobEvent | None:
    """A job's event, or None for a kind that this version does not know or data that is no JSON object."""
    if item.kind not in ("job", "metric", "log"):
        return None
    try:
        data = json.loads(item.data)
    except ValueError:
        return None
    if not isinstance(data, Mapping):
        return None
    inner = data.get(item.kind) if isinstance(data.get(item.kind), Mapping) else data
    if item.kind == "job":
        return JobEvent(id=item.id, kind="job", job=TrainingJob.from_json(inner), raw=data)
    if item.kind == "metric":
        return JobEvent(id=item.id, kind="metric", metric=MetricPoint.from_json(inner), raw=data)
    return JobEvent(id=item.id, kind="log", log=LogLine.from_json(inner), raw=data)


def _succeeded(job: TrainingJob | None) -> TrainingJob:
    if job is None or job.state != "succeeded":
        raise JobFailed(job or TrainingJob(id="?", reason="the platform told nothing of it"))
    return job


def _get(job: Any) -> Call[TrainingJob]:
    return Call("GET", path("training-jobs", name_of(job)), TrainingJob.from_json)


def _cancel(job: Any) -> Call[TrainingJob]:
    return Call("POST", path("training-jobs", name_of(job), "cancel"), TrainingJob.from_json, body={})


def _create(spec: Mapping[str, Any]) -> Call[TrainingJob]:
    return Call("POST", path("training-jobs"), TrainingJob.from_json, body=spec)


_TOP = ("name", "dataset", "task", "target", "features", "output_model")
_MODEL = ("architecture", "params", "init")
_RESOURCES = ("accelerator", "count", "memory_bytes", "cpu_millis")
_TRAINING = (
    "epochs",
    "batch_size",
    "learning_rate",
    "optimizer",
    "seed",
    "weight_decay",
    "early_stopping",
    "validation_fraction",
    "test_fraction",
    "double_precision",
    "time_limit_seconds",
    "workers",
)


def job_spec(spec: Mapping[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    """The JSON of a job: `spec` with flat options (see TrainingJobs.create) put where they belong. Raises InvalidInput."""
    if spec is not None and not isinstance(spec, Mapping):
        raise InvalidInput(f"a job is an object, not {type(spec).__name__}", 'such as {"dataset": "wdbc@2", "task": "classification", ...}')
    made = dict(spec or {})
    for name in ("dataset", "init"):
        if given.get(name) is not None:
            given[name] = name_of(given[name])
    if isinstance(given.get("early_stopping"), int):
        given["early_stopping"] = {"patience": given["early_stopping"]}
    unknown = set(given) - {*_TOP, *_MODEL, *_TRAINING, *_RESOURCES}
    if unknown:
        raise InvalidInput(f"there is no option {min(unknown)!r}", f"there are: {', '.join((*_TOP, *_MODEL, *_TRAINING, *_RESOURCES))}")
    made.update({name: given[name] for name in _TOP if given.get(name) is not None})
    for key, names in (("model", _MODEL), ("training", _TRAINING), ("resources", _RESOURCES)):
        part = {name: given[name] for name in names if given.get(name) is not None}
        if part:
            old = made.get(key)
            made[key] = {**(old if isinstance(old, Mapping) else {}), **part}
    return made
