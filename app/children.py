"""Child processes that always end with us.

Invariants:
1. Every child leads a session and process group of its own: a signal of the terminal reaches it only through us.
2. On Linux the kernel itself sends the child its death signal when we die, by SIGKILL too. It is asked for after the
   change of user, since a change of credentials clears it, and it follows the thread that forked: children start from
   the main thread.
3. What a child started goes with it: its group is killed when the child ends by itself, and after the grace of `stop`.
   With `guarded=True`, and always where the kernel has no death signal, a keeper (a shell that reads a pipe of ours)
   kills the group when that pipe closes.

Only the standard library: the agent imports this file.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL = 0.02  # seconds between two looks at a group that is ending
READ_LIMIT = 256 * 1024  # bytes that a reader buffers before the child has to wait

# The pipe holds no data: its end of file says that we are gone.
_KEEPER = "trap '' HUP INT TERM; while read -r _; do :; done; kill -s KILL -- \"-$1\""

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STDOUT = subprocess.STDOUT


@dataclass(frozen=True)
class User:
    """A system user to run a child as; changing to it needs root."""

    uid: int
    gid: int


class Child:
    """A running child process; `start` makes it."""

    def __init__(self, process: subprocess.Popen[bytes], keeper: subprocess.Popen[bytes] | None) -> None:
        self._process = process
        self._keeper = keeper
        self._stopping = False
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        # Not a callback of the loop: a signal handler for children would be fought over with the loop's own.
        threading.Thread(target=self._reap, args=(self._ended.get_loop(),), daemon=True).start()

    @property
    def pid(self) -> int:
        """The process id, which is the id of its group and session too."""
        return self._process.pid

    @property
    def keeper_pid(self) -> int | None:
        """The process id of the shell that guards the group; None where there is none."""
        return self._keeper.pid if self._keeper else None

    @property
    def returncode(self) -> int | None:
        """The exit code once it has ended, negative for a signal; None before."""
        return self._ended.result() if self._ended.done() and not self._ended.cancelled() else None

    async def wait(self) -> int:
        """Wait for the child's own end and return its exit code, negative for a signal."""
        return await asyncio.shield(self._ended)

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to the whole group; false where nothing of it is left."""
        return not self._ended.done() and _signal_group(self.pid, number)

    async def stop(self, grace: float, *, ask: signal.Signals = signal.SIGTERM) -> int:
        """Ask the whole group to end, kill what is left of it after `grace` seconds, and return the child's exit code.

        Returns only when the group is gone. Safe to call again and after the end; a cancelled call kills at once.
        """
        if self._ended.done():
            return self._ended.result()
        self._stopping = True
        try:
            if self.send(ask):
                await self._group_ends(grace)
        finally:
            # By the group's id, which stays taken while a member lives, even where the leader has been reaped.
            _signal_group(self.pid, signal.SIGKILL)
            _dismiss(self._keeper)
        return await self.wait()

    async def _group_ends(self, grace: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self.wait()
                # Members that outlive their leader have the rest of the grace; nobody tells us of their end.
                while _group_lives(self.pid):
                    await asyncio.sleep(POLL)

    def _reap(self, loop: asyncio.AbstractEventLoop) -> None:
        if hasattr(os, "waitid"):
            # While the zombie is not reaped its id cannot be given away, so the group's signal hits no stranger.
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        if not self._stopping:
            _signal_group(self.pid, signal.SIGKILL)
            _dismiss(self._keeper)
        code = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(self._settle, code)

    def _settle(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)


async def start(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] = DEVNULL,
    stderr: int | IO[bytes] = DEVNULL,
    pass_fds: Sequence[int] = (),
    user: User | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
    guarded: bool = False,
) -> Child:
    """Start `argv` (never through a shell) as the leader of its own group, with no standard input.

    `env` replaces the whole environment. `PIPE` for an output gives a StreamReader at the child. `user` needs root.
    `death_signal` is what the kernel sends the child when we die. `guarded` is for a child that may start others: its
    whole group then ends with us. Raises FileNotFoundError or PermissionError where the program cannot be run, and
    RuntimeError off the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children start from the main thread: their death signal follows the thread that forked")
    process = _fork(argv, cwd, env, stdout, stderr, pass_fds, user, death_signal)
    keeper = _keep(process.pid) if guarded or not sys.platform.startswith("linux") else None
    child = Child(process, keeper)
    if process.stdout:
        child.stdout = await reader(process.stdout)
    if process.stderr:
        child.stderr = await reader(process.stderr)
    return child


async def reader(pipe: IO[bytes]) -> asyncio.StreamReader:
    """Read the given end of a pipe through the running loop; it is closed at its end of file."""
    loop = asyncio.get_running_loop()
    stream = asyncio.StreamReader(limit=READ_LIMIT, loop=loop)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream, loop=loop), pipe)
    return stream


def exists(pid: int) -> bool:
    """Whether a process with this id is there and is not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):  # no /proc on this system
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    return True


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to send this process a signal when its parent ends, by SIGKILL too; does nothing off Linux."""
    if pact := _death_pact(number, parent=os.getppid()):
        pact()


def _fork(
    argv: Sequence[str | Path],
    cwd: Path | None,
    env: Mapping[str, str] | None,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    pass_fds: Sequence[int],
    user: User | None,
    death_signal: signal.Signals,
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [os.fspath(part) for part in argv],
        cwd=cwd,
        env=env,
        stdin=DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
        preexec_fn=_death_pact(death_signal, parent=os.getpid()),
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=[] if user else None,
    )


def _death_pact(number: signal.Signals, parent: int) -> Callable[[], None] | None:
    """What runs between fork and exec. Everything is made ready here: the child must neither import nor take a lock."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
    value = int(number)
    getppid, leave = os.getppid, os._exit

    def pact() -> None:
        prctl(PR_SET_PDEATHSIG, value, 0, 0, 0)
        if getppid() != parent:  # it died before it could be watched
            leave(1)

    return pact


def _keep(group: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _KEEPER, "keeper", str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _dismiss(keeper: subprocess.Popen[bytes] | None) -> None:
    if keeper is None:
        return
    keeper.kill()  # before its pipe closes, which would make it act
    keeper.wait()
    if keeper.stdin:
        keeper.stdin.close()


def _group_lives(group: int) -> bool:
    """Whether a member is left that is no zombie: an orphan's zombie stays until init reaps it, which may take long."""
    if not _signal_group(group, 0):
        return False
    stats = list(Path("/proc").glob("[0-9]*/stat"))
    for stat in stats:
        with contextlib.suppress(OSError):  # it has just ended
            state, _, its_group, *_ = stat.read_bytes().rpartition(b") ")[2].split()
            if int(its_group) == group and state not in (b"Z", b"X"):
                return True
    return not stats  # without /proc the signal's word counts


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        # A member that has changed its user is there all the same; macOS says this of a group of zombies.
        return sys.platform != "darwin"
    return True


if __name__ == "__main__":  # python -m app.children PROGRAM ARGUMENT...: run it so that it ends with whoever started it
    end_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])
