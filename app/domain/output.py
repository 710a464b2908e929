"""Files as the product knows them: the keys they are stored under, the names and types shown for them.

Keys are made of ids that the server chose; what an agent or a browser says of a file (name, media type) is shown or
sent as a header after it was cleaned here, and never becomes a path.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote
from uuid import UUID

from app.domain.errors import Fault, InvalidInput

NAME_BYTES = 255
UNNAMED = "file"
OCTETS = "application/octet-stream"

INLINE_TYPES = frozenset(
    {
        "image/png",
        "image/jpeg",
        "image/gif",
        "image/webp",
        "image/avif",
        "image/bmp",
        "video/mp4",
        "video/webm",
        "video/ogg",
        "audio/mpeg",
        "audio/mp4",
        "audio/aac",
        "audio/ogg",
        "audio/wav",
        "audio/webm",
        "audio/flac",
        "text/plain",
    }
)
"""What a browser may show in place: nothing that can carry a script (so no HTML, SVG, XML, PDF)."""

PASSIVE_TYPES = INLINE_TYPES | {
    "image/tiff",
    "image/x-exr",
    "text/csv",
    "application/json",
    "application/zip",
    "application/gzip",
    "model/gltf-binary",
}
"""What may be sent under its own type as an attachment; everything else goes as octets."""

_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
# Marks that reorder or hide text: bidirectional controls, zero-width space, word joiners, the byte order mark.
_DECEIVING = frozenset("\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff")
_UNSHOWN = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
_LONGEST_SUFFIX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """A request that its holder may make without further identity, until it expires."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPlan:
    """How to bring one object in: one request, or one for each part. `part_size` in bytes is 0 for a single request."""

    requests: tuple[SignedRequest, ...]
    part_size: int = 0
    upload_id: str = ""  # the store's own name of a multipart upload


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """What the store says of an object; `sha256` (32 bytes) where the store verified it itself."""

    size: int
    media_type: str
    sha256: bytes | None = None


def lease_prefix(team_id: UUID, task_id: UUID, lease_no: int) -> str:
    """Under which everything lies that one lease of a task stores; a later lease cannot write here."""
    return f"teams/{team_id}/tasks/{task_id}/{lease_no}/"


def output_key(team_id: UUID, task_id: UUID, lease_no: int, output_id: UUID) -> str:
    return f"{lease_prefix(team_id, task_id, lease_no)}{output_id}"


def thumbnail_key(team_id: UUID, task_id: UUID, lease_no: int, output_id: UUID) -> str:
    return f"{lease_prefix(team_id, task_id, lease_no)}thumbnails/{output_id}"


def preview_key(team_id: UUID, task_id: UUID, lease_no: int, preview_id: UUID) -> str:
    return f"{lease_prefix(team_id, task_id, lease_no)}previews/{preview_id}"


def upload_key(team_id: UUID, upload_id: UUID) -> str:
    return f"teams/{team_id}/uploads/{upload_id}"


def clean_name(name: str) -> str:
    """`name` fit to be shown: clean segments joined by `/`, at most 255 bytes of UTF-8, never empty.

    Drops control, bidirectional and invisible characters; `\\` counts as `/`; empty, `.` and `..` segments go.
    The extension survives the cut of a long name.
    """
    shown = "".join(c for c in unicodedata.normalize("NFC", name) if _is_shown(c))
    segments = (segment.strip().rstrip(". ") for segment in shown.replace("\\", "/").split("/"))
    return _cut("/".join(segment for segment in segments if segment)) or UNNAMED


def clean_media_type(media_type: str) -> str:
    """The bare lower-case `type/subtype` of what was declared, without parameters; octets where it is not one."""
    bare = media_type.partition(";")[0].strip().lower()
    return bare if _MEDIA_TYPE.fullmatch(bare) else OCTETS


def safe_inline(media_type: str) -> bool:
    """Whether a browser may show this type in place, because nothing in it can run."""
    return clean_media_type(media_type) in INLINE_TYPES


def served_type(media_type: str) -> str:
    """The `Content-Type` to send a file with: its own where a browser does nothing with it, octets otherwise."""
    bare = clean_media_type(media_type)
    if bare not in PASSIVE_TYPES:
        return OCTETS
    return f"{bare}; charset=utf-8" if bare.startswith("text/") else bare


def content_disposition(name: str, *, media_type: str, inline: bool) -> str:
    """The header that names a download (RFC 6266): `inline` only where it was asked for and the type is safe."""
    base = clean_name(name).rpartition("/")[2]
    plain = "".join(c if c.isascii() and c not in '"\\%;' else "_" for c in base)
    kind = "inline" if inline and safe_inline(media_type) else "attachment"
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(base, safe='')}"


def part_sizes(size: int, part_size: int) -> tuple[int, ...]:
    """The bytes of each request that brings in `size` bytes: one of them, or full parts and the rest."""
    if size <= part_size:
        return (size,)
    full, rest = divmod(size, part_size)
    return (part_size,) * full + ((rest,) if rest else ())


def check_parts(size: int, parts: Sequence[bytes], part_size: int) -> None:
    """Raise `InvalidInput` unless there is a hash for each part of an upload that is above one part, and else none."""
    expected = len(part_sizes(size, part_size)) if size > part_size else 0
    if len(parts) != expected:
        raise InvalidInput(
            [Fault(("parts",), f"expected {expected} hashes, of parts of {part_size} bytes, found {len(parts)}")]
        )


def composite(parts: Sequence[bytes]) -> bytes:
    """SHA-256 over the SHA-256 of each part: what S3 keeps of an object that came in parts."""
    return hashlib.sha256(b"".join(parts)).digest()


def _is_shown(character: str) -> bool:
    return character not in _DECEIVING and unicodedata.category(character) not in _UNSHOWN


def _cut(name: str) -> str:
    encoded = name.encode()
    if len(encoded) <= NAME_BYTES:
        return name
    stem, dot, suffix = name.rpartition(".")
    tail = f"{dot}{suffix}" if dot and "/" not in suffix and len(suffix.encode()) <= _LONGEST_SUFFIX else ""
    kept = (stem if tail else name).encode()[: NAME_BYTES - len(tail.encode())].decode(errors="ignore")
    return kept.rstrip("/. ") + tail
