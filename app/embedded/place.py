"""The directory of one embedded server: its lock, its folders, and the short folder of its socket.

Invariants:
1. Whoever holds the lock is alone in the directory. The kernel frees it with its holder, however that ends.
2. Sockets lie in a 0700 folder with a short path, since the system allows a socket about 100 bytes of path. The
   folder's name is written down, so that the next start removes what a crash has left.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from app.children import User
from app.embedded.errors import DirectoryInUse

SOCKET_PATH = 100  # bytes; macOS allows 103, Linux 107
LONGEST_NAME = len("/.s.PGSQL.5432")
PREFIX = "runyard-"


@contextlib.contextmanager
def claimed(directory: Path, what: str) -> Iterator[None]:
    """Make the directory, for our eyes only, and hold it; DirectoryInUse where another process does."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise DirectoryInUse(
            f"{what} already runs on {directory} for another process; stop that one or choose another data directory"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def socket_folder(directory: Path, user: User | None) -> Iterator[Path]:
    """A new folder for sockets that only `user` and root can enter; gone with the context."""
    note = directory / "socket"
    _sweep(note)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_short_place()))
    note.write_text(f"{folder}\n")
    own(folder, user)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        note.unlink(missing_ok=True)


def own_folder(folder: Path, user: User | None) -> None:
    """Make a folder that is the user's alone."""
    folder.mkdir(mode=0o700)
    own(folder, user)


def own(path: Path, user: User | None) -> None:
    """Give one path to the user."""
    if user:
        os.chown(path, user.uid, user.gid)


def _short_place() -> str:
    place = tempfile.gettempdir()
    longest = len(os.fsencode(place)) + len(f"/{PREFIX}12345678") + LONGEST_NAME
    return place if longest <= SOCKET_PATH else "/tmp"


def _sweep(note: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        left = Path(note.read_text().strip())
        if left.name.startswith(PREFIX) and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
