"""What every adapter of `Quota` promises."""

import asyncio
from datetime import timedelta

import pytest

from app.services.ports import Quota
from app.services.quotas import LocalQuota
from tests.waiting import until

WINDOW = timedelta(minutes=15)


@pytest.fixture(params=[LocalQuota])
def quota(request: pytest.FixtureRequest) -> Quota:
    made: Quota = request.param()
    return made


async def test_a_bucket_holds_its_limit_and_then_says_how_long_to_wait(quota: Quota) -> None:
    answers = [await quota.take("b", limit=3, window=WINDOW) for _ in range(5)]

    assert answers[:3] == [0, 0, 0]
    assert all(299 < wait <= 300 for wait in answers[3:])  # what is refused does not count: the wait does not grow


async def test_buckets_do_not_know_each_other(quota: Quota) -> None:
    await quota.take("a", limit=1, window=WINDOW)

    assert await quota.take("b", limit=1, window=WINDOW) == 0


async def test_a_try_that_was_given_back_did_not_count(quota: Quota) -> None:
    await quota.take("b", limit=1, window=WINDOW)
    await quota.give_back("b", limit=1, window=WINDOW)
    await quota.give_back("b", limit=1, window=WINDOW)

    assert await quota.take("b", limit=1, window=WINDOW) == 0
    assert await quota.take("b", limit=1, window=WINDOW) > 0


async def test_tries_at_once_are_counted_each(quota: Quota) -> None:
    answers = await asyncio.gather(*(quota.take("b", limit=10, window=WINDOW) for _ in range(30)))

    assert answers.count(0) == 10


async def test_a_bucket_refills_over_its_window(quota: Quota) -> None:
    window = timedelta(seconds=0.2)
    await quota.take("b", limit=1, window=window)
    wait = await quota.take("b", limit=1, window=window)

    async def again() -> bool:
        return await quota.take("b", limit=1, window=window) == 0

    assert 0 < wait <= 0.2
    await until(again, within=1, what="one more try")
