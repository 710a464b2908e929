"""Relay connections over keysets: the cost of a page does not grow with its depth.

A cursor is the sort key of its row, opaque to clients and checked when it comes back. A page fetches one row more than
it shows, so that `hasNextPage` costs nothing; the total is counted only where it was selected, and at most up to
10,000.
"""

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Generic, TypeAlias, TypeVar
from uuid import UUID

import orjson
import strawberry

from app.domain.errors import BadRequest
from app.interfaces.graphql.declare import argument, attribute, field, object_type

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_FIRST = 20
MAX_FIRST = 100
MAX_TOTAL = 10_000

First: TypeAlias = Annotated[int, argument("How many at most, from 1 to 100.")]
After: TypeAlias = Annotated[str | None, argument("The cursor after which the page begins; the first page without it.")]

Key: TypeAlias = tuple[Any, ...]
"""The sort key of a row: UUIDs, strings and whole numbers, the last of them unique."""

Fetch: TypeAlias = Callable[[int, Any], Awaitable[Sequence[R]]]
"""`await fetch(limit, after)`: at most `limit` rows after the key `after` (None: from the start), in the list's order.
"""

Count: TypeAlias = Callable[[], Awaitable[int]]
"""How many rows the list has; may stop counting at 10,001."""


@object_type()
class PageInfo:
    """Where a page lies in its list."""

    has_next_page: bool = attribute("Whether more follow after this page.")
    has_previous_page: bool = attribute("Whether the page began after a cursor.")
    start_cursor: str | None = attribute("The cursor of the page's first item.")
    end_cursor: str | None = attribute("The cursor of its last item: `after` of the next page.")


@object_type()
class Edge(Generic[T]):
    """One item of a list with its cursor."""

    node: T = attribute("The item.")
    cursor: str = attribute("Its place in the list, for `after`.")


@object_type()
class Connection(Generic[T]):
    """One page of a list."""

    edges: list[Edge[T]] = attribute("The items with their cursors.")
    page_info: PageInfo = attribute("Where this page lies in the list.")
    count: strawberry.Private[Count]

    @field()
    def nodes(self) -> list[T]:
        """The items without their cursors."""
        return [edge.node for edge in self.edges]

    @field()
    async def total_count(self) -> int:
        """How many the whole list has, counted up to 10,000; counted only when selected."""
        return min(await self.count(), MAX_TOTAL)

    @field()
    async def total_count_is_capped(self) -> bool:
        """Whether the list has more than the 10,000 that `totalCount` counts to."""
        return await self.count() > MAX_TOTAL


async def connection(
    fetch: Callable[[int, UUID | None], Awaitable[Sequence[R]]],
    count: Count,
    *,
    first: int,
    after: str | None,
    id_of: Callable[[R], UUID],
    of: Callable[[R], T],
) -> Connection[T]:
    """One page of a list that is sorted by id; `of` makes the node of a row. Raises `BadRequest` for a bad `first` or
    `after`.
    """
    key = _one(after, (UUID,))
    return await _page(fetch, count, first=first, after=key, key_of=lambda row: (id_of(row),), of=of)


async def keyed_connection(
    fetch: Callable[[int, Key | None], Awaitable[Sequence[R]]],
    count: Count,
    *,
    first: int,
    after: str | None,
    shape: tuple[type, ...],
    key_of: Callable[[R], Key],
    of: Callable[[R], T],
) -> Connection[T]:
    """As `connection`, for a list that is sorted by several values: `shape` has the types of its key, such as (str,
    UUID).
    """
    key = None if after is None else decode_cursor(after, shape)
    return await _page(fetch, count, first=first, after=key, key_of=key_of, of=of)


def encode_cursor(key: Key) -> str:
    """The opaque text of a key."""
    # `default` for the database driver's own subclass of UUID.
    return urlsafe_b64encode(orjson.dumps(key, default=str)).decode().rstrip("=")


def decode_cursor(text: str, shape: tuple[type, ...]) -> Key:
    """Read what `encode_cursor` wrote for a key of `shape`; raises `BadRequest` for anything else."""
    try:
        values = orjson.loads(urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)))
        key = tuple(_value(value, type) for value, type in zip(values, shape, strict=True))
    except (ValueError, TypeError):
        raise BadRequest(f"expected a cursor that this list gave out, found {text[:80]!r}", path=("after",)) from None
    if encode_cursor(key) != text:
        raise BadRequest(f"expected a cursor that this list gave out, found {text[:80]!r}", path=("after",))
    return key


def check_first(first: int) -> int:
    """`first` where it is from 1 to 100; raises `BadRequest` otherwise."""
    if not 1 <= first <= MAX_FIRST:
        raise BadRequest(f"expected `first` from 1 to {MAX_FIRST}, found {first}", path=("first",))
    return first


async def _page(
    fetch: Callable[[int, Any], Awaitable[Sequence[R]]],
    count: Count,
    *,
    first: int,
    after: Any,
    key_of: Callable[[R], Key],
    of: Callable[[R], T],
) -> Connection[T]:
    check_first(first)
    rows = await fetch(first + 1, after)
    edges = [Edge(node=of(row), cursor=encode_cursor(key_of(row))) for row in rows[:first]]
    info = PageInfo(
        has_next_page=len(rows) > first,
        has_previous_page=after is not None,
        start_cursor=edges[0].cursor if edges else None,
        end_cursor=edges[-1].cursor if edges else None,
    )
    return Connection(edges=edges, page_info=info, count=_once(count))


def _one(after: str | None, shape: tuple[type, ...]) -> Any:
    return None if after is None else decode_cursor(after, shape)[0]


def _value(value: Any, type: type) -> Any:
    if type is UUID and isinstance(value, str):
        return UUID(value)
    if isinstance(value, bool) or not isinstance(value, type):
        raise ValueError(f"expected {type}")
    return value


def _once(count: Count) -> Count:
    """The same count for `totalCount` and its sibling, which are resolved at the same time."""
    known: list[int] = []
    counting = asyncio.Lock()

    async def counted() -> int:
        async with counting:
            if not known:
                known.append(await count())
        return known[0]

    return counted
