"""The clients: where the resources hang. The `Client` made last is the one that estimators use."""

import os
import threading
from typing import Any, Self

from leptonai._account import Account, AsyncAccount
from leptonai._batch_predictions import AsyncBatchPredictions, BatchPredictions
from leptonai._compute import AsyncCompute, AsyncTraces, Compute, Traces
from leptonai._datasets import AsyncDatasets, Datasets
from leptonai._endpoints import AsyncEndpoints, Endpoints
from leptonai._errors import InvalidInput
from leptonai._listings import AsyncListings, Listings
from leptonai._models import AsyncModels, Models
from leptonai._session import DEFAULT_URL, AsyncSession, Session, Settings
from leptonai._training_jobs import AsyncTrainingJobs, TrainingJobs
from leptonai._transport import AsyncTransport, Transport
from leptonai._types import DatasetVersion

_lock = threading.Lock()
_latest: "Client | None" = None


class Client:
    """A connection to the platform, safe to share between threads. Making one connects to nothing.

    api_key: default LEPTON_API_KEY. base_url: default LEPTON_URL, else http://127.0.0.1:8080. timeout: seconds without a byte.
    retries: how often a safe request is sent again after a broken connection, 429, 502, 503 or 504.
    Raises Unauthenticated without a key, InvalidInput for an address that is none.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 4,
        transport: Transport | None = None,
    ) -> None:
        global _latest
        self._session = Session(_settings(api_key, base_url, timeout, retries), transport)
        self.datasets = Datasets(self._session)
        self.training_jobs = TrainingJobs(self._session)
        self.models = Models(self._session)
        self.endpoints = Endpoints(self._session)
        self.batch_predictions = BatchPredictions(self._session)
        self.listings = Listings(self._session)
        self.account = Account(self._session)
        self.compute = Compute(self._session)
        self.traces = Traces(self._session)
        with _lock:
            _latest = self

    def batch_predict(self, model: Any, dataset: Any, output: str, *, timeout: float | None = None, **options: Any) -> DatasetVersion:
        """Predicts every row of a dataset version and returns the version with the answers: `batch_predictions.create`, then `wait`."""
        progress = options.pop("progress", None)
        made = self.batch_predictions.create(model, dataset, output, **options)
        return self.datasets.version(self.batch_predictions.wait(made, timeout=timeout, progress=progress).version)

    @property
    def base_url(self) -> str:
        """The address in use."""
        return self._session.settings.base_url

    @property
    def last_trace_id(self) -> str:
        """The trace of the answer that came last, for `traces.get` and `lepton trace`."""
        return self._session.settings.last_trace_id

    def close(self) -> None:
        """Closes idle connections."""
        self._session.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # copying an estimator must not copy its connections

    def __repr__(self) -> str:
        return f"Client(base_url={self.base_url!r})"


class AsyncClient:
    """As Client, for an event loop: the same resources, awaited."""

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 4,
        transport: AsyncTransport | None = None,
    ) -> None:
        self._session = AsyncSession(_settings(api_key, base_url, timeout, retries), transport)
        self.datasets = AsyncDatasets(self._session)
        self.training_jobs = AsyncTrainingJobs(self._session)
        self.models = AsyncModels(self._session)
        self.endpoints = AsyncEndpoints(self._session)
        self.batch_predictions = AsyncBatchPredictions(self._session)
        self.listings = AsyncListings(self._session)
        self.account = AsyncAccount(self._session)
        self.compute = AsyncCompute(self._session)
        self.traces = AsyncTraces(self._session)

    async def batch_predict(self, model: Any, dataset: Any, output: str, *, timeout: float | None = None, **options: Any) -> DatasetVersion:
        """As Client.batch_predict."""
        progress = options.pop("progress", None)
        made = await self.batch_predictions.create(model, dataset, output, **options)
        return await self.datasets.version((await self.batch_predictions.wait(made, timeout=timeout, progress=progress)).version)

    @property
    def base_url(self) -> str:
        """As Client.base_url."""
        return self._session.settings.base_url

    @property
    def last_trace_id(self) -> str:
        """As Client.last_trace_id."""
        return self._session.settings.last_trace_id

    async def close(self) -> None:
        """As Client.close."""
        await self._session.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient(base_url={self.base_url!r})"


def default_client() -> Client:
    """The Client that was made last; one from the environment where there is none."""
    return _latest or Client()


def _settings(api_key: str | None, base_url: str | None, timeout: float, retries: int) -> Settings:
    if not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise InvalidInput(f"timeout is {timeout!r}", "it takes seconds above 0")
    if not isinstance(retries, int) or not 0 <= retries <= 20:
        raise InvalidInput(f"retries is {retries!r}", "it takes a whole number from 0 to 20")
    key = api_key if api_key is not None else os.environ.get("LEPTON_API_KEY")
    return Settings(key, base_url or os.environ.get("LEPTON_URL") or DEFAULT_URL, timeout, retries)
