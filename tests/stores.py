"""Object stores as tests open them, and what the holder of a signed request does with it."""

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette

from app.interfaces.rest.files import file_routes
from app.services.ports import ObjectStore, SignedRequest, StoredObject, UploadPlan
from app.storage.local import LocalStore
from tests.waiting import until

MIB = 1024 * 1024
PART = 5 * MIB
"""The smallest part that S3 takes."""

MINUTE = timedelta(minutes=1)
KEYS = (b"the key that signs today, of 32+", b"the key of yesterday, of 32 byte")
ORIGIN = "http://console.test"


class Now:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset


@dataclass(frozen=True, slots=True)
class Sender:
    """Whoever holds signed requests: an agent or a browser."""

    http: httpx.AsyncClient

    async def send(
        self, request: SignedRequest, body: bytes, *, without: str = "", headers: dict[str, str] | None = None
    ) -> httpx.Response:
        kept = {name: value for name, value in request.headers.items() if name != without}
        return await self.http.request(request.method, request.url, content=body, headers=kept | (headers or {}))

    async def get(self, url: str, **headers: str) -> httpx.Response:
        return await self.http.get(url, headers=headers)


def sha256(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def split(body: bytes, part_size: int = PART) -> list[bytes]:
    return [body[start : start + part_size] for start in range(0, len(body), part_size)]


def hashes(body: bytes, part_size: int = PART) -> list[bytes]:
    """The parts' hashes as `plan_upload` wants them: none for what comes in one request."""
    return [sha256(part) for part in split(body, part_size)] if len(body) > part_size else []


async def plan(
    store: ObjectStore,
    key: str,
    body: bytes,
    *,
    media_type: str = "image/png",
    expires: timedelta = MINUTE,
    upload_id: str = "",
) -> UploadPlan:
    return await store.plan_upload(
        key,
        size=len(body),
        sha256=sha256(body),
        parts=hashes(body),
        media_type=media_type,
        expires=expires,
        upload_id=upload_id,
    )


async def finish(store: ObjectStore, key: str, body: bytes, upload: UploadPlan) -> StoredObject | None:
    return await store.finish_upload(
        key, upload_id=upload.upload_id, size=len(body), sha256=sha256(body), parts=hashes(body)
    )


async def link(
    store: ObjectStore,
    key: str,
    *,
    filename: str = "a.png",
    media_type: str = "image/png",
    inline: bool = False,
    expires: timedelta = MINUTE,
) -> str:
    return await store.sign_get(key, expires=expires, filename=filename, media_type=media_type, inline=inline)


class FileHost:
    """A real HTTP server on loopback that answers the links of one local store at a time."""

    def __init__(self) -> None:
        self._app = Starlette()
        config = uvicorn.Config(self._app, host="127.0.0.1", port=0, log_config=None, lifespan="off")
        self._server = uvicorn.Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "FileHost":
        self._serving = asyncio.create_task(self._server.serve())
        await until(lambda: self._server.started, what="the server listens")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        if self._serving:
            await self._serving

    @property
    def url(self) -> str:
        port: int = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def store(self, directory: Path, clock: Now, *, patience: float = 10) -> LocalStore:
        """A store in `directory`, whose links are answered from now on."""
        store = LocalStore(directory, self.url, KEYS, clock, part_size=PART, patience=patience)
        self._app.router.routes[:] = file_routes(store, origins=[ORIGIN])
        return store


class Relay:
    """A TCP address in front of a server; silenced, it takes connections and bytes and gives nothing back."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._silent = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """The address as `host:port`."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    def silence(self, *, on: bool = True) -> None:
        """Swallow what comes from now on; `on=False`: pass on again."""
        self._silent = on

    async def refuse(self) -> None:
        """Close the address and every connection."""
        if self._server:
            self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, far_writer}
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, far_writer))
                both.create_task(self._pump(far_reader, writer))
        except* OSError:
            pass

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if not self._silent:
                writer.write(data)
                await writer.drain()
        writer.close()
