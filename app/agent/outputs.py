"""The files that one attempt makes: found, hashed, uploaded straight to the object store, verified by the server.

    begin (name, size, SHA-256) -> signed requests -> PUT, from disk -> complete -> VERIFIED

Invariants:
1. Only regular files inside the working directory leave this machine: no link, no device, nothing that a path climbs
   out to.
2. A file is uploaded once for its name; names are unique in the attempt.
3. A store or server that is away is waited for; only a refusal, or the end of the lease, gives a file up.
"""

import asyncio
import contextlib
import io
import itertools
import logging
import mimetypes
import os
import random
import re
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from app.agent import pictures
from app.agent.errors import LeaseLost, OperationFailed, OutputRefused
from app.agent.journal import WARNING, Journal
from app.agent.names import output_name
from app.agent.transfers import RETRY, RETRY_MAX, Digest, PutFailed, Transfers, digest

PART = 64 * 1024 * 1024  # bytes, until the server says otherwise
CHANGES = 5  # times that a file may be found different from what was announced

_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")

_log = logging.getLogger(__name__)

Call = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class Piece:
    """Bytes to upload, and what the server is told about them."""

    announcement: dict[str, Any]
    file: IO[bytes]
    size: int


class Outputs:
    """The outputs of one attempt in `root`, its working directory."""

    def __init__(self, root: Path, journal: Journal, call: Call, transfers: Transfers, *, pause: float) -> None:
        self._root = root.resolve()
        self._folder = root / "outputs"
        self._journal = journal
        self._call = call
        self._transfers = transfers
        self._pause = pause
        self._part_size = PART
        self._names: dict[str, Path] = {}
        self._uploads: dict[Path, asyncio.Task[None]] = {}
        self._wanted: str | None = None  # the newest preview that was not uploaded
        self._previews: asyncio.Task[None] | None = None
        self._collecting = asyncio.Event()

    def declare(self, path: str, name: str | None, media_type: str | None) -> None:
        """Upload this file now, while the task runs. Raises OutputRefused where it is none of ours."""
        whole = self._inside(path)
        self._begin_upload(whole, name or self._name_of(whole), media_type)

    def preview(self, path: str) -> None:
        """Show this picture; a newer one takes its place where it comes before the upload began."""
        self._wanted = path
        if self._previews is None:
            self._previews = asyncio.create_task(self._show_previews())

    async def collect(self) -> list[str]:
        """Upload everything that is left in `outputs/`, wait for all uploads, and return why files were refused."""
        for path in self._walk(self._folder):
            try:
                self._begin_upload(self._inside(str(path.relative_to(self._folder.parent))), self._name_of(path), None)
            except OutputRefused as error:
                self._journal.say(str(error), WARNING)
        self._collecting.set()
        if self._previews:
            await self._previews
        results = await asyncio.gather(*self._uploads.values(), return_exceptions=True)
        for fault in results:
            if isinstance(fault, BaseException) and not isinstance(fault, OutputRefused):
                raise fault
        return [str(fault) for fault in results if isinstance(fault, OutputRefused)]

    async def close(self) -> None:
        """Give up what is still under way."""
        tasks = [*self._uploads.values(), *([self._previews] if self._previews else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin_upload(self, path: Path, name: str, media_type: str | None) -> None:
        if path in self._uploads:
            return
        name = self._unique(output_name(name))
        self._names[name] = path
        self._uploads[path] = asyncio.create_task(self._upload(path, name, _media_type(name, media_type)))

    def _inside(self, path: str) -> Path:
        """The real path, which is a regular file of this attempt."""
        if "\0" in path:
            raise OutputRefused("output: expected a path, found NUL in it")
        whole = self._root / path
        if whole.is_symlink():
            raise OutputRefused(f"output {path!r}: expected a regular file, found a link; it is not uploaded")
        try:
            whole = whole.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise OutputRefused(
                f"output {path!r}: expected a file in the working directory, found none ({error})"
            ) from None
        if not whole.is_relative_to(self._root):
            raise OutputRefused(f"output {path!r}: expected a path inside the working directory, found one outside")
        if not whole.is_file():
            raise OutputRefused(f"output {path!r}: expected a regular file, found something else")
        return whole

    def _walk(self, folder: Path) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(Path(entry.path))
                else:
                    yield Path(entry.path)

    def _name_of(self, path: Path) -> str:
        folder = self._folder.resolve()
        return str(path.relative_to(folder if path.is_relative_to(folder) else self._root))

    def _unique(self, name: str) -> str:
        stem, dot, extension = name.rpartition(".")
        for number in itertools.count(2):
            if name not in self._names:
                return name
            name = f"{stem} ({number}).{extension}" if dot and stem else f"{stem or extension} ({number})"
        raise AssertionError("unreachable")

    async def _upload(self, path: Path, name: str, media_type: str) -> None:
        async with self._transfers.turn:
            with _open(path) as file:
                for _ in range(CHANGES):
                    pieces = await self._announce(file, name, media_type)
                    if await self._bring(pieces):
                        return
                raise OutputRefused(f"output {name}: expected a file at rest, found it changing while it was uploaded")

    async def _announce(self, file: IO[bytes], name: str, media_type: str) -> list[Piece]:
        hashes = await asyncio.to_thread(digest, file, self._part_size)
        announcement = _announcement("OUTPUT", name, media_type, hashes)
        pieces = [Piece(announcement, file, hashes.size)]
        if media_type.startswith("image/") and (found := await asyncio.to_thread(pictures.illustrate, file)):
            announcement.update(width=found.width, height=found.height)
            if found.thumbnail:
                pieces.append(_picture_piece("THUMBNAIL", name, found.thumbnail))
        return pieces

    async def _bring(self, pieces: list[Piece]) -> bool:
        """Upload and verify; false where the bytes were not as announced. The first piece is the one that counts."""
        for attempt in itertools.count():
            grants = await self._grants(pieces)
            if grants is None:
                return False
            try:
                brought = [
                    grant["outputId"]
                    for piece, grant in zip(pieces, grants, strict=True)
                    if await self._put(piece, grant)
                ]
                break
            except PutFailed as error:
                _log.warning("upload of %s: %s", pieces[0].announcement["name"], error)
                await asyncio.sleep(min(RETRY * 2.0**attempt, RETRY_MAX) * random.uniform(0.5, 1.0))
                if error.wrong:
                    return False
        answer = await self._ask("completeOutputs", outputIds=brought)
        return bool(answer["results"][0] == "VERIFIED")

    async def _grants(self, pieces: list[Piece]) -> list[dict[str, Any]] | None:
        """The server's grants; None where it cuts files into parts of another size: the hashes have to be made anew."""
        answer = await self._ask("beginOutputs", files=[piece.announcement for piece in pieces])
        first: dict[str, Any] = answer["grants"][0]
        size = int(first["partSize"])
        if size > 0 and size != self._part_size and pieces[0].size > min(size, self._part_size):
            self._part_size = size
            return None
        if refused := first["refused"]:
            raise OutputRefused(f"output {pieces[0].announcement['name']}: {refused['message']} ({refused['code']})")
        grants: list[dict[str, Any]] = answer["grants"]
        return grants

    async def _put(self, piece: Piece, grant: dict[str, Any]) -> bool:
        if grant["refused"] or grant["outputId"] is None:
            return False
        requests = grant["requests"]
        part = int(grant["partSize"]) if len(requests) > 1 else piece.size
        for number, request in enumerate(requests):
            start = number * part
            await self._transfers.put(request, piece.file, start, min(part, piece.size - start))
        return True

    async def _ask(self, operation: str, **variables: Any) -> dict[str, Any]:
        try:
            async with self._transfers.asking:
                answer: dict[str, Any] = await self._call(operation, token=self._journal.token, **variables)
        except OperationFailed as error:
            raise OutputRefused(f"the server refused {operation}: {error}") from error
        if answer["__typename"] == "Refused":
            if answer["code"] == "LEASE_LOST":
                raise LeaseLost(answer["message"])
            raise OutputRefused(f"the server refused {operation}: {answer['message']} ({answer['code']})")
        return answer

    async def _show_previews(self) -> None:
        try:
            while (path := self._wanted) is not None:
                self._wanted = None
                try:
                    await self._show(path)
                except (OutputRefused, OSError) as error:
                    self._journal.say(str(error), WARNING)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._collecting.wait(), self._pause)
        except LeaseLost:
            pass  # the next report finds out
        finally:
            self._previews = None

    async def _show(self, path: str) -> None:
        with _open(self._inside(path)) as file:
            data = await asyncio.to_thread(file.read, pictures.PREVIEW_SOURCE_LIMIT)
        picture = await asyncio.to_thread(pictures.preview, data, path)
        piece = _picture_piece("PREVIEW", "preview", picture)
        grants = await self._grants([piece])
        if grants is None:  # a picture is one part in any case
            return
        try:
            await self._put(piece, grants[0])
        except PutFailed as error:
            raise OutputRefused(f"preview {path}: {error}") from None  # the next one is better than this one late
        answer = await self._ask("completeOutputs", outputIds=[grants[0]["outputId"]])
        if answer["results"] == ["VERIFIED"]:
            self._journal.set_preview(grants[0]["outputId"])


def _open(path: Path) -> IO[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OutputRefused(f"output {path.name!r}: expected a file that can be read, found {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OutputRefused(f"output {path.name!r}: expected a regular file, found something else")
    return os.fdopen(descriptor, "rb")


def _announcement(role: str, name: str, media_type: str, hashes: Digest) -> dict[str, Any]:
    return {
        "role": role,
        "name": name,
        "mediaType": media_type,
        "size": hashes.size,
        "sha256": hashes.sha256,
        "parts": list(hashes.parts),
    }


def _picture_piece(role: str, name: str, picture: pictures.Picture) -> Piece:
    file = io.BytesIO(picture.data)
    announcement = _announcement(role, name, picture.media_type, digest(file, PART))
    announcement.update(width=picture.width, height=picture.height)
    return Piece(announcement, file, len(picture.data))


def _media_type(name: str, declared: str | None) -> str:
    if declared and _MEDIA_TYPE.fullmatch(declared.lower()):
        return declared.lower()
    return mimetypes.guess_type(name)[0] or "application/octet-stream"
