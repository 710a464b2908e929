"""An agent by HTTP has the rate of a socket: over it its requests are refused for a while, and nobody else's."""

from uuid import UUID

import pytest

from app.domain.errors import LimitExceeded
from app.interfaces.agents.context import Paces
from app.interfaces.engine.pace import Rate
from app.interfaces.engine.request import Exchange

RATE = Rate(messages=10, size=2_000, saved=2.0)


def request(size: int | None = 10) -> Exchange:
    return Exchange(request_id="r", headers={} if size is None else {"content-length": str(size)})


def test_requests_beyond_the_rate_say_when_to_come_back() -> None:
    paces, agent = Paces(RATE), UUID(int=1)
    for _ in range(19):
        paces.take(agent, request())

    with pytest.raises(LimitExceeded) as refused:
        paces.take(agent, request(5_000))

    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 0.6
    paces.take(UUID(int=2), request())


def test_large_requests_count_by_their_size_and_those_without_a_length_as_large() -> None:
    paces = Paces(RATE)
    paces.take(UUID(int=1), request(3_900))

    with pytest.raises(LimitExceeded):
        paces.take(UUID(int=1), request(1_000))
    with pytest.raises(LimitExceeded):
        paces.take(UUID(int=2), request(None))


def test_without_a_rate_nothing_is_counted() -> None:
    for _ in range(1000):
        Paces(None).take(UUID(int=1), request(10**9))
