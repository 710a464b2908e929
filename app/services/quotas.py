"""Counting tries in this process: the adapter of `Quota` for one replica."""

import time
from collections import OrderedDict
from datetime import timedelta

MOST_BUCKETS = 100_000
"""Buckets kept at most; beyond it the one that was used longest ago is forgotten."""


class LocalQuota:
    """Buckets that hold `limit` tries and refill evenly over the window. One event loop, no lock."""

    def __init__(self) -> None:
        self._level: OrderedDict[str, tuple[float, float]] = OrderedDict()  # bucket -> (tries in it, when)

    async def take(self, bucket: str, *, limit: int, window: timedelta) -> float:
        level = self._now(bucket, limit, window)
        if level + 1 > limit:
            return (level + 1 - limit) * window.total_seconds() / limit
        self._keep(bucket, level + 1)
        return 0.0

    async def give_back(self, bucket: str, *, limit: int, window: timedelta) -> None:
        self._keep(bucket, max(0.0, self._now(bucket, limit, window) - 1))

    def _now(self, bucket: str, limit: int, window: timedelta) -> float:
        level, at = self._level.get(bucket, (0.0, 0.0))
        return max(0.0, level - (time.monotonic() - at) * limit / window.total_seconds())

    def _keep(self, bucket: str, level: float) -> None:
        self._level[bucket] = (level, time.monotonic())
        self._level.move_to_end(bucket)
        if len(self._level) > MOST_BUCKETS:
            self._level.popitem(last=False)
