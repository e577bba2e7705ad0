"""Batch predictions: a model's answer to every row of a dataset version, as a new version. Needs no endpoint."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from leptonai._errors import JobFailed
from leptonai._progress import rows_progress
from leptonai._refs import name_of
from leptonai._session import AsyncPages, AsyncSession, Call, Flow, Pages, Session, page_of, path, until
from leptonai._types import BatchPrediction


class BatchPredictions:
    """`client.batch_predictions`. A job is meant by its id, or by the BatchPrediction itself. Errors: APIError and its kin."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(
        self,
        model: Any,
        dataset: Any,
        output: str,
        *,
        columns: Sequence[str] | None = None,
        probabilities: bool | None = None,
        resources: Mapping[str, Any] | None = None,
    ) -> BatchPrediction:
        """Starts one; raises InvalidData naming everything that does not fit.

        model, dataset: "name@n", or "name" for the newest. output: dataset that gets the new version. columns: those of the dataset that
        stand beside `prediction`; default all but pictures. probabilities: whether a classifier's stand there too (default), as
        "probability_<class>". Of a model of your own each output of its signature is a column: "y", or "y_0", "y_1" where it has a shape.
        """
        return self._session.run(_create(model, dataset, output, columns, probabilities, resources))

    def get(self, batch: Any) -> BatchPrediction:
        """The job as it now is."""
        return self._session.run(_get(batch))

    def list(self) -> Pages[BatchPrediction]:
        """All of the workspace, newest first."""
        return Pages(self._session, page_of(("batch-predictions",), "batch_predictions", BatchPrediction))

    def cancel(self, batch: Any) -> BatchPrediction:
        """Ends a job; rows that are done are billed."""
        return self._session.run(_cancel(batch))

    def wait(self, batch: Any, *, timeout: float | None = None, progress: bool | None = None) -> BatchPrediction:
        """Waits for the end, with a bar of rows in terminals and notebooks (`progress` forces or forbids it).

        Returns the succeeded job; raises JobFailed when it failed or was cancelled, Timeout after `timeout` seconds.
        """
        with rows_progress(progress) as show:
            return self._session.flow(_ended(batch, timeout, show))


class AsyncBatchPredictions:
    """As BatchPredictions, for an event loop."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def create(
        self,
        model: Any,
        dataset: Any,
        output: str,
        *,
        columns: Sequence[str] | None = None,
        probabilities: bool | None = None,
        resources: Mapping[str, Any] | None = None,
    ) -> BatchPrediction:
        """As BatchPredictions.create."""
        return await self._session.run(_create(model, dataset, output, columns, probabilities, resources))

    async def get(self, batch: Any) -> BatchPrediction:
        """As BatchPredictions.get."""
        return await self._session.run(_get(batch))

    def list(self) -> AsyncPages[BatchPrediction]:
        """As BatchPredictions.list."""
        return AsyncPages(self._session, page_of(("batch-predictions",), "batch_predictions", BatchPrediction))

    async def cancel(self, batch: Any) -> BatchPrediction:
        """As BatchPredictions.cancel."""
        return await self._session.run(_cancel(batch))

    async def wait(self, batch: Any, *, timeout: float | None = None, progress: bool | None = None) -> BatchPrediction:
        """As BatchPredictions.wait."""
        with rows_progress(progress) as show:
            return await self._session.flow(_ended(batch, timeout, show))


def _create(
    model: Any,
    dataset: Any,
    output: str,
    columns: Sequence[str] | None,
    probabilities: bool | None,
    resources: Mapping[str, Any] | None,
) -> Call[BatchPrediction]:
    body: dict[str, Any] = {"model": name_of(model), "dataset": name_of(dataset), "output": output}
    more = {"columns": list(columns) if columns else None, "probabilities": probabilities, "resources": resources}
    body |= {name: value for name, value in more.items() if value is not None}
    return Call("POST", path("batch-predictions"), BatchPrediction.from_json, body=body)


def _get(batch: Any) -> Call[BatchPrediction]:
    return Call("GET", path("batch-predictions", name_of(batch)), BatchPrediction.from_json)


def _cancel(batch: Any) -> Call[BatchPrediction]:
    return Call("POST", path("batch-predictions", name_of(batch), "cancel"), BatchPrediction.from_json, body={})


def _ended(batch: Any, timeout: float | None, show: Callable[[BatchPrediction], None]) -> Flow[BatchPrediction]:
    def seen(found: BatchPrediction) -> bool:
        show(found)
        return found.ended

    found = yield from until(lambda: _get(batch), seen, timeout, f"batch prediction {name_of(batch)} did not end")
    if found.state != "succeeded":
        raise JobFailed(found, "batch prediction", "look at it with `lepton batch show {id}`")
    return found
