"""Input uploads, from the claim to the task that uses them, on both stores."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.errors import Forbidden, IdempotencyConflict, InvalidInput, InvalidParameters, NotFound, WrongState
from app.domain.file import RawFile, Upload
from app.domain.parameters import read_definitions, validate
from app.persistence import database
from app.persistence.database import Database
from app.services.access import Role, Viewer
from app.services.ports import ObjectStore, UploadPlan
from app.services.uploads import UploadService
from tests.stores import MIB, PART, Sender, hashes, sha256, split
from tests.viewers import in_role, make_owner, team_of

BODY = b"an input file"
LARGEST = 20 * MIB
FILE = read_definitions([{"key": "start", "type": "file", "accept": ["image/*"]}])


@pytest.fixture
def service(store: ObjectStore) -> UploadService:
    return UploadService(store, largest=LARGEST, link_life=timedelta(minutes=5))


def raw(body: bytes = BODY, **other: Any) -> RawFile:
    parts = [part.hex() for part in hashes(body)]
    file = RawFile(name="a.png", media_type="image/png", size=len(body), sha256=sha256(body).hex(), parts=parts)
    return replace(file, **other)


async def send(sender: Sender, plan: UploadPlan, body: bytes) -> None:
    pieces = split(body, plan.part_size) if plan.part_size else [body]
    for request, piece in zip(plan.requests, pieces, strict=True):
        answer = await sender.send(request, piece)
        assert answer.is_success, answer.text


async def bring(service: UploadService, sender: Sender, viewer: Viewer, body: bytes = BODY, **other: Any) -> Upload:
    """An upload that is complete."""
    begun = await service.begin(viewer, team_of(viewer), raw(body, **other))
    await send(sender, begun.plan, body)
    return await service.complete(viewer, begun.upload.id)


def values(upload: Upload | UUID) -> dict[str, Any]:
    return validate(FILE, {"start": str(upload if isinstance(upload, UUID) else upload.id)})


async def age(upload: Upload, column: str, hours: int) -> None:
    await database.rows(
        f"UPDATE upload SET {column} = app_now() - make_interval(hours => $2) WHERE id = $1 RETURNING id",
        upload.id,
        hours,
    )


async def make_task(team: UUID, *, hours_ago: int = 0) -> UUID:
    rows = await database.rows(
        "INSERT INTO task (id, team_id, workflow_id, version, submitter_id, lane_id, priority, tags, params, timeout, "
        "retry_max, retry_on, created_at) VALUES (uuid_floor(app_now() - make_interval(hours => $2)), "
        "$1, $1, 1, $1, 1, 0, '{}', '{}', 0, 0, '{}', app_now()) RETURNING id",
        team,
        hours_ago,
    )
    id: UUID = rows[0]["id"]
    return id


async def refusal_of(call: Callable[[], Any]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as refusal:
        await call()
    return [(".".join(fault.path), fault.message) for fault in refusal.value.faults]


@pytest.mark.parametrize("body", [BODY, b"", b"\1" * (PART + 1)], ids=["small", "empty", "in parts"])
async def test_upload_is_brought_in_and_used(
    service: UploadService, sender: Sender, owner: Viewer, team: UUID, body: bytes
) -> None:
    begun = await service.begin(owner, team, raw(body, name="../x/ a.png", media_type="Image/PNG; q=1"))

    await send(sender, begun.plan, body)
    upload = await service.complete(owner, begun.upload.id)

    assert (upload.name, upload.media_type, upload.size, upload.sha256) == (
        "x/a.png",
        "image/png",
        len(body),
        sha256(body),
    )
    assert upload.completed_at is not None
    assert await service.complete(owner, upload.id) == upload
    assert (await service.use(owner, team, FILE, values(upload)))["start"].id == upload.id
    (given,) = await service.inputs(team, FILE, values(upload))
    assert (given.parameter, given.name, given.size, given.sha256) == ("start", "x/a.png", len(body), sha256(body))
    assert (await sender.get(given.url)).content == body


async def test_every_fault_of_a_claim_is_told_at_once(service: UploadService, owner: Viewer, team: UUID) -> None:
    wrong = RawFile(name="a", media_type="x", size=-1, sha256="ab", parts=["xyz"])

    assert [path for path, _ in await refusal_of(lambda: service.begin(owner, team, wrong))] == [
        "size",
        "sha256",
        "parts.0",
    ]
    too_large = raw(size=LARGEST + 1)
    assert await refusal_of(lambda: service.begin(owner, team, too_large)) == [
        ("size", f"expected at most {LARGEST} bytes, found {LARGEST + 1}")
    ]
    assert [path for path, _ in await refusal_of(lambda: service.begin(owner, team, raw(size=PART + 1)))] == ["parts"]


async def test_upload_without_its_bytes_is_neither_complete_nor_used(
    service: UploadService, owner: Viewer, team: UUID
) -> None:
    begun = await service.begin(owner, team, raw())

    with pytest.raises(WrongState):
        await service.complete(owner, begun.upload.id)

    assert await refusal_of(lambda: service.use(owner, team, FILE, values(begun.upload))) == [
        ("parameters.start", "the upload is not complete: send its bytes, then complete it")
    ]


async def test_other_bytes_than_announced_are_refused(
    service: UploadService, store: ObjectStore, sender: Sender, owner: Viewer, team: UUID
) -> None:
    begun = await service.begin(owner, team, raw())
    answer = await sender.send(begun.plan.requests[0], b"AN INPUT FILE")
    assert not answer.is_success

    await store.put(begun.upload.key, b"AN INPUT FILE", media_type="image/png")

    assert (await refusal_of(lambda: service.complete(owner, begun.upload.id)))[0][0] == "upload"


async def test_same_key_gives_the_same_upload_with_fresh_requests(
    service: UploadService, sender: Sender, owner: Viewer, team: UUID
) -> None:
    body = b"\2" * (2 * PART)
    first = await service.begin(owner, team, raw(body), idempotency_key="k")
    answer = await sender.send(first.plan.requests[0], body[:PART])
    assert answer.is_success

    again = await service.begin(owner, team, raw(body), idempotency_key="k")
    await sender.send(again.plan.requests[1], body[PART:])
    upload = await service.complete(owner, again.upload.id)
    done = await service.begin(owner, team, raw(body), idempotency_key="k")

    assert first.upload.id == again.upload.id == upload.id == done.upload.id
    assert done.plan.requests == ()
    with pytest.raises(IdempotencyConflict):
        await service.begin(owner, team, raw(), idempotency_key="k")


async def test_file_must_be_of_the_team_and_accepted(
    service: UploadService, sender: Sender, owner: Viewer, team: UUID
) -> None:
    stranger = await make_owner()
    foreign = await bring(service, sender, stranger)
    text = await bring(service, sender, owner, media_type="text/plain", name="a.txt")
    no_upload = ("parameters.start", "expected the id of an upload of this team, found none: it may have expired")

    assert await refusal_of(lambda: service.use(owner, team, FILE, values(foreign))) == [no_upload]
    assert await refusal_of(lambda: service.use(owner, team, FILE, values(uuid4()))) == [no_upload]
    assert await refusal_of(lambda: service.use(owner, team, FILE, values(text))) == [
        ("parameters.start", "expected image/*, found a.txt of type text/plain")
    ]
    assert await service.use(owner, team, FILE, {"start": None}) == {}


async def test_strangers_and_viewers_bring_nothing_in(service: UploadService, owner: Viewer, team: UUID) -> None:
    stranger, looker = await make_owner(), in_role(owner.user_id, team, Role.VIEWER)
    begun = await service.begin(owner, team, raw())

    for refused in (
        service.begin(stranger, team, raw()),
        service.get(stranger, begun.upload.id),
        service.complete(stranger, begun.upload.id),
        service.use(stranger, team, FILE, {"start": None}),
    ):
        with pytest.raises(NotFound):
            await refused
    for refused in (service.begin(looker, team, raw()), service.complete(looker, begun.upload.id)):
        with pytest.raises(Forbidden):
            await refused


async def test_upload_that_nobody_names_dies_after_a_day(
    service: UploadService, store: ObjectStore, sender: Sender, owner: Viewer, team: UUID
) -> None:
    young, old, begun = [await bring(service, sender, owner) for _ in range(2)] + [
        (await service.begin(owner, team, raw(b"\3" * (PART + 1)))).upload
    ]
    await age(young, "created_at", 23)
    await age(old, "created_at", 25)
    await age(begun, "created_at", 25)

    assert await service.collect() == 2

    assert await store.head(old.key) is None
    assert await store.head(young.key) is not None
    assert (await service.by_ids(owner, [young.id, old.id, begun.id])).keys() == {young.id}
    assert await service.collect() == 0


async def test_used_upload_lives_as_long_as_a_task_of_its_time(
    db: Database, service: UploadService, store: ObjectStore, sender: Sender, owner: Viewer, team: UUID
) -> None:
    upload = await bring(service, sender, owner)
    await service.use(owner, team, FILE, values(upload))
    task = await make_task(team, hours_ago=48)
    await age(upload, "created_at", 49)

    assert await service.collect() == 0  # named an hour ago: its submit may be on its way
    await age(upload, "used_at", 47)
    assert await service.collect() == 0  # the task may still run, or be run again

    async with database.transaction():
        await database.rows("SET LOCAL ROLE runyard_retention")
        await database.rows("DELETE FROM task WHERE id = $1 RETURNING id", task)
    assert await service.collect() == 1
    assert await store.head(upload.key) is None


async def test_use_and_collect_never_both_win(
    local_store: ObjectStore, sender: Sender, owner: Viewer, team: UUID
) -> None:
    service = UploadService(local_store, largest=LARGEST, link_life=timedelta(minutes=5))
    uploads = [await bring(service, sender, owner, b"%d" % n) for n in range(20)]
    for upload in uploads:
        await age(upload, "created_at", 25)

    async def use(upload: Upload) -> bool:
        try:
            await service.use(owner, team, FILE, values(upload))
        except InvalidParameters:
            return False
        return True

    collected, *used = await asyncio.gather(service.collect(), *(use(upload) for upload in uploads))

    there = [await local_store.head(upload.key) is not None for upload in uploads]
    assert there == used
    assert collected == used.count(False)
