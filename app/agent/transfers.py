"""Bytes in and out, straight between the object store and our disk; the agent's key never travels with them."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin

import httpx

from app.agent.client import USER_AGENT, direct
from app.agent.errors import InputFailed

BLOCK = 256 * 1024  # bytes
PATIENCE = httpx.Timeout(60.0, connect=10.0)
DOWNLOAD_TRIES = 8
ASKING = 8  # operations about files at once
RETRY, RETRY_MAX = 0.5, 15.0  # seconds


class PutFailed(Exception):
    """The store did not take the bytes; a fresh signature or a later moment may help, unless they are `wrong`."""

    def __init__(self, message: str, *, wrong: bool = False) -> None:
        super().__init__(message)
        self.wrong = wrong


@dataclass(frozen=True)
class Digest:
    """Size and SHA-256 of a file, and of its parts where it has more than one."""

    size: int
    sha256: str
    parts: tuple[str, ...]


class Transfers:
    """One pool of connections to the object store, at most `at_once` files at a time."""

    def __init__(self, server: str, *, at_once: int = 4, scale: float = 1.0) -> None:
        self._server = server + "/"
        self._scale = scale
        self._http = httpx.AsyncClient(
            timeout=PATIENCE, follow_redirects=True, headers={"user-agent": USER_AGENT}, mounts=direct()
        )
        self.turn = asyncio.Semaphore(at_once)
        # The server bounds the operations of one socket to 20; those about tasks must find room.
        self.asking = asyncio.Semaphore(ASKING)

    async def fetch(self, order: dict[str, Any], target: Path) -> None:
        """Bring the input in and verify size and SHA-256. Raises InputFailed where it is not what the order says."""
        for attempt in range(DOWNLOAD_TRIES):
            try:
                return await self._fetch_once(order, target)
            except httpx.HTTPError as error:
                reason = repr(error)
            except _Definite as error:
                raise InputFailed(f"input {order['name']}: {error}") from None
            except InputFailed as error:
                reason = str(error)
            await self._pause(attempt)
        raise InputFailed(f"input {order['name']}: {DOWNLOAD_TRIES} tries failed, the last with {reason}")

    async def put(self, request: dict[str, Any], file: IO[bytes], start: int, length: int) -> None:
        """One signed request with `length` bytes from `start`. Raises PutFailed; 412 means that they are there."""
        headers = {**request["headers"], "content-length": str(length)}
        url = urljoin(self._server, request["url"])
        try:
            answer = await self._http.request(
                request["method"], url, headers=headers, content=_blocks(file, start, length), follow_redirects=False
            )
        except httpx.HTTPError as error:
            raise PutFailed(f"the store did not answer: {error!r}") from error
        if answer.status_code != httpx.codes.PRECONDITION_FAILED and not answer.is_success:
            wrong = answer.is_client_error and answer.status_code not in (401, 403, 404, 408, 409, 429)
            raise PutFailed(f"the store answered {answer.status_code}: {answer.text[:200]}", wrong=wrong)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _fetch_once(self, order: dict[str, Any], target: Path) -> None:
        digest, size, expected = hashlib.sha256(), 0, int(order["size"])
        async with self._http.stream("GET", urljoin(self._server, order["url"])) as answer:
            if answer.status_code in (401, 403, 404, 410):
                raise _Definite(f"expected to download it, the store answered {answer.status_code}")
            answer.raise_for_status()
            with target.open("wb") as file:
                async for block in answer.aiter_bytes(BLOCK):
                    size += len(block)
                    if size > expected:
                        raise _Definite(f"expected {expected} bytes, found more")
                    digest.update(block)
                    file.write(block)
        if size != expected:
            raise InputFailed(f"input {order['name']}: expected {expected} bytes, found {size}")
        if digest.hexdigest() != order["sha256"]:
            raise _Definite(f"expected SHA-256 {order['sha256']}, found {digest.hexdigest()}")

    async def _pause(self, attempt: int) -> None:
        await asyncio.sleep(min(RETRY * 2.0**attempt, RETRY_MAX) * random.uniform(0.5, 1.0) * self._scale)


class _Definite(Exception):
    """Trying again gives the same."""


def digest(file: IO[bytes], part_size: int) -> Digest:
    """Read the file from its start and hash it whole and by parts; blocking."""
    file.seek(0)
    whole, part, size, parts = hashlib.sha256(), hashlib.sha256(), 0, list[str]()
    while block := file.read(min(BLOCK, part_size - size % part_size)):
        whole.update(block)
        part.update(block)
        size += len(block)
        if size % part_size == 0:
            parts.append(part.hexdigest())
            part = hashlib.sha256()
    if size % part_size:
        parts.append(part.hexdigest())
    return Digest(size, whole.hexdigest(), tuple(parts) if len(parts) > 1 else ())


async def _blocks(file: IO[bytes], start: int, length: int) -> AsyncIterator[bytes]:
    while length > 0:
        block = await asyncio.to_thread(_read_at, file, min(BLOCK, length), start)
        if not block:
            raise PutFailed("the file became shorter while it was uploaded", wrong=True)
        start += len(block)
        length -= len(block)
        yield block


def _read_at(file: IO[bytes], length: int, start: int) -> bytes:
    file.seek(start)  # a file is uploaded by one request at a time
    return file.read(length)
