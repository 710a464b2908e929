"""The system user of the embedded servers where we are root, since PostgreSQL refuses to run as root.

Invariant: no permission of a folder that we did not make is ever changed. A server is started inside its own directory
and so needs no right to walk to it; programs that its user cannot reach are copied to where it can.
"""

import hashlib
import logging
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from app.children import User
from app.embedded.errors import StartFailed

log = logging.getLogger(__name__)

NAME = "runyard"
FALLBACK = "nobody"
PROGRAMS = Path("/var/cache/runyard/programs")


def server_user() -> User | None:
    """The user to run embedded servers as; None where we are not root and they run as ourselves.

    Makes the system user `runyard` where it is absent, else takes `nobody`. Raises StartFailed where neither is there.
    """
    if os.getuid() != 0:
        return None
    user = _known(NAME) or _made() or _known(FALLBACK)
    if user is None:
        raise StartFailed(f"embedded servers do not run as root, and there is no system user {NAME!r} or {FALLBACK!r}")
    return user


def _known(name: str) -> User | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    # A user of this name with root's id would defeat the purpose.
    return User(entry.pw_uid, entry.pw_gid) if entry.pw_uid else None


def _made() -> User | None:
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    command += ["--shell", "/usr/sbin/nologin", NAME]
    try:
        subprocess.run(command, check=False, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        log.debug("no useradd here")
    user = _known(NAME)  # whoever made it: two starts at once may both try
    if user is None:
        log.warning("embedded servers run as %s: the system user %s could not be made", FALLBACK, NAME)
    return user


def reachable(path: Path, user: User) -> bool:
    """Whether that user may walk to this path and read it, by the permissions of each folder on the way."""
    return all(_allows(folder, user, 0o1) for folder in path.resolve().parents) and _allows(path, user, 0o4)


def _allows(path: Path, user: User, bit: int) -> bool:
    status = path.stat()
    shift = 6 if status.st_uid == user.uid else 3 if status.st_gid == user.gid else 0
    return bool(status.st_mode >> shift & bit)


def programs(sources: list[Path], root: Path, user: User | None) -> Path:
    """A folder below which `user` finds the sources where they are below `root`; `root` itself where that will do.

    The copy is root's, and made once for a version of the files.
    """
    if user is None or all(reachable(source, user) for source in sources):
        return root
    copy = PROGRAMS / hashlib.sha256(repr([_mark(source) for source in sources]).encode()).hexdigest()[:16]
    if not copy.exists():
        _copy(sources, root, copy)
    return copy


def _mark(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size


def _copy(sources: list[Path], root: Path, to: Path) -> None:
    try:
        for folder in (PROGRAMS.parent, PROGRAMS):
            _make_open(folder)
        draft = Path(tempfile.mkdtemp(dir=PROGRAMS))
        for source in sources:
            target = draft / source.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy2(source, target)
        for path in (draft, *draft.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        _place(draft, to)
    except OSError as error:
        raise StartFailed(
            f"the embedded servers' user may not read {root}, and a copy in {PROGRAMS} cannot be made: {error}"
        ) from error


def _make_open(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return
    folder.chmod(0o755)  # whatever our umask says


def _place(draft: Path, to: Path) -> None:
    try:
        draft.rename(to)
    except OSError:
        if not to.exists():
            raise
        shutil.rmtree(draft)  # another start was quicker
