"""What goes through this process, by endpoint and revision: told to deployment every second, which scales and rolls back by it."""

import time
import uuid
from collections import Counter
from dataclasses import dataclass, field

from lepton.deployment.v1 import deployment_service_pb2 as pb
from libs.lifecycle import Loop
from libs.rpc import Call, Client, acting

REPORT_SECONDS = 1.0
# One call's worth; the contract's limit.
_MAX_REPORTS = 1000
# Of so many latencies a percentile is taken; of more, of the last ones.
_KEPT = 1000

Key = tuple[str, str]


@dataclass(slots=True)
class _Flow:
    """Of one revision, since the last report."""

    in_flight: int = 0
    # Requests × seconds.
    load: float = 0.0
    changed: float = field(default_factory=time.monotonic)
    requests: int = 0
    errors: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    shadow_compared: int = 0
    shadow_differing: int = 0

    def change(self, by: int) -> None:
        now = time.monotonic()
        self.load += self.in_flight * (now - self.changed)
        self.changed = now
        self.in_flight += by

    @property
    def is_still(self) -> bool:
        return not (self.in_flight or self.load or self.requests or self.shadow_compared)

    def forget(self) -> None:
        """What has been told."""
        self.load = self.seconds = 0.0
        self.requests = self.errors = self.shadow_compared = self.shadow_differing = 0
        self.latencies.clear()


class Watch:
    """One request: `end` when its answer has begun, `leave` always."""

    __slots__ = ("_flow", "_started")

    def __init__(self, flow: _Flow) -> None:
        self._flow, self._started = flow, time.monotonic()
        flow.change(1)

    def end(self, *, failed: bool) -> None:
        """It was answered, well or not."""
        flow, seconds = self._flow, time.monotonic() - self._started
        flow.requests += 1
        flow.errors += failed
        flow.seconds += seconds
        if len(flow.latencies) >= _KEPT:
            flow.latencies[flow.requests % _KEPT] = seconds
        else:
            flow.latencies.append(seconds)

    def leave(self) -> None:
        """It is in flight no longer."""
        self._flow.change(-1)


class Traffic:
    """A lifecycle component."""

    def __init__(self, deployment: Client) -> None:
        self._deployment = deployment
        self._name = uuid.uuid4().hex
        self._flows: dict[tuple[Key, int], _Flow] = {}
        self._waiting: Counter[Key] = Counter()
        self._told = time.monotonic()
        self._loop = Loop("traffic", self._tell, interval=REPORT_SECONDS, max_pause=REPORT_SECONDS)

    async def start(self) -> None:
        """Begins to tell."""
        await self._loop.start()

    async def stop(self) -> None:
        """What is untold is of no use to anybody: nothing is billed by it."""
        await self._loop.stop()

    def begin(self, key: Key, revision: int) -> Watch:
        """A request that goes to a replica."""
        flow = self._flows.get((key, revision))
        if flow is None:
            flow = self._flows[key, revision] = _Flow()
        return Watch(flow)

    def wait(self, key: Key, by: int) -> None:
        """A request that waits for a replica, or no longer."""
        self._waiting[key] += by
        if self._waiting[key] <= 0:
            del self._waiting[key]

    def compared(self, key: Key, revision: int, *, differs: bool) -> None:
        """An answer of a shadow revision."""
        flow = self._flows.setdefault((key, revision), _Flow())
        flow.shadow_compared += 1
        flow.shadow_differing += differs

    async def _tell(self) -> None:
        reports = self._reports()
        for start in range(0, len(reports), _MAX_REPORTS):
            request = pb.ReportTrafficRequest(gateway=self._name, reports=reports[start : start + _MAX_REPORTS])
            with acting(Call()):
                await self._deployment.ReportTraffic(request, timeout=2.0)

    def _reports(self) -> list[pb.TrafficReport]:
        now = time.monotonic()
        passed, self._told = max(now - self._told, 1e-3), now
        waiting = Counter(self._waiting)
        reports = []
        for (key, revision), flow in list(self._flows.items()):
            flow.change(0)
            reports.append(_report(key, revision, flow, passed, waiting.pop(key, 0)))
            if flow.is_still:
                # Told once that nothing goes on; then silent.
                del self._flows[key, revision]
            else:
                flow.forget()
        reports += [pb.TrafficReport(workspace=key[0], endpoint=key[1], waiting=count) for key, count in waiting.items()]
        return reports


def _report(key: Key, revision: int, flow: _Flow, passed: float, waiting: int) -> pb.TrafficReport:
    latencies = sorted(flow.latencies)
    return pb.TrafficReport(
        workspace=key[0],
        endpoint=key[1],
        revision=revision,
        in_flight=flow.load / passed,
        waiting=waiting,
        requests=flow.requests,
        errors=flow.errors,
        seconds_sum=flow.seconds,
        p95_seconds=latencies[int(len(latencies) * 0.95)] if latencies else 0.0,
        shadow_compared=flow.shadow_compared,
        shadow_differing=flow.shadow_differing,
    )
