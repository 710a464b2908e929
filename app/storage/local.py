"""The object store on a local disk, behind links that this server signs and serves itself.

1. The event loop never waits for the disk: all file work runs in threads, in pieces of at most 1 MiB.
2. A body counts only once its size and SHA-256 are those of its link and it has reached the disk; before that it is
   nowhere to be found, and whatever ends the request early leaves nothing behind.
3. A link is checked before anything else is looked at; its claims, not the request, say what happens.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import ParamSpec, TypeVar

from app.domain.errors import AlreadyExists, BadRequest, NotFound
from app.domain.output import (
    SignedRequest,
    StoredObject,
    UploadPlan,
    check_parts,
    clean_media_type,
    clean_name,
    composite,
    part_sizes,
    safe_inline,
)
from app.storage.disk import Disk, Incoming, Meta, disk_errors
from app.storage.signing import Grant, read, sign

PIECE = 512 * 1024
"""Bytes of one read or write."""

ABANDONED = timedelta(hours=25)
"""Age at which what was left unfinished is swept: every link of it has long expired."""

P = ParamSpec("P")
R = TypeVar("R")


class LocalStore:
    """An `ObjectStore`, and the `SignedFiles` that honour its links under `<public_url>/files/`.

    `keys` are secrets, the first of which signs; an upload ends after `patience` seconds without a byte. Raises
    `StorageUnavailable` when the directory cannot be made or used.
    """

    def __init__(
        self,
        directory: Path,
        public_url: str,
        keys: Sequence[bytes],
        clock: Callable[[], datetime],
        *,
        part_size: int = 64 * 1024 * 1024,
        patience: float = 60.0,
    ) -> None:
        self.part_size = part_size
        self._base = f"{public_url.rstrip('/')}/files/"
        self._keys, self._clock, self._patience = tuple(keys), clock, patience
        with disk_errors():
            self._disk = Disk(directory)
            self._disk.sweep(ABANDONED.total_seconds())

    async def plan_upload(
        self,
        key: str,
        *,
        size: int,
        sha256: bytes,
        parts: Sequence[bytes],
        media_type: str,
        expires: timedelta,
        upload_id: str = "",
    ) -> UploadPlan:
        check_parts(size, parts, self.part_size)
        await _in_thread(self._disk.find, key)
        whole = Grant(
            method="PUT",
            key=key,
            expires=self._until(expires),
            size=size,
            sha256=sha256.hex(),
            media_type=clean_media_type(media_type),
        )
        if not parts:
            return UploadPlan(requests=(self._put(whole),))
        upload_id = upload_id or await self._begin(whole, parts)
        pieces = zip(part_sizes(size, self.part_size), parts, strict=True)
        requests = tuple(
            self._put(replace(whole, size=length, sha256=digest.hex(), upload_id=upload_id, part=number))
            for number, (length, digest) in enumerate(pieces, start=1)
        )
        return UploadPlan(requests=requests, part_size=self.part_size, upload_id=upload_id)

    async def finish_upload(
        self, key: str, *, upload_id: str, size: int, sha256: bytes, parts: Sequence[bytes]
    ) -> StoredObject | None:
        expected = composite(parts) if parts else sha256
        if upload_id:
            try:
                await _in_thread(self._disk.finish_upload, key, upload_id, part_sizes(size, self.part_size))
            except AlreadyExists:
                await self.abort_upload(key, upload_id=upload_id)
        meta = await _in_thread(self._disk.find, key)
        if meta is None or meta.size != size or meta.sha256 != expected.hex():
            return None
        return _stored(meta)

    async def abort_upload(self, key: str, *, upload_id: str) -> None:
        if upload_id:
            await _in_thread(self._disk.abort_upload, upload_id)

    async def sign_get(
        self, key: str, *, expires: timedelta, filename: str, media_type: str, inline: bool, internal: bool = False
    ) -> str:
        grant = Grant(
            method="GET",
            key=key,
            expires=self._until(expires),
            media_type=clean_media_type(media_type),
            filename=clean_name(filename),
            inline=inline and safe_inline(media_type),
        )
        return self._base + sign(grant, self._keys[0])

    async def head(self, key: str) -> StoredObject | None:
        meta = await _in_thread(self._disk.find, key)
        return None if meta is None else _stored(meta)

    async def put(self, key: str, body: bytes, *, media_type: str) -> None:
        meta = _single(key, len(body), hashlib.sha256(body).hexdigest(), clean_media_type(media_type))
        async with self._incoming(meta.size, meta.sha256) as incoming:
            await _in_thread(incoming.write, body)
            await _in_thread(incoming.seal)
            await _in_thread(self._disk.publish, incoming, meta, replace=True)

    async def open(self, key: str) -> AsyncIterator[bytes]:
        meta = await self._found(key)
        async for piece in _pieces(self._disk, meta, 0, meta.size):
            yield piece

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            await _in_thread(self._disk.remove, key)

    async def sweep(self, older_than: timedelta = ABANDONED) -> int:
        """Remove unfinished uploads older than this, as opening the store does; returns how many."""
        return await _in_thread(self._disk.sweep, older_than.total_seconds())

    async def open_signed(self, claims: str, signature: str) -> "LocalFile":
        grant = self._read(claims, signature, "GET")
        meta = await self._found(grant.key)
        return LocalFile(self._disk, meta, grant)

    async def receive_signed(
        self, claims: str, signature: str, *, headers: Mapping[str, str], body: AsyncIterator[bytes]
    ) -> str:
        grant = self._read(claims, signature, "PUT")
        grant.check_headers(headers)
        if not grant.part and await _in_thread(self._disk.find, grant.key) is not None:
            raise AlreadyExists("this key has been written, and is written once")
        await _in_thread(self._disk.check_room, grant.size)
        async with self._incoming(grant.size, grant.sha256) as incoming:
            async for piece in _gathered(body, self._patience):
                await _in_thread(incoming.write, piece)
            await _in_thread(incoming.seal)
            return await self._keep(grant, incoming)

    async def _begin(self, whole: Grant, parts: Sequence[bytes]) -> str:
        meta = Meta(
            key=whole.key,
            size=whole.size,
            media_type=whole.media_type,
            sha256=composite(parts).hex(),
            chunk=self.part_size,
            parts=len(parts),
        )
        return await _in_thread(self._disk.begin_upload, meta)

    async def _keep(self, grant: Grant, incoming: Incoming) -> str:
        if grant.part:
            await _in_thread(self._disk.add_part, grant.upload_id, grant.part, incoming)
            return f'"{grant.sha256}"'
        meta = _single(grant.key, grant.size, grant.sha256, grant.media_type)
        await _in_thread(self._disk.publish, incoming, meta)
        return meta.etag

    @asynccontextmanager
    async def _incoming(self, size: int, sha256: str) -> AsyncIterator[Incoming]:
        incoming = self._disk.incoming(size, sha256)
        try:
            await _in_thread(incoming.open)
            yield incoming
        finally:
            # A cancelled request cleans up as well: its thread may still be writing.
            await asyncio.shield(asyncio.to_thread(incoming.close))

    async def _found(self, key: str) -> Meta:
        meta = await _in_thread(self._disk.find, key)
        if meta is None:
            raise NotFound("there is no such file: it was deleted, or never completed")
        return meta

    def _read(self, claims: str, signature: str, method: str) -> Grant:
        return read(claims, signature, self._keys, method=method, now=self._clock())

    def _put(self, grant: Grant) -> SignedRequest:
        return SignedRequest(method="PUT", url=self._base + sign(grant, self._keys[0]), headers=grant.upload_headers())

    def _until(self, expires: timedelta) -> int:
        return int((self._clock() + expires).timestamp())


@dataclass(frozen=True, slots=True)
class LocalFile:
    """An object that a link opened: the link's word for how to show it, the disk's for what it is."""

    _disk: Disk
    _meta: Meta
    _grant: Grant

    @property
    def size(self) -> int:
        return self._meta.size

    @property
    def etag(self) -> str:
        return self._meta.etag

    @property
    def media_type(self) -> str:
        return self._grant.media_type

    @property
    def filename(self) -> str:
        return self._grant.filename

    @property
    def inline(self) -> bool:
        return self._grant.inline

    def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        return _pieces(self._disk, self._meta, start, stop)


def _single(key: str, size: int, sha256: str, media_type: str) -> Meta:
    return Meta(key=key, size=size, media_type=media_type, sha256=sha256, chunk=max(size, 1))


def _stored(meta: Meta) -> StoredObject:
    whole = bytes.fromhex(meta.sha256) if meta.parts == 1 else None
    return StoredObject(size=meta.size, media_type=meta.media_type, sha256=whole)


async def _pieces(disk: Disk, meta: Meta, start: int, stop: int) -> AsyncIterator[bytes]:
    while start < stop:
        piece = await _in_thread(disk.read, meta, start, min(PIECE, stop - start))
        if not piece:
            raise NotFound("this file became shorter while it was read")
        start += len(piece)
        yield piece


async def _gathered(body: AsyncIterator[bytes], patience: float) -> AsyncIterator[bytes]:
    """The body in larger pieces, so that a thread is worth its while; gives up on a sender that stalls."""
    piece = bytearray()
    try:
        while True:
            async with asyncio.timeout(patience):
                chunk = await anext(body, None)
            if chunk is None:
                break
            piece += chunk
            if len(piece) >= PIECE:
                yield bytes(piece)
                piece.clear()
    except TimeoutError:
        raise BadRequest(f"the upload stood still for {patience:g} s") from None
    if piece:
        yield bytes(piece)


async def _in_thread(work: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    with disk_errors():
        return await asyncio.to_thread(work, *args, **kwargs)
