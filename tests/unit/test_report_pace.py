"""How often a lease may report what."""

from uuid import UUID

from app.domain.lease import Lease
from app.domain.report import CHUNKS_LIMIT, LogChunk, log_events
from app.services.report_pace import KNOWN, MANY, ReportPace


def lease(n: int = 1) -> Lease:
    return Lease(UUID(int=n), UUID(int=1), 1, 1)


def chunk(n: int, stream: str = "stdout", level: str = "info") -> LogChunk:
    return LogChunk(stream=stream, level=level, first_line=n, lines=[f"line {n}"])


def test_latest_values_pass_twice_a_second_and_a_few_at_once() -> None:
    pace = ReportPace()

    at_once = [pace.latest(lease(), 10.0) for _ in range(6)]
    later = [pace.latest(lease(), 10.0 + n * 0.1) for n in range(1, 101)]

    assert at_once == [True] * 4 + [False] * 2
    assert sum(later) == 20


def test_who_keeps_to_two_a_second_is_never_thinned_however_the_network_bunches_them() -> None:
    pace = ReportPace()

    assert all(pace.latest(lease(), 10.0 + (n - n % 4) * 0.5) for n in range(400))


def test_a_log_is_slowed_down_behind_its_many_events_only() -> None:
    pace = ReportPace()
    pace.stored(lease(), MANY - 1, 10.0, logs=True)
    before = pace.wait(lease(), 10.0), pace.has_many(lease())

    pace.stored(lease(), MANY, 10.0, logs=True)

    assert before == (0.0, False)
    assert (pace.wait(lease(), 10.0), pace.wait(lease(), 10.75), pace.wait(lease(), 11.0)) == (1.0, 0.25, 0.0)
    assert pace.has_many(lease())
    assert pace.wait(lease(2), 10.0) == 0.0


def test_what_is_remembered_is_bounded() -> None:
    pace = ReportPace()
    for n in range(KNOWN + 10):
        pace.stored(lease(n), MANY, 10.0, logs=True)

    assert not pace.has_many(lease(0))
    assert pace.has_many(lease(KNOWN + 9))


def test_chunks_are_put_together_where_there_are_to_be_few_or_are_too_many() -> None:
    mixed = [chunk(1), chunk(2, "stderr", "warning"), chunk(3)]

    apart, together = log_events(1, mixed), log_events(1, mixed, few=True)
    alike = log_events(1, [chunk(n) for n in range(1, CHUNKS_LIMIT + 2)])

    assert [body["lines"] for _, body in apart] == [["line 1"], ["line 2"], ["line 3"]]
    assert [body for _, body in together] == [
        {
            "v": 1,
            "attempt": 1,
            "stream": "system",
            "level": "warning",
            "firstLine": 1,
            "lines": ["line 1", "line 2", "line 3"],
        }
    ]
    assert [(body["stream"], body["firstLine"], len(body["lines"])) for _, body in alike] == [
        ("stdout", 1, CHUNKS_LIMIT + 1)
    ]
    assert log_events(1, [], few=True) == ()
