"""The object store behind S3: every request is signed here and sent by whoever holds it; bytes never pass through us.

1. What must be so is signed into the request and verified by the store: length, type, SHA-256, and that the key is new.
2. An upload counts once the store itself has said size and checksum of the object, not when its sender says it is done.
3. Every call ends within its deadline, in an answer or in `StorageUnavailable`.
"""

import asyncio
import hashlib
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import aioboto3
from aiobotocore.config import AioConfig
from aiohttp import ClientError as TransportError
from botocore.exceptions import BotoCoreError, ClientError

from app.domain.errors import NotFound, StorageUnavailable
from app.domain.output import (
    SignedRequest,
    StoredObject,
    UploadPlan,
    check_parts,
    clean_media_type,
    composite,
    content_disposition,
    part_sizes,
    served_type,
)
from app.storage.bounds import check_bounds

PIECE = 512 * 1024
"""Bytes of one read."""

DELETED_AT_ONCE = 1_000
"""Keys in one request, S3's limit."""

COMPLETION = 60.0
"""Seconds that a store may take to put the parts of a large object together."""

_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
_ENDED = frozenset({"NoSuchUpload"})
_UNFIT = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "InvalidPart", "InvalidPartOrder", "BadDigest"})
_OURS_ALREADY = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Options:
    """Where the bucket is and how to reach it. Empty endpoint: AWS; empty keys: the environment's own credentials.

    `public_endpoint` and `agent_endpoint` are the addresses that clients and agents know, where they differ.
    Times are in seconds; `part_size` in bytes, at least 5 MiB.
    """

    bucket: str
    region: str = "us-east-1"
    endpoint: str = ""
    public_endpoint: str = ""
    agent_endpoint: str = ""
    access_key: str = ""
    secret_key: str = ""
    path_style: bool = True
    part_size: int = 64 * 1024 * 1024
    connect_timeout: float = 3.0
    read_timeout: float = 10.0
    deadline: float = 10.0
    attempts: int = 2


@asynccontextmanager
async def open_s3(options: S3Options, *, create: bool = False) -> "AsyncIterator[S3Store]":
    """An open store, with one client for each address; `create` makes the bucket where there is none.

    Raises `StorageUnavailable` that says what is wrong: no answer, no such bucket, or keys that do not open it; and
    `WrongStore` for clients that would wait without a limit.
    """
    async with AsyncExitStack() as stack:
        clients: dict[str, Any] = {}
        for endpoint in (options.endpoint, options.public_endpoint, options.agent_endpoint):
            if endpoint not in clients and (endpoint or not clients):
                clients[endpoint] = await stack.enter_async_context(_client(replace(options, endpoint=endpoint)))
                check_bounds(clients[endpoint])
        own = clients[options.endpoint]
        public = clients[options.public_endpoint or options.endpoint]
        agent = clients[options.agent_endpoint or options.public_endpoint or options.endpoint]
        store = S3Store(options, client=own, public=public, agent=agent)
        await store.check_bucket(create=create)
        yield store


class S3Store:
    """An `ObjectStore` in one bucket; made by `open_s3`."""

    def __init__(self, options: S3Options, *, client: Any, public: Any, agent: Any) -> None:
        self.part_size = options.part_size
        self._options, self._bucket = options, options.bucket
        self._client, self._public, self._agent = client, public, agent

    async def check_bucket(self, *, create: bool = False) -> None:
        """Raise `StorageUnavailable` unless the bucket is there and our keys open it; `create` makes a missing one."""
        where = f"the bucket {self._bucket!r} at {self._client.meta.endpoint_url}"
        try:
            await self._call("head_bucket")
        except _Refused as refusal:
            if refusal.reason in ("404", "NoSuchBucket"):
                if create:
                    return await self._create_bucket()
                raise StorageUnavailable(f"{where} does not exist: create it first") from refusal
            if refusal.reason in ("403", "AccessDenied"):
                raise StorageUnavailable(f"{where} does not open to these keys") from refusal
            raise
        return None

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
        check_parts(size, parts, self.part_size)
        media_type = clean_media_type(media_type)
        if parts:
            upload_id = upload_id or await self._begin(key, media_type)
            return await self._plan_parts(key, size, parts, upload_id, expires)
        parameters = {"ContentType": media_type, "IfNoneMatch": "*"}
        headers = {"Content-Type": media_type, "If-None-Match": "*"}
        request = await self._sign_put("put_object", key, size, sha256, expires, parameters)
        return UploadPlan(requests=(replace(request, headers={**request.headers, **headers}),))

    async def finish_upload(
        self, key: str, *, upload_id: str, size: int, sha256: bytes, parts: Sequence[bytes]
    ) -> StoredObject | None:
        if upload_id:
            await self._complete(key, upload_id, size, parts)
        answer = await self._head(key)
        if answer is None or answer["ContentLength"] != size:
            return None
        expected = f"{_base64(composite(parts))}-{len(parts)}" if parts else _base64(sha256)
        if answer.get("ChecksumSHA256", expected) != expected:
            return None
        return _stored(answer)

    async def abort_upload(self, key: str, *, upload_id: str) -> None:
        if not upload_id:
            return
        try:
            await self._call("abort_multipart_upload", Key=key, UploadId=upload_id)
        except _Refused as refusal:
            if refusal.reason not in _ENDED:
                raise

    async def sign_get(
        self, key: str, *, expires: timedelta, filename: str, media_type: str, inline: bool, internal: bool = False
    ) -> str:
        disposition = content_disposition(filename, media_type=media_type, inline=inline)
        parameters = {"ResponseContentDisposition": disposition, "ResponseContentType": served_type(media_type)}
        return await self._sign(self._agent if internal else self._public, "get_object", key, expires, parameters)

    async def head(self, key: str) -> StoredObject | None:
        answer = await self._head(key)
        return None if answer is None else _stored(answer)

    async def put(self, key: str, body: bytes, *, media_type: str) -> None:
        checksum = _base64(hashlib.sha256(body).digest())
        await self._call(
            "put_object", Key=key, Body=body, ContentType=clean_media_type(media_type), ChecksumSHA256=checksum
        )

    async def open(self, key: str) -> AsyncIterator[bytes]:
        try:
            answer = await self._call("get_object", Key=key)
        except _Refused as refusal:
            if refusal.reason in _ABSENT:
                raise NotFound("there is no such file: it was deleted, or never completed") from refusal
            raise
        with _store_errors():
            async with answer["Body"] as body:
                async for piece in body.content.iter_chunked(PIECE):
                    yield piece

    async def delete(self, keys: Sequence[str]) -> None:
        for batch in _batches(keys, DELETED_AT_ONCE):
            doomed = {"Objects": [{"Key": key} for key in batch], "Quiet": True}
            answer = await self._call("delete_objects", Delete=doomed)
            if failed := answer.get("Errors"):
                raise StorageUnavailable(f"{len(failed)} of {len(batch)} objects were not deleted: {failed[0]['Code']}")

    async def _begin(self, key: str, media_type: str) -> str:
        upload = await self._call(
            "create_multipart_upload", Key=key, ContentType=media_type, ChecksumAlgorithm="SHA256"
        )
        upload_id: str = upload["UploadId"]
        return upload_id

    async def _plan_parts(
        self, key: str, size: int, parts: Sequence[bytes], upload_id: str, expires: timedelta
    ) -> UploadPlan:
        requests = []
        pieces = zip(part_sizes(size, self.part_size), parts, strict=True)
        for number, (length, digest) in enumerate(pieces, start=1):
            parameters = {"UploadId": upload_id, "PartNumber": number}
            requests.append(await self._sign_put("upload_part", key, length, digest, expires, parameters))
            # Signing is all computing, a third of a millisecond for each of up to thousands of parts.
            await asyncio.sleep(0)
        return UploadPlan(requests=tuple(requests), part_size=self.part_size, upload_id=upload_id)

    async def _complete(self, key: str, upload_id: str, size: int, parts: Sequence[bytes]) -> None:
        """Put the parts together where they are all there; what then stands under the key is for `_head` to say."""
        try:
            tags = await self._part_tags(key, upload_id, part_sizes(size, self.part_size))
            if tags is None:
                return
            await self._call(
                "complete_multipart_upload",
                deadline=COMPLETION,
                Key=key,
                UploadId=upload_id,
                IfNoneMatch="*",
                ChecksumSHA256=f"{_base64(composite(parts))}-{len(parts)}",
                MultipartUpload={
                    "Parts": [
                        {"PartNumber": number, "ETag": tag, "ChecksumSHA256": _base64(digest)}
                        for number, (tag, digest) in enumerate(zip(tags, parts, strict=True), start=1)
                    ]
                },
            )
        except _Refused as refusal:
            if refusal.reason in _UNFIT:
                await self.abort_upload(key, upload_id=upload_id)
            elif refusal.reason not in _ENDED:
                raise

    async def _part_tags(self, key: str, upload_id: str, sizes: Sequence[int]) -> list[str] | None:
        """The store's tag of each part in order; None where one is missing or of another size."""
        # By number: some stores list a part twice that was sent twice; its content is the same, its hash being signed.
        found: dict[int, tuple[int, str]] = {}
        marker = 0
        while True:
            page = await self._call("list_parts", Key=key, UploadId=upload_id, PartNumberMarker=marker)
            found |= {part["PartNumber"]: (part["Size"], part["ETag"]) for part in page.get("Parts", ())}
            if not page.get("IsTruncated"):
                break
            marker = page["NextPartNumberMarker"]
        in_order = [found[number] for number in sorted(found)]
        return [tag for _, tag in in_order] if [size for size, _ in in_order] == list(sizes) else None

    async def _head(self, key: str) -> Any | None:
        try:
            return await self._call("head_object", Key=key, ChecksumMode="ENABLED")
        except _Refused as refusal:
            if refusal.reason in _ABSENT:
                return None
            raise

    async def _sign_put(
        self, operation: str, key: str, size: int, sha256: bytes, expires: timedelta, parameters: Mapping[str, object]
    ) -> SignedRequest:
        checksum = _base64(sha256)
        signed = {"ContentLength": size, "ChecksumSHA256": checksum, **parameters}
        url = await self._sign(self._public, operation, key, expires, signed)
        headers = {"Content-Length": str(size), "x-amz-checksum-sha256": checksum}
        return SignedRequest(method="PUT", url=url, headers=headers)

    async def _sign(
        self, client: Any, operation: str, key: str, expires: timedelta, parameters: Mapping[str, object]
    ) -> str:
        with _store_errors():
            url: str = await client.generate_presigned_url(
                operation,
                Params={"Bucket": self._bucket, "Key": key, **parameters},
                ExpiresIn=max(1, round(expires.total_seconds())),
            )
        return url

    async def _create_bucket(self) -> None:
        # us-east-1 is the one region that S3 does not want to be named.
        region = self._options.region
        place: dict[str, Any] = (
            {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        )
        try:
            await self._call("create_bucket", **place)
        except _Refused as refusal:
            if refusal.reason not in _OURS_ALREADY:
                raise

    async def _call(self, operation: str, *, deadline: float | None = None, **parameters: object) -> Any:
        """One request of our own; raises `_Refused` for an answer that says no, else `StorageUnavailable`."""
        with _store_errors():
            async with asyncio.timeout(deadline or self._options.deadline):
                return await getattr(self._client, operation)(Bucket=self._bucket, **parameters)


class _Refused(StorageUnavailable):
    """The store answered no; unless somebody knows better, that is unavailability too."""

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(f"the object store refused {operation}: {reason}")
        self.reason = reason


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise _Refused(error.operation_name, str(error.response.get("Error", {}).get("Code", "unknown"))) from error
    except (BotoCoreError, TransportError, TimeoutError, OSError) as error:
        raise StorageUnavailable(f"the object store does not answer: {type(error).__name__}") from error


def _client(options: S3Options) -> Any:
    session = aioboto3.Session(
        aws_access_key_id=options.access_key or None,
        aws_secret_access_key=options.secret_key or None,
        region_name=options.region,
    )
    config = AioConfig(
        signature_version="s3v4",
        s3={"addressing_style": "path" if options.path_style else "virtual"},
        connect_timeout=options.connect_timeout,
        read_timeout=options.read_timeout,
        retries={"total_max_attempts": options.attempts, "mode": "standard"},
        max_pool_connections=50,
        # Checksums are ours, of SHA-256; other stores do not know the client's own.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session.client("s3", endpoint_url=options.endpoint or None, config=config)


def _stored(answer: Any) -> StoredObject:
    """What a HEAD says; a checksum with a dash is a composite, not the hash of the whole."""
    checksum = answer.get("ChecksumSHA256", "")
    whole = b64decode(checksum) if checksum and "-" not in checksum else None
    return StoredObject(size=answer["ContentLength"], media_type=answer.get("ContentType", ""), sha256=whole)


def _batches(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def _base64(digest: bytes) -> str:
    return b64encode(digest).decode()
