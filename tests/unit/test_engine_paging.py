"""Keyset connections and scalars: the small parts that every list of the graph stands on."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest

from app.domain.errors import BadRequest
from app.interfaces.graphql import scalars
from app.interfaces.graphql.paging import Connection, connection, decode_cursor, encode_cursor

IDS = [UUID(int=n) for n in range(1, 8)]


class Rows:
    """A list of ids that counts how often it is asked."""

    def __init__(self, total: int = len(IDS)) -> None:
        self.counted = 0
        self.total = total

    async def fetch(self, limit: int, after: UUID | None) -> Sequence[UUID]:
        return [id for id in IDS if after is None or id > after][:limit]

    async def count(self) -> int:
        self.counted += 1
        return self.total

    async def page(self, first: int = 3, after: str | None = None) -> Connection[str]:
        return await connection(self.fetch, self.count, first=first, after=after, id_of=lambda id: id, of=str)


async def test_pages_follow_each_other_without_gap_or_double() -> None:
    rows, seen, after = Rows(), list[str](), None
    while True:
        page = await rows.page(after=after)
        seen += [edge.node for edge in page.edges]
        after = page.page_info.end_cursor
        if not page.page_info.has_next_page:
            break

    assert seen == [str(id) for id in IDS]
    assert rows.counted == 0


async def test_the_first_and_the_last_page_say_so() -> None:
    first = await Rows().page()
    last = await Rows().page(first=100, after=first.page_info.end_cursor)
    empty = await Rows().page(after=last.page_info.end_cursor)

    assert (first.page_info.has_previous_page, first.page_info.has_next_page) == (False, True)
    assert (last.page_info.has_previous_page, last.page_info.has_next_page) == (True, False)
    assert (empty.edges, empty.page_info.start_cursor, empty.page_info.end_cursor) == ([], None, None)


async def test_the_total_is_counted_once_and_capped() -> None:
    rows = Rows(total=10_001)
    page = await rows.page()

    assert (await page.total_count(), await page.total_count_is_capped()) == (10_000, True)
    assert rows.counted == 1


@pytest.mark.parametrize("first", [0, -1, 101])
async def test_first_is_from_1_to_100(first: int) -> None:
    with pytest.raises(BadRequest, match="expected `first` from 1 to 100"):
        await Rows().page(first=first)


@pytest.mark.parametrize("after", ["garbage", "", "bnVsbA", "W10", "WyJ4Il0", "WzFd", "é", "=" * 5, "W" * 500])
async def test_a_cursor_of_no_list_is_a_bad_request(after: str) -> None:
    with pytest.raises(BadRequest, match="expected a cursor that this list gave out"):
        await Rows().page(after=after)


def test_a_cursor_of_several_values_comes_back_as_it_was() -> None:
    key = ("name", 5, UUID(int=9))

    assert decode_cursor(encode_cursor(key), (str, int, UUID)) == key
    with pytest.raises(BadRequest):
        decode_cursor(encode_cursor(("name", True, UUID(int=9))), (str, int, UUID))


def test_times_are_written_in_utc() -> None:
    berlin = datetime(2026, 1, 31, 13, 0, 0, 500000, tzinfo=timezone(timedelta(hours=1)))

    assert scalars.write_datetime(berlin) == "2026-01-31T12:00:00.500000Z"
    assert scalars.read_datetime("2026-01-31T13:00:00.5+01:00") == berlin
    assert scalars.read_datetime("2026-01-31T12:00:00.5Z").tzinfo is UTC
    for wrong in ("2026-01-31T12:00:00", "yesterday", 5, None):
        with pytest.raises(ValueError, match="expected a time"):
            scalars.read_datetime(wrong)


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (timedelta(), "PT0S"),
        (timedelta(seconds=0.5), "PT0.5S"),
        (timedelta(hours=25, minutes=3), "PT25H3M"),
        (timedelta(minutes=1, seconds=1), "PT1M1S"),
        (timedelta(seconds=-2), "-PT2S"),
    ],
)
def test_durations_are_iso_8601(length: timedelta, text: str) -> None:
    assert scalars.write_duration(length) == text
    if length >= timedelta():
        assert scalars.read_duration(text) == length


def test_durations_of_another_form_are_refused() -> None:
    assert scalars.read_duration("P1DT2H") == timedelta(days=1, hours=2)
    for wrong in ("P", "PT", "P1DT", "1h", "", None, 5, "PT" + "9" * 40 + "S"):
        with pytest.raises(ValueError, match="expected a duration"):
            scalars.read_duration(wrong)


def test_big_ints_stay_exact() -> None:
    assert scalars.read_big_int(2**53 - 1) == 2**53 - 1
    assert scalars.read_big_int("-12") == -12
    for wrong in (2**53, True, 1.5, "1.5", "9" * 30, None):
        with pytest.raises(ValueError, match="expected a whole number"):
            scalars.read_big_int(wrong)


def test_urls_are_absolute() -> None:
    assert scalars.read_url("https://example.org/hook") == "https://example.org/hook"
    for wrong in ("javascript:alert(1)", "/path", 5):
        with pytest.raises(ValueError, match="expected an http or https URL"):
            scalars.read_url(wrong)
