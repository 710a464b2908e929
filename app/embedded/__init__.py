"""PostgreSQL and Valkey from their packages, as child processes of this one that always end with it."""

from app.embedded.errors import DirectoryInUse, DiskFull, EmbeddedError, PackageMissing, StartFailed
from app.embedded.postgres import embedded_postgres
from app.embedded.valkey import embedded_valkey

__all__ = [
    "DirectoryInUse",
    "DiskFull",
    "EmbeddedError",
    "PackageMissing",
    "StartFailed",
    "embedded_postgres",
    "embedded_valkey",
]
