"""Whether a file that was announced has arrived as announced: the store is asked, never its bringer."""

import logging
from collections.abc import Iterable
from datetime import timedelta

from app.domain.errors import StorageUnavailable
from app.domain.file import Arrival, Output, Upload
from app.services.ports import ObjectStore, UploadPlan

log = logging.getLogger(__name__)


async def plan(store: ObjectStore, file: Upload | Output, *, expires: timedelta) -> UploadPlan:
    """Signed requests that bring exactly this file in.

    An upload in parts that was begun before goes on; one that was closed by a call whose answer was lost needs none.
    """
    if file.upload_id and await store.head(file.key) is not None:
        return UploadPlan(requests=(), upload_id=file.upload_id)
    return await store.plan_upload(
        file.key,
        size=file.size,
        sha256=file.sha256,
        parts=file.parts,
        media_type=file.media_type,
        expires=expires,
        upload_id=file.upload_id,
    )


async def arrival(store: ObjectStore, file: Upload | Output) -> Arrival:
    """Close the upload and compare what the store holds with what was announced. May be repeated."""
    stored = await store.finish_upload(
        file.key, upload_id=file.upload_id, size=file.size, sha256=file.sha256, parts=file.parts
    )
    if stored is None:
        return Arrival.MISMATCH if await store.head(file.key) is not None else Arrival.MISSING
    fits = stored.size == file.size and (bool(file.parts) or stored.sha256 in (None, file.sha256))
    return Arrival.VERIFIED if fits else Arrival.MISMATCH


async def abandon(store: ObjectStore, files: Iterable[Upload | Output]) -> None:
    """Forget unfinished uploads; what fails is swept by the store itself, so it stops nobody."""
    for file in files:
        try:
            await store.abort_upload(file.key, upload_id=file.upload_id)
        except StorageUnavailable as error:
            log.info("an unfinished upload stays until the store sweeps it: %s", error)
