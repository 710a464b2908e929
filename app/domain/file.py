"""Files that come in: what their bringer says of them beforehand, and what is kept of an upload and of an output.

A claim is checked before any link is signed for it: its name and media type are made harmless, its size is bounded and
its hashes are there, so that the store can refuse every other body.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from app.domain.errors import Fault, InvalidInput
from app.domain.output import check_parts, clean_media_type, clean_name
from app.domain.reader import found

MAX_PICTURE = 256 * 1024
"""Bytes of a preview or a thumbnail."""
MAX_SIDE = 100_000
"""Pixels of an image's width or height, as its bringer tells them."""
MAX_RAW_NAME = 4096
PICTURE_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/avif"})
"""What a preview or a thumbnail may be."""

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class FileRole(StrEnum):
    """What a file is to its task."""

    OUTPUT = "output"
    PREVIEW = "preview"
    THUMBNAIL = "thumbnail"


class Arrival(StrEnum):
    """What the store says of a file that should be there."""

    VERIFIED = "verified"
    MISSING = "missing"
    MISMATCH = "mismatch"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFile:
    """A file as its bringer describes it, unchecked. Hashes are hexadecimal; `parts` are empty for a single request."""

    name: str
    media_type: str
    size: int
    sha256: str
    parts: Sequence[str] = ()
    role: FileRole = FileRole.OUTPUT
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileClaim:
    """A file that may come in: shown name, bare media type, bytes, SHA-256 of the whole and of each part."""

    role: FileRole
    name: str
    media_type: str
    size: int
    sha256: bytes
    parts: tuple[bytes, ...]
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An input file. `completed_at` once its bytes were verified, `used_at` when a submit named it last."""

    id: UUID
    team_id: UUID
    user_id: UUID
    name: str
    media_type: str
    size: int
    sha256: bytes
    parts: tuple[bytes, ...]
    key: str
    upload_id: str
    created_at: datetime
    completed_at: datetime | None
    used_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One file of an attempt, its preview, or the thumbnail of one of its outputs; written under one lease."""

    id: UUID
    team_id: UUID
    task_id: UUID
    attempt: int
    lease_no: int
    role: FileRole
    name: str
    media_type: str
    size: int
    sha256: bytes
    parts: tuple[bytes, ...]
    key: str
    upload_id: str
    width: int | None
    height: int | None
    created_at: datetime
    completed_at: datetime | None


def claim(raw: RawFile, *, largest: int, part_size: int, path: tuple[str, ...] = ()) -> FileClaim:
    """The checked claim of a file of at most `largest` bytes; raises `InvalidInput` with every fault."""
    faults: list[Fault] = []
    media_type = clean_media_type(raw.media_type)
    picture = raw.role is not FileRole.OUTPUT
    most = min(largest, MAX_PICTURE) if picture else largest
    if not 0 <= raw.size <= most:
        faults.append(Fault((*path, "size"), f"expected at most {most} bytes, found {raw.size}"))
    if picture and media_type not in PICTURE_TYPES:
        types = ", ".join(sorted(PICTURE_TYPES))
        faults.append(Fault((*path, "mediaType"), f"expected one of {types}, found {found(raw.media_type)}"))
    for name, side in (("width", raw.width), ("height", raw.height)):
        if side is not None and not 1 <= side <= MAX_SIDE:
            faults.append(Fault((*path, name), f"expected 1 to {MAX_SIDE} pixels, found {side}"))
    sha256 = _sha256(raw.sha256, (*path, "sha256"), faults)
    parts = tuple(_sha256(part, (*path, "parts", str(index)), faults) for index, part in enumerate(raw.parts))
    if not faults:
        _check_parts(raw.size, parts, part_size, path, faults)
    if faults:
        raise InvalidInput(faults)
    return FileClaim(
        role=raw.role,
        name=clean_name(raw.name[:MAX_RAW_NAME]),
        media_type=media_type,
        size=raw.size,
        sha256=sha256,
        parts=parts,
        width=raw.width,
        height=raw.height,
    )


def same_file(kept: Output | Upload, wanted: FileClaim) -> bool:
    """Whether what is kept, or on its way, is the file that is claimed again."""
    return (kept.size, kept.sha256, kept.parts) == (wanted.size, wanted.sha256, wanted.parts)


def _sha256(text: str, path: tuple[str, ...], faults: list[Fault]) -> bytes:
    if not _SHA256.fullmatch(text):
        faults.append(Fault(path, f"expected a SHA-256 of 64 hexadecimal digits, found {found(text)}"))
        return b""
    return bytes.fromhex(text)


def _check_parts(size: int, parts: Sequence[bytes], part_size: int, path: tuple[str, ...], faults: list[Fault]) -> None:
    try:
        check_parts(size, parts, part_size)
    except InvalidInput as invalid:
        faults += [Fault((*path, *fault.path), fault.message) for fault in invalid.faults]
