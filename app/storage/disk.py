"""Objects as directories on a local disk; every function blocks and belongs into a thread.

    objects/ab/cdef.../   one object: its chunks `1`, `2`, ... and `meta.json`
    uploads/<upload id>/  an upload in parts, an object in the making: its chunks so far and the plan
    tmp/<random>/         what is being written

1. A path is made of a hash of the key, a random id or a number: no name from outside is ever one.
2. An object appears whole, by renaming its directory, after its bytes reached the disk; the rename refuses to replace,
   so that a key is written once also among several processes. Until then nobody but its sender knows of it.
3. Nothing is read through a symbolic link.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from uuid import uuid4

from app.domain.errors import AlreadyExists, BadRequest, NotFound, StorageFull, StorageUnavailable

META = "meta.json"

RESERVE = 256 * 1024 * 1024
"""Bytes of the disk that files leave free: on the embedded default a database writes beside them."""

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_TAKEN = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What is kept beside an object's chunks. `sha256` (hexadecimal): of the whole, or the composite of `parts` > 1."""

    key: str
    size: int
    media_type: str
    sha256: str
    chunk: int  # bytes of each chunk; the last one may have less
    parts: int = 1

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"' if self.parts == 1 else f'"{self.sha256}-{self.parts}"'


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what the operating system says of the disk into the store's refusals."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise StorageFull("the disk of the file store is full; nothing was kept of this file") from error
        raise StorageUnavailable(f"the file store does not work: {error.strerror or error}") from error


class Disk:
    """The directories of one store. Raises `OSError` for what the disk refuses; see `disk_errors`."""

    def __init__(self, directory: Path) -> None:
        self.root = directory.resolve()
        self._objects, self._uploads, self._tmp = (self.root / name for name in ("objects", "uploads", "tmp"))
        for path in (self._objects, self._uploads, self._tmp):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def check_room(self, size: int) -> None:
        """Raise ENOSPC where `size` bytes and the reserve do not fit, before they travel."""
        if shutil.disk_usage(self.root).free < size + RESERVE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def find(self, key: str) -> Meta | None:
        """What is stored under `key`; None where there is nothing."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return _read_meta(self._path(key))
        self._check_mounted()
        return None

    def read(self, meta: Meta, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on, of one chunk; `offset` being below its size."""
        number, start = divmod(offset, meta.chunk)
        descriptor = _open(self._path(meta.key) / str(number + 1))
        try:
            return os.pread(descriptor, min(length, meta.chunk - start), start)
        finally:
            os.close(descriptor)

    def incoming(self, size: int, sha256: str) -> "Incoming":
        """A new chunk of exactly these bytes, to be opened, written and sealed, and closed in any case."""
        return Incoming(self._tmp / uuid4().hex, size, sha256)

    def publish(self, incoming: "Incoming", meta: Meta, *, replace: bool = False) -> None:
        """Make a whole chunk the object of `meta.key`; raises `AlreadyExists` where one is there and stays."""
        with incoming.lock:
            _write_meta(incoming.directory, meta)
            self._publish(incoming.directory, meta.key, replace=replace)

    def remove(self, key: str) -> None:
        self._discard(self._path(key))

    def begin_upload(self, meta: Meta) -> str:
        """A new upload in parts, by its id."""
        directory = self._new_directory()
        _write_meta(directory, meta)
        os.rename(directory, self._uploads / directory.name)
        return directory.name

    def add_part(self, upload_id: str, number: int, incoming: "Incoming") -> None:
        """Make a whole chunk part `number` of an upload; raises `NotFound` where the upload has ended."""
        with incoming.lock:
            try:
                os.rename(incoming.directory / "1", self._upload(upload_id) / str(number))
            except FileNotFoundError:
                self._check_mounted()
                raise NotFound("this upload has ended: it was completed or aborted") from None

    def finish_upload(self, key: str, upload_id: str, sizes: Sequence[int]) -> None:
        """Make an upload the object of `key` where all its parts are there; silent where it has ended or they are not.

        Raises `AlreadyExists` where the key has been written by another upload.
        """
        directory = self._upload(upload_id)
        try:
            meta = _read_meta(directory)
            found = [os.lstat(directory / str(number)).st_size for number in range(1, len(sizes) + 1)]
            if meta.key == key and found == list(sizes):
                _sync(directory)
                self._publish(directory, key)
        except FileNotFoundError:
            self._check_mounted()

    def abort_upload(self, upload_id: str) -> None:
        self._discard(self._upload(upload_id))

    def sweep(self, older_than: float) -> int:
        """Remove what crashes and lost clients left behind, untouched for `older_than` seconds; returns how many."""
        limit = time.time() - older_than
        stale = [path for parent in (self._uploads, self._tmp) for path in parent.iterdir() if _mtime(path) < limit]
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        return len(stale)

    def _publish(self, directory: Path, key: str, *, replace: bool = False) -> None:
        target = self._path(key)
        if not target.parent.exists():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            _sync(self._objects)
        while not _renamed(directory, target):
            if not replace:
                raise AlreadyExists("this key has been written, and is written once")
            self._discard(target)
        _sync(target.parent)

    def _discard(self, path: Path) -> None:
        """Let a directory vanish at once, then free its space."""
        condemned = self._tmp / uuid4().hex
        try:
            os.rename(path, condemned)
        except FileNotFoundError:
            return self._check_mounted()
        shutil.rmtree(condemned, ignore_errors=True)
        return None

    def _new_directory(self) -> Path:
        directory = self._tmp / uuid4().hex
        directory.mkdir(mode=0o700)
        return directory

    def _check_mounted(self) -> None:
        """An absent object and an absent disk look alike: raise where it is the disk."""
        os.stat(self._objects)

    def _path(self, key: str) -> Path:
        segments = key.split("/")
        if len(key) > 500 or not all(_SEGMENT.fullmatch(segment) for segment in segments):
            raise BadRequest(f"expected a key like teams/<id>/uploads/<id>, found {key[:80]!r}")
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self._objects / digest[:2] / digest[2:]

    def _upload(self, upload_id: str) -> Path:
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise BadRequest(f"expected an upload id of this store, found {upload_id[:80]!r}")
        return self._uploads / upload_id


class Incoming:
    """A chunk on its way in, in a directory of its own.

    A cancelled request closes from another thread while its last step goes on: every step holds the `lock`.
    """

    def __init__(self, directory: Path, size: int, sha256: str) -> None:
        self.directory = directory
        self._size, self._sha256 = size, sha256
        self._hash, self._received = hashlib.sha256(), 0
        self.lock = threading.Lock()
        self._file: FileIO | None = None
        self._closed = False

    def open(self) -> None:
        with self.lock:
            if not self._closed:
                self.directory.mkdir(mode=0o700)
                self._file = FileIO(self.directory / "1", "x")

    def write(self, data: bytes) -> None:
        """Append; raises `BadRequest` at the first byte too many, without writing it."""
        with self.lock:
            self._received += len(data)
            if self._received > self._size:
                raise BadRequest(f"expected {self._size} bytes, found more")
            self._hash.update(data)
            view = memoryview(data)
            while view:
                view = view[self._open_file().write(view) :]

    def seal(self) -> None:
        """Bring the bytes to the disk; raises `BadRequest` where they are not the promised ones."""
        with self.lock:
            if self._received != self._size:
                raise BadRequest(f"expected {self._size} bytes, found {self._received}")
            if self._hash.hexdigest() != self._sha256:
                raise BadRequest(f"expected content with SHA-256 {self._sha256}, found {self._hash.hexdigest()}")
            os.fsync(self._open_file().fileno())

    def close(self) -> None:
        """Close, and remove whatever was not made an object."""
        with self.lock:
            self._closed = True
            if self._file:
                self._file.close()
            shutil.rmtree(self.directory, ignore_errors=True)

    def _open_file(self) -> FileIO:
        if self._file is None or self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._file


def _write_meta(directory: Path, meta: Meta) -> None:
    with open(directory / META, "w", encoding="utf-8") as file:
        json.dump(asdict(meta), file)
        file.flush()
        os.fsync(file.fileno())
    _sync(directory)


def _read_meta(directory: Path) -> Meta:
    with open(_open(directory / META), encoding="utf-8") as file:
        return Meta(**json.load(file))


def _open(path: Path) -> int:
    """Open a file for reading; one behind a symbolic link, its own or of the two directories above, is not there."""
    for parent in list(path.parents)[:2]:
        if parent.is_symlink():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        raise


def _renamed(source: Path, target: Path) -> bool:
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    return True


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mtime(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return time.time()
