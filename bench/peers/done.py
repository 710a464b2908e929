"""Tells the producer when the worker has run a whole round: the worker counts, and says so once at its end."""

import itertools
import os

import redis

KEY = "bench:done"
TASKS = int(os.environ.get("BENCH_TASKS", "1000"))
REDIS_URL = os.environ.get("BENCH_REDIS_URL", "")

_count = itertools.count(1)
_told = redis.Redis.from_url(REDIS_URL) if REDIS_URL else None


def one() -> None:
    """One task has run."""
    if next(_count) % TASKS == 0 and _told is not None:
        _told.lpush(KEY, 1)
