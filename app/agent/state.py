"""What the agent remembers on disk: its secret, and the processes that it started, so that a later life can end them.

Invariants:
1. One agent holds the directory at a time (a lock that the kernel drops with the process).
2. A process is ended only where it is proved to be ours: by its id and the moment of its start together, or by the
   working directory in its environment, which is random. An id alone may be another process by now.
3. The file is replaced whole, so that a crash leaves the old one or the new one.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import uuid
from pathlib import Path
from typing import Any

import orjson
import psutil

from app.agent.errors import ConfigError
from app.agent.names import file_name

MARK = "RUNYARD_OUTPUTS"  # the variable of a task's environment that names its directory

_log = logging.getLogger(__name__)


class State:
    """The directory of one agent; `open` makes it."""

    def __init__(self, directory: Path, lock: int, url: str) -> None:
        self._url = url
        self._lock = lock
        self._file = directory / "state.json"
        self._content = _read(self._file)
        self.work = directory / "work"
        self.work.mkdir(mode=0o700, exist_ok=True)

    @classmethod
    def open(cls, root: Path, url: str, name: str) -> "State":
        """The state of agent `name` below `root`, to talk to the server `url`; raises ConfigError where it is taken."""
        own = hashlib.sha256(name.encode()).hexdigest()[:12]
        directory = root / f"{file_name(name, fallback='agent')[:40]}-{own}"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"state_dir: expected a directory that can be written, found {root} ({error.strerror})"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ConfigError(
                f"state_dir: expected to be alone in {directory}, found another agent {name!r} running"
            ) from None
        return cls(directory, lock, url)

    @property
    def secret(self) -> str | None:
        """What proves that we are the agent of this name; a server that moved knows the newest one."""
        secrets: dict[str, str] = self._content.get("secrets", {})
        return secrets.get(self._url) or secrets.get(self._content.get("newest", ""))

    def remember(self, secret: str) -> None:
        """Keep the secret; it is on disk when this returns."""
        self._content.setdefault("secrets", {})[self._url] = secret
        self._content["newest"] = self._url
        self._write()

    def new_directory(self, label: str) -> Path:
        """An empty working directory, whose name nobody can guess."""
        directory = self.work / f"{file_name(label)[:60]}-{uuid.uuid4().hex[:12]}"
        directory.mkdir(mode=0o700)
        return directory

    def started(self, directory: Path, pid: int) -> None:
        """A process group that works in `directory`."""
        self._groups[directory.name] = {"pid": pid, "born": birth(pid)}
        self._write()

    def ended(self, directory: Path) -> None:
        """That group is gone."""
        if self._groups.pop(directory.name, None):
            self._write()

    def clear_leftovers(self) -> int:
        """End what an earlier life left running, remove its directories, and return how many processes were ended."""
        killed = 0
        if self._groups:
            killed = sum(_kill(process, self.work, self._groups) for process in psutil.process_iter())
            self._groups.clear()
            self._write()
        for directory in self.work.iterdir():
            remove(directory)
        return killed

    def close(self) -> None:
        """Let another process have the directory."""
        os.close(self._lock)

    @property
    def _groups(self) -> dict[str, dict[str, Any]]:
        groups: dict[str, dict[str, Any]] = self._content.setdefault("groups", {})
        return groups

    def _write(self) -> None:
        fresh = self._file.with_suffix(".new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(orjson.dumps(self._content, option=orjson.OPT_INDENT_2))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._file)


def birth(pid: int) -> str | None:
    """When the process with this id began, as a text that no other process of this id has; None where it is gone."""
    if Path("/proc/self/stat").exists():
        with contextlib.suppress(OSError, IndexError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            ticks = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()[19]
            return f"{boot}:{ticks.decode()}"
        return None
    with contextlib.suppress(psutil.Error):
        return str(psutil.Process(pid).create_time())
    return None


def remove(directory: Path) -> None:
    """Remove a working directory with all that is in it; links are removed, never followed."""
    if directory.is_symlink() or not directory.is_dir():
        directory.unlink(missing_ok=True)
        return
    with contextlib.suppress(OSError):
        directory.chmod(0o700)  # a task may have taken our own permission away, here and below
        for folder, names, _ in os.walk(directory):
            for path in (Path(folder, name) for name in names):
                if not path.is_symlink():
                    path.chmod(0o700)
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        _log.warning("the working directory %s could not be removed whole", directory.name)


def _kill(process: psutil.Process, work: Path, groups: dict[str, dict[str, Any]]) -> bool:
    """End one process if it is one of ours, and its group if it leads one of those."""
    try:
        leads = any(g["pid"] == process.pid and g["born"] == birth(process.pid) for g in groups.values())
        place = Path(process.environ().get(MARK, "/"))
        if not leads and not (place.parent.parent == work and place.parent.name in groups):
            return False
        _log.warning("ending process %d, which an earlier life of this agent left", process.pid)
        if leads:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        return True
    except (psutil.Error, ProcessLookupError, PermissionError):
        return False


def _read(file: Path) -> dict[str, Any]:
    try:
        content = orjson.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigError(f"state_dir: expected a readable {file}, found a fault: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"state_dir: expected an object in {file}, found something else")
    return content
