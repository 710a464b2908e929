"""Tells when an embedded server ends before it is asked to."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from app.children import Child
from app.embedded.errors import NO_SPACE

log = logging.getLogger(__name__)

OnExit = Callable[[str], None]

TAIL = 8192  # bytes of a log that are looked at


@contextlib.contextmanager
def watched(child: Child, what: str, output: Path, on_exit: OnExit | None) -> Iterator[None]:
    """While this context is open, the child's end is logged and told to `on_exit` in a sentence."""

    async def watch() -> None:
        code = await child.wait()
        reason = "the disk is full" if NO_SPACE in tail(output) else f"exit code {code}"
        sentence = f"{what} has ended by itself ({reason}); see {output}"
        log.error("%s", sentence)
        if on_exit:
            on_exit(sentence)

    watcher = asyncio.create_task(watch(), name=what)
    try:
        yield
    finally:
        watcher.cancel()


def tail(output: Path, begin: int = 0) -> str:
    """What a server has said lately, from byte `begin` of its log on."""
    with output.open("rb") as file:
        file.seek(begin)
        return file.read()[-TAIL:].decode(errors="replace")
