"""`python -m bench.peers.drive NAME`: feeds a peer's worker, and prints how many no-ops a second it ran.

A line for each way of submitting, after a warm-up: `one` at a time from several producers at once, and many `together`.
"""

import asyncio
import importlib
import os
import sys
import time
from collections.abc import Awaitable, Callable

import orjson
from redis.asyncio import Redis

from bench.peers import done

PRODUCERS = 32  # at once, where the library is asynchronous
LONG = 60  # seconds of a round

Submit = Callable[[int], Awaitable[None]]


async def main(name: str) -> None:
    together = int(os.environ["BENCH_TOGETHER"])
    peer = importlib.import_module(f"bench.peers.with_{name}")
    async with peer.producer() as submit:
        redis = Redis.from_url(done.REDIS_URL)
        await timed(redis, submit, 1)
        rates = [done.TASKS / await timed(redis, submit, many) for many in (1, together)]
        await redis.aclose()
    sys.stdout.write(orjson.dumps(rates).decode() + "\n")


async def timed(redis: "Redis", submit: Submit, together: int) -> float:
    """Seconds from the first submit until the last task has run."""
    began = time.perf_counter()
    async with asyncio.timeout(LONG):
        await feed(submit, done.TASKS, together)
        await redis.blpop([done.KEY])
    return time.perf_counter() - began


async def feed(submit: Submit, count: int, together: int) -> None:
    left = iter(range(count // together))

    async def produce() -> None:
        for _ in left:
            await submit(together)

    await asyncio.gather(*(produce() for _ in range(PRODUCERS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
