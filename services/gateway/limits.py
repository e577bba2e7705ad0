"""How often a workspace may ask, in a window of time; what is left stands in the answer's headers.

Counts in this process only: each gateway allows the full rate.
"""

import math
import time

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage

from libs.errors import Transient
from services.gateway.problems import OPENAI_PATHS, RETRY_AFTER
from services.gateway.settings import Limits

_INFERENCE = ("/predict", "/invoke", "/infer", "/ModelInfer", "/generate", "/generate_stream", *OPENAI_PATHS)


class _Counters(MemoryStorage):
    """The library's storage without its timer, which would begin a thread every 10 ms; a workspace's counter is replaced when it ends."""

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        count = self.get(key) + amount
        self.storage[key] = count
        if count == amount:
            self.expirations[key] = time.time() + expiry
        return count


class RateLimits:
    """Two budgets a workspace: predictions, and everything else."""

    def __init__(self, limits: Limits) -> None:
        self._counters = _Counters()
        self._items = {"api": parse(limits.api_rate), "inference": parse(limits.inference_rate)}
        self._policies = {name: f'"{name}";q={item.amount};w={item.get_expiry()}' for name, item in self._items.items()}

    def hit(self, workspace: str, path: str) -> tuple[dict[str, str], Transient | None]:
        """Counts one request; headers for the answer, and the error if it is one too many."""
        name = "inference" if path.endswith(_INFERENCE) else "api"
        item, key = self._items[name], f"{name}/{workspace}"
        count = self._counters.incr(key, item.get_expiry())
        seconds = max(1, math.ceil(self._counters.get_expiry(key) - time.time()))
        headers = {
            "ratelimit-policy": self._policies[name],
            "ratelimit": f'"{name}";r={max(0, item.amount - count)};t={seconds}',
        }
        if count <= item.amount:
            return headers, None
        return headers, _refusal(item, name, seconds)


def _refusal(item: RateLimitItem, name: str, seconds: int) -> Transient:
    every = item.get_expiry()
    return Transient(
        f"more than {item.amount} requests in {every} s; the next one is answered in {seconds} s",
        code="rate_limited",
        meta={"limit": item.amount, "window_seconds": every, RETRY_AFTER: seconds, "policy": name},
    )
