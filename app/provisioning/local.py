"""Agents as processes beside the server: a directory, a key file and a child for each launch.

Invariants:
1. Nothing of the server's secrets reaches a child: its environment is a short list of names, its key is a file that
   only this user may read, and no shell is involved.
2. A child ends with this process, by SIGKILL too (see `children.py`). So what another process started is not ours to
   ask about: a launch that is not in this process is gone.
3. Everything of a launch lies in its directory, and goes with it. What a killed server left is removed by the next one,
   which knows by a lock that nobody uses it.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from app import children
from app.domain.pool import Alive, Gone, LaunchOrder, LaunchRefused

log = logging.getLogger(__name__)

GRACE = 10.0  # seconds that an agent has to end before it is killed
TOLD = 300  # characters of its last words
LOG_TAIL = 4096  # bytes of its log that are read for them

_PASSED = frozenset({"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
                     "SSL_CERT_FILE", "SSL_CERT_DIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"})  # fmt: skip
_KEY = re.compile(r"[as]k-\w+")


@dataclass(slots=True)
class _Process:
    child: children.Child
    place: Path


class LocalProvisioner:
    """Starts agents below `root`; `configs` is where the operator has put their configurations."""

    def __init__(self, root: Path, configs: Path, environ: Mapping[str, str], *, grace: float = GRACE) -> None:
        self._root = root
        self._configs = configs
        self._environment = _passed_on(environ)
        self._grace = grace
        self._processes: dict[UUID, _Process] = {}
        self._own: _Own | None = None

    async def start(self, order: LaunchOrder) -> str:
        """Start the agent and return its process id; one that runs already is left alone.

        Raises `LaunchRefused` where its configuration is not there or its program cannot be run.
        """
        if (known := self._processes.get(order.launch_id)) is not None:
            return str(known.child.pid)
        config = self._config(order)
        place = self._place(order.launch_id)
        try:
            child = await self._start(order, config, place)
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise LaunchRefused(f"its process could not be started: {error.strerror or error}") from error
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        self._processes[order.launch_id] = _Process(child, place)
        return str(child.pid)

    async def look(self, launch_id: UUID) -> Alive | Gone:
        """Whether its process runs; the process of another server is none of ours, and ended with that one."""
        known = self._processes.get(launch_id)
        if known is None:
            return Gone("the server that started it is gone", counts=False)
        if known.child.returncode is None:
            return Alive()
        return Gone(_end_of(known.child.returncode, known.place / "log"))

    async def stop(self, launch_id: UUID) -> None:
        """End its process, by force after the grace, and remove its directory; silent where there is none."""
        known = self._processes.get(launch_id)
        if known is not None:
            await known.child.stop(self._grace)
            await asyncio.to_thread(shutil.rmtree, known.place, ignore_errors=True)
            self._processes.pop(launch_id, None)

    def held(self) -> frozenset[UUID]:
        """The launches whose processes end with this one."""
        return frozenset(self._processes)

    async def close(self) -> None:
        """End every process, all at the same time, and leave nothing behind."""
        await asyncio.gather(*(self.stop(launch_id) for launch_id in list(self._processes)))
        own, self._own = self._own, None
        if own is not None:
            own.close()

    async def _start(self, order: LaunchOrder, config: Path, place: Path) -> children.Child:
        key, told = place / "key", os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            _write_key(key, order.key)
            return await children.start(
                [
                    *(sys.executable, "-P", "-m", "app.agent", "run"),
                    f"--url={order.url}",
                    f"--key-file={key}",
                    f"--config={config}",
                    f"--name={order.agent_name}",
                    f"--slots={order.slots}",
                    f"--labels={','.join(order.labels)}",
                    f"--state-dir={place / 'state'}",
                    "--log-format=json",
                ],
                cwd=place,
                env=self._environment,
                stdout=told,
                stderr=told,
            )
        finally:
            os.close(told)

    def _config(self, order: LaunchOrder) -> Path:
        name = f"{order.settings.get('config')}.toml"
        if (file := self._configs / name).is_file():
            return file
        raise LaunchRefused(f"expected the agents' configuration as pools/{name} in the server's data directory, "
                            "found none")  # fmt: skip

    def _place(self, launch_id: UUID) -> Path:
        if self._own is None:
            self._own = _Own(self._root)
        place = self._own.directory / str(launch_id)
        place.mkdir(mode=0o700)
        return place


class _Own:
    """This process's part of the root, locked as long as it lives; unlocked parts are of the dead, and removed."""

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in root.iterdir():
            _remove_left(left)
        self.directory = root / uuid4().hex
        # Locked before it has its name: nobody takes it for one of the dead.
        fresh = root / f".{self.directory.name}"
        fresh.mkdir(mode=0o700)
        self._lock = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        fresh.rename(self.directory)

    def close(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)


def _remove_left(directory: Path) -> None:
    if directory.name.startswith("."):
        return
    with contextlib.suppress(OSError):
        lock = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
            log.info("removed what an earlier server left of its agents")
        finally:
            os.close(lock)


def _write_key(file: Path, key: str) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as fresh:
        fresh.write(key)


def _passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name in _PASSED or name.startswith("LC_")}


def _end_of(code: int, told: Path) -> str:
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    last = _last_line(told)
    return f"its process {how}" + (f": {last}" if last else "")


def _last_line(told: Path) -> str:
    """The agent's last words, without anything like a key."""
    try:
        with told.open("rb") as file:
            file.seek(max(0, told.stat().st_size - LOG_TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    shown = "".join(letter if letter.isprintable() else " " for letter in last)
    return _KEY.sub("(a key)", shown)[:TOLD]
