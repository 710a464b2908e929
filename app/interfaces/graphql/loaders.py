"""DataLoaders of one operation: made when first asked for, so that no list of them has to be kept."""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeVar

from strawberry.dataloader import DataLoader

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
C = TypeVar("C")

BATCH = 200


class Loaders:
    """One DataLoader for each load function, for as long as one operation runs."""

    def __init__(self) -> None:
        self._loaders: dict[Callable[..., Any], DataLoader[Any, Any]] = {}

    def of(self, load: Callable[[C, list[K]], Awaitable[Sequence[V]]], context: C) -> DataLoader[K, V]:
        """The loader that calls `load(context, keys)` with at most 200 distinct keys and gets one value a key, in
        order.

        `load` is a module's own function: it is also the name of the loader.
        """
        loader = self._loaders.get(load)
        if loader is None:
            loader = self._loaders[load] = DataLoader(partial(load, context), max_batch_size=BATCH)
        return loader
