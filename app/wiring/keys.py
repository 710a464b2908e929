"""Secrets and the keys that are made of them.

A data directory keeps the secrets that no setting gives, in files that its owner alone can read.
"""

import os
import secrets
from hmac import digest
from pathlib import Path

from app.settings import Settings


def keys(settings: Settings, purpose: str, *, secret: str = "secret_key") -> tuple[bytes, ...]:
    """Keys for one purpose, newest first: what was signed for one purpose is nothing for another."""
    return tuple(digest(each.encode(), purpose.encode(), "sha256") for each in secrets_of(settings, secret))


def secrets_of(settings: Settings, name: str) -> tuple[str, ...]:
    """The secrets of the setting, newest first, or the one that this data directory keeps."""
    given = tuple(part.strip() for part in getattr(settings, name).get_secret_value().split(",") if part.strip())
    return given or (_kept_secret(settings.data_dir / name),)


def _kept_secret(file: Path) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_text()
    with os.fdopen(descriptor, "w") as new:
        new.write(secret := secrets.token_urlsafe(32))
        new.flush()
        os.fsync(descriptor)
    return secret
