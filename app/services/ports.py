"""What the use cases need from the outside. Adapters satisfy these by shape; each port has one conformance suite."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

# Values of the object store's port: the adapters below this layer make them.
from app.domain.output import SignedRequest as SignedRequest
from app.domain.output import StoredObject as StoredObject
from app.domain.output import UploadPlan as UploadPlan
from app.domain.pool import Alive as Alive
from app.domain.pool import Gone as Gone
from app.domain.pool import LaunchOrder as LaunchOrder


class Clock(Protocol):
    """The wall clock, for signatures alone: stored times and deadlines are the database's."""

    def __call__(self) -> datetime: ...


Receive = Callable[[bytes | None], None]
"""Called for each message of a channel, in order, in the event loop; must not block. `None`: some may be lost."""


class Subscription(Protocol):
    """A channel that is being listened to."""

    async def close(self) -> None: ...


class Bus(Protocol):
    """Publish and subscribe, lossy on purpose: the table is the truth, the bus is the hint."""

    def publish(self, channel: str, message: bytes) -> None:
        """Put the message on its way: never waits, never raises, drops when the bus is away."""

    async def subscribe(self, channel: str, receive: Receive) -> Subscription:
        """Listen to `channel`; once this returns, what is published is received, or `receive(None)` says it may not be.

        Returns within 0.5 s also when the bus is away; it then listens as soon as the bus is back.
        """


class ObjectStore(Protocol):
    """Objects by key, moved by whoever holds a signed request; the API carries no bytes where the store can sign.

    Every method raises `StorageUnavailable` when the store does not answer within its timeout.
    """

    part_size: int
    """Bytes above which an upload goes in parts of this size."""

    async def plan_upload(
        self,
        key: str,
        *,
        size: int,
        sha256: bytes,
        parts: Sequence[bytes],
        media_type: str,
        expires: timedelta,
        upload_id: str = "",
    ) -> UploadPlan:
        """Signed PUTs of exactly `size` bytes; `sha256` is of the whole, `parts` of each part (empty for a single PUT).

        Every header of a request must be sent. The key is written once: the store refuses a second object under it
        (412), which to a sender that repeats itself says that it is done. `InvalidInput` unless there are as many
        `parts` as the size asks for: none up to `part_size`. With the `upload_id` of an earlier plan the same upload is
        signed again, so that a large file whose links expired goes on with the parts that are missing.
        """

    async def finish_upload(
        self, key: str, *, upload_id: str, size: int, sha256: bytes, parts: Sequence[bytes]
    ) -> StoredObject | None:
        """Close the upload and say what the store holds; None where that is not, or not wholly, what was planned.

        May be repeated: an upload that was closed before is found again. The `sha256` of what came in parts is not
        known to the store: it has verified each part, and compares the composite of them.
        """

    async def abort_upload(self, key: str, *, upload_id: str) -> None:
        """Forget an unfinished upload and its parts; silent where there is none."""

    async def sign_get(
        self, key: str, *, expires: timedelta, filename: str, media_type: str, inline: bool, internal: bool = False
    ) -> str:
        """A URL that downloads one object; `inline` only for media types that cannot run. `internal`: for an agent."""

    async def head(self, key: str) -> StoredObject | None: ...

    async def put(self, key: str, body: bytes, *, media_type: str) -> None:
        """Store a small object made by the server itself; replaces what is there."""

    def open(self, key: str) -> AsyncIterator[bytes]:
        """The object's bytes in chunks; raises `NotFound` where there is none."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; silent where they are not there."""


class SignedFile(Protocol):
    """One object that a signed link opened, with what its link says of it."""

    @property
    def size(self) -> int: ...

    @property
    def media_type(self) -> str: ...

    @property
    def filename(self) -> str: ...

    @property
    def inline(self) -> bool: ...

    @property
    def etag(self) -> str: ...

    def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to before `stop`, in pieces of at most 1 MiB."""


class SignedFiles(Protocol):
    """The side of a store that honours its own signed links, where the API itself carries the bytes (local disk).

    Both methods raise `Forbidden` for a link that was not signed here or is for another method, and `LinkExpired`.
    """

    async def open_signed(self, claims: str, signature: str) -> SignedFile:
        """What the link opens; raises `NotFound` where the object is gone."""

    async def receive_signed(
        self, claims: str, signature: str, *, headers: Mapping[str, str], body: AsyncIterator[bytes]
    ) -> str:
        """Store the body under the link's key and return its ETag, or leave nothing behind.

        `headers` has lower-case names and must be those of the plan. Raises `BadRequest` for another header, size or
        hash, `AlreadyExists` where the key is written, `NotFound` where the upload has ended, `StorageFull`.
        """


class Provisioner(Protocol):
    """Starts and ends agents. Every method may be repeated, by any replica, and finds what it did before.

    Each raises `Unavailable` where what it needs does not answer: nothing is known then, and it is asked again.
    """

    async def start(self, order: LaunchOrder) -> str:
        """Start an agent and return what the provisioner calls it; raises `LaunchRefused` where it never will."""

    async def look(self, launch_id: UUID) -> Alive | Gone:
        """Whether it is there."""

    async def stop(self, launch_id: UUID) -> None:
        """End it and remove all that is left of it, its key above all; silent where there is nothing."""

    def held(self) -> frozenset[UUID]:
        """The launches that end with this process; empty where they live on elsewhere."""

    async def close(self) -> None:
        """End what ends with this process."""


class Quota(Protocol):
    """Counts tries against a limit: a bucket holds `limit` of them and refills evenly over `window`."""

    async def take(self, bucket: str, *, limit: int, window: timedelta) -> float:
        """Count one try: 0 where it is within the limit, else (and not counted) the seconds until one is again."""

    async def give_back(self, bucket: str, *, limit: int, window: timedelta) -> None:
        """Take a try back that turned out to be none."""
