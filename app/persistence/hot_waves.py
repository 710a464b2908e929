"""Items of one task (or slot) never share a statement: a second one waits for the next.

So each row is changed once by each statement, and what was asked of a task first is done first.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


async def in_waves(
    items: Sequence[Item],
    key: Callable[[Item], Hashable],
    run: Callable[[Sequence[Item]], Any],
) -> list[Any]:
    """Run every item, those with the same key in separate statements and in their order."""
    results: list[Any] = [None] * len(items)
    left = list(range(len(items)))
    while left:
        wave: dict[Hashable, int] = {}
        for n in left:
            wave.setdefault(key(items[n]), n)
        chosen = list(wave.values())
        for n, result in zip(chosen, await run([items[n] for n in chosen]), strict=True):
            results[n] = result
        left = [n for n in left if n not in set(chosen)]
    return results
