"""Signed links of the local store: who holds one may make one request until it expires.

    /files/<claims>?signature=<mac>      claims = base64url(JSON of the grant), mac = base64url(HMAC-SHA256)

The claims hold all that the request may do, so a link cannot be turned to another method, key, size or name; without
the signature (in the query, which no log keeps) they open nothing. Several keys are accepted, so that a key can rotate:
the first one signs.
"""

import hmac
import json
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from app.domain.errors import BadRequest, Forbidden, LinkExpired

_PURPOSE = b"runyard file link\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one link allows: `method` on `key` until `expires` (seconds since 1970); a PUT of exactly these bytes."""

    method: str
    key: str
    expires: int
    media_type: str
    filename: str = ""
    inline: bool = False
    size: int = 0
    sha256: str = ""  # hexadecimal
    upload_id: str = ""
    part: int = 0  # counts from 1; 0 where the object comes in one request

    def upload_headers(self) -> dict[str, str]:
        """The headers that a PUT must carry, named as they are sent."""
        headers = {
            "Content-Length": str(self.size),
            "x-amz-checksum-sha256": b64encode(bytes.fromhex(self.sha256)).decode(),
        }
        if self.part:
            return headers
        return headers | {"Content-Type": self.media_type, "If-None-Match": "*"}

    def check_headers(self, headers: Mapping[str, str]) -> None:
        """Raise `BadRequest` for the first header that is not as planned; `headers` has lower-case names."""
        for name, expected in self.upload_headers().items():
            found = headers.get(name.lower())
            if found != expected:
                raise BadRequest(f"expected the header {name}: {expected}, found {found!r:.200}")


def sign(grant: Grant, key: bytes) -> str:
    """The link's path and query: `<claims>?signature=<mac>`."""
    claims = _encode(json.dumps(asdict(grant), ensure_ascii=False, separators=(",", ":")).encode())
    return f"{claims}?signature={_encode(_mac(claims, key))}"


def read(claims: str, signature: str, keys: Sequence[bytes], *, method: str, now: datetime) -> Grant:
    """The grant of a link signed by one of `keys`; raises `Forbidden` where it is not, or `LinkExpired`."""
    if not claims.isascii() or not signature.isascii() or not _is_signed(claims, signature, keys):
        raise Forbidden("this link was not signed by this server, or was changed since")
    grant = Grant(**json.loads(_decode(claims)))
    if grant.method != method:
        raise Forbidden(f"this link allows {grant.method}, the request was {method}")
    if now.timestamp() >= grant.expires:
        raise LinkExpired(f"This link expired at {_moment(grant.expires)}; {_REMEDY[method]} for a fresh one.")
    return grant


_REMEDY = {"GET": "fetch the task again", "PUT": "begin the upload again"}


def _is_signed(claims: str, signature: str, keys: Sequence[bytes]) -> bool:
    return any(hmac.compare_digest(signature, _encode(_mac(claims, key))) for key in keys)


def _mac(claims: str, key: bytes) -> bytes:
    return hmac.digest(key, _PURPOSE + claims.encode(), "sha256")


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _encode(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
