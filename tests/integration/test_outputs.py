"""Outputs, from the agent's announcement to a person's link, on both stores; and every race with the end of a lease."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from app.domain.errors import AlreadyExists, InvalidInput, LeaseLost, LimitExceeded, NotFound
from app.domain.file import Arrival, FileRole, Output, RawFile
from app.domain.lease import Lease
from app.persistence import database
from app.services import outputs as outputs_module
from app.services.access import Viewer
from app.services.outputs import Grant, Limits, OutputPage, OutputService
from app.services.ports import ObjectStore
from tests.stores import MIB, PART, Sender, hashes, sha256, split
from tests.viewers import make_owner, team_of

OUTPUT, PREVIEW, THUMBNAIL = FileRole
LIMITS = Limits(size=50 * MIB, total=100 * MIB)
PNG = b"\x89PNG pretended"


@pytest.fixture
def service(store: ObjectStore) -> OutputService:
    return OutputService(store, limits=LIMITS, link_life=timedelta(minutes=5))


@pytest.fixture
async def lease(team: UUID) -> Lease:
    return await run_task(team)


async def run_task(team: UUID, task: UUID | None = None, *, lease_no: int = 1) -> Lease:
    """A task that runs under this lease; an earlier lease of it has ended."""
    lease = Lease(task or (await database.rows("SELECT uuidv7() AS id"))[0]["id"], uuid4(), lease_no, lease_no)
    await database.rows(
        "INSERT INTO task_live (task_id, team_id, state, lane_id, rank, lease_no, agent_id, session_no, event_seq) "
        "VALUES ($1, $2, 'running', 1, 0, $3, $4, 1, 1) ON CONFLICT (task_id) DO UPDATE SET lease_no = $3, "
        "state = 'running', agent_id = $4, session_no = 1 RETURNING task_id",
        lease.task_id,
        team,
        lease.number,
        lease.agent_id,
    )
    return lease


async def back_to_waiting(lease: Lease) -> None:
    await database.rows(
        "UPDATE task_live SET state = 'waiting', agent_id = NULL, session_no = NULL "
        "WHERE task_id = $1 RETURNING task_id",
        lease.task_id,
    )


async def end(team: UUID, lease: Lease, state: str = "completed") -> None:
    await database.rows("DELETE FROM task_live WHERE task_id = $1 RETURNING task_id", lease.task_id)
    await database.rows(
        "INSERT INTO task_end (task_id, team_id, state, lease_no, event_seq, attempts, ended_at, revision) "
        "VALUES ($1, $2, $3, $4, 1, 1, app_now(), 0) RETURNING task_id",
        lease.task_id,
        team,
        state,
        lease.number,
    )


async def tell(lease: Lease, seq: int, body: dict[str, Any]) -> None:
    await database.rows(
        "INSERT INTO task_event (task_id, seq, at, kind, body) VALUES ($1, $2, app_now(), 'output', $3::jsonb) "
        "RETURNING seq",
        lease.task_id,
        seq,
        orjson.dumps(body).decode(),
    )


def raw(name: str = "image.png", body: bytes = PNG, **other: Any) -> RawFile:
    parts = [part.hex() for part in hashes(body)]
    file = RawFile(name=name, media_type="image/png", size=len(body), sha256=sha256(body).hex(), parts=parts)
    return replace(file, **other)


async def send(sender: Sender, grant: Grant, body: bytes = PNG) -> UUID:
    pieces = split(body, grant.part_size) if grant.part_size else [body]
    for request, piece in zip(grant.requests, pieces, strict=True):
        answer = await sender.send(request, piece)
        assert answer.is_success, answer.text
    assert grant.output_id is not None
    return grant.output_id


async def bring(
    service: OutputService, sender: Sender, team: UUID, lease: Lease, *files: RawFile, body: bytes = PNG
) -> list[UUID]:
    """Files that are complete."""
    grants = await service.begin(team, lease, files)
    ids = [await send(sender, grant, body) for grant in grants]
    assert (await service.complete(team, lease, ids)).results == [Arrival.VERIFIED] * len(ids)
    return ids


async def shown(service: OutputService, owner: Viewer, lease: Lease, lease_no: int | None = None) -> list[str]:
    """The names of the outputs that the task shows, or that one of its leases has."""
    (page,) = await service.pages(owner, [OutputPage(task_id=lease.task_id, lease_no=lease_no)])
    (count,) = await service.counts(owner, [(lease.task_id, lease_no)])
    assert count == len(page)
    return [output.name for output in page]


async def only(service: OutputService, owner: Viewer, id: UUID) -> Output:
    return (await service.by_ids(owner, [id]))[id]


@pytest.mark.parametrize("body", [PNG, b"", b"\1" * (PART + 1)], ids=["small", "empty", "in parts"])
async def test_output_is_brought_in_and_downloaded(
    service: OutputService, sender: Sender, owner: Viewer, team: UUID, lease: Lease, body: bytes
) -> None:
    (grant,) = await service.begin(team, lease, [raw("../out/image.png", body, width=4, height=3)])

    id = await send(sender, grant, body)
    completed = await service.complete(team, lease, [id])

    assert completed.results == [Arrival.VERIFIED]
    assert completed.facts == [
        {"v": 1, "attempt": 1, "output": str(id), "name": "out/image.png", "size": len(body), "mediaType": "image/png"}
    ]
    output = await service.get(owner, id)
    assert (output.name, output.size, output.sha256) == ("out/image.png", len(body), sha256(body))
    assert (output.width, output.height, output.attempt) == (4, 3, 1)
    got = await sender.get(await service.url(owner, output))
    assert got.content == body
    assert got.headers["content-disposition"].startswith("attachment")
    assert (
        (await sender.get(await service.url(owner, output, inline=True)))
        .headers["content-disposition"]
        .startswith("inline")
    )


async def test_what_could_run_is_never_shown_in_place(
    service: OutputService, sender: Sender, owner: Viewer, team: UUID, lease: Lease
) -> None:
    (id,) = await bring(service, sender, team, lease, raw("page.html", media_type="text/html"))

    got = await sender.get(await service.url(owner, await only(service, owner, id), inline=True))

    assert got.headers["content-disposition"].startswith("attachment")
    assert got.headers["content-type"] == "application/octet-stream"


async def test_each_read_mints_a_link_of_its_own_time(
    local_store: ObjectStore, sender: Sender, owner: Viewer, team: UUID, lease: Lease
) -> None:
    (id,) = await bring(
        OutputService(local_store, limits=LIMITS, link_life=timedelta(minutes=5)), sender, team, lease, raw()
    )
    expired = OutputService(local_store, limits=LIMITS, link_life=timedelta(seconds=-1))

    answer = await sender.get(await expired.url(owner, await only(expired, owner, id)))

    assert answer.status_code == 410


async def test_one_refused_file_does_not_stop_the_others(
    service: OutputService, sender: Sender, team: UUID, lease: Lease
) -> None:
    grants = await service.begin(
        team,
        lease,
        [
            raw("a"),
            raw("huge", size=LIMITS.size + 1),
            raw("b", sha256="nonsense"),
            raw("a", b"other"),
            raw("a"),
            raw("none", role=THUMBNAIL),
            raw("c"),
        ],
    )

    assert [type(grant.refused) for grant in grants] == [
        type(None),
        InvalidInput,
        InvalidInput,
        AlreadyExists,
        type(None),
        NotFound,
        type(None),
    ]
    assert grants[4] == grants[0]
    ids = [await send(sender, grants[0]), await send(sender, grants[6])]
    assert (await service.complete(team, lease, ids)).results == [Arrival.VERIFIED] * 2


async def test_lost_answers_double_nothing(
    service: OutputService, sender: Sender, owner: Viewer, team: UUID, lease: Lease
) -> None:
    first, again = [(await service.begin(team, lease, [raw()]))[0] for _ in range(2)]
    assert first.output_id == again.output_id

    id = await send(sender, again)
    sent_twice = await sender.send(first.requests[0], PNG)
    answers = [await service.complete(team, lease, [id, id])]
    await tell(lease, 2, answers[0].facts[0])
    answers.append(await service.complete(team, lease, [id]))
    (done,) = await service.begin(team, lease, [raw()])

    assert sent_twice.status_code == 412
    assert answers[0].results == [Arrival.VERIFIED] * 2
    assert len(answers[0].facts) == 1
    assert (answers[1].results, answers[1].facts) == ([Arrival.VERIFIED], [])
    assert (done.output_id, done.requests) == (id, ())
    (refused,) = await service.begin(team, lease, [raw(body=b"other")])
    assert isinstance(refused.refused, AlreadyExists)
    assert await shown(service, owner, lease) == ["image.png"]


async def test_event_that_was_never_stored_is_told_by_the_repeated_call(
    service: OutputService, sender: Sender, team: UUID, lease: Lease
) -> None:
    grants = await service.begin(team, lease, [raw("a"), raw("b")])
    ids = [await send(sender, grant) for grant in grants]
    facts = (await service.complete(team, lease, ids)).facts
    await tell(lease, 2, facts[0])  # and then its caller died

    assert (await service.complete(team, lease, ids)).facts == [facts[1]]


async def test_upload_in_parts_that_was_begun_before_goes_on(
    service: OutputService, sender: Sender, team: UUID, lease: Lease
) -> None:
    body = b"\2" * (2 * PART)
    (first,) = await service.begin(team, lease, [raw(body=body)])
    assert (await sender.send(first.requests[0], body[:PART])).is_success

    (again,) = await service.begin(team, lease, [raw(body=body)])
    assert (await sender.send(again.requests[1], body[PART:])).is_success

    assert first.output_id == again.output_id is not None
    assert (await service.complete(team, lease, [again.output_id])).results == [Arrival.VERIFIED]


async def test_upload_in_parts_that_the_store_closed_needs_nothing_more(
    service: OutputService, store: ObjectStore, sender: Sender, owner: Viewer, team: UUID, lease: Lease
) -> None:
    body = b"\3" * (2 * PART)
    (first,) = await service.begin(team, lease, [raw(body=body)])
    id = await send(sender, first, body)
    row = (await database.rows("SELECT key, upload_id FROM output WHERE id = $1", id))[0]
    await store.finish_upload(
        row["key"], upload_id=row["upload_id"], size=len(body), sha256=sha256(body), parts=hashes(body)
    )

    (again,) = await service.begin(team, lease, [raw(body=body)])

    assert (again.output_id, again.requests) == (id, ())
    assert (await service.complete(team, lease, [id])).results == [Arrival.VERIFIED]


async def test_missing_and_unknown_files_are_told_apart_from_verified_ones(
    service: OutputService, sender: Sender, owner: Viewer, team: UUID, lease: Lease
) -> None:
    a, b = await service.begin(team, lease, [raw("a"), raw("b")])
    other = await run_task(team)
    (foreign,) = await bring(service, sender, team, other, raw())
    assert b.output_id is not None

    completed = await service.complete(team, lease, [await send(sender, a), b.output_id, uuid4(), foreign])

    assert completed.results == [Arrival.VERIFIED, *[Arrival.MISSING] * 3]
    assert [fact["name"] for fact in completed.facts] == ["a"]
    assert await shown(service, owner, lease) == ["a"]


async def test_mismatch_is_forgotten_so_that_it_may_be_announced_anew(
    service: OutputService, store: ObjectStore, sender: Sender, owner: Viewer, team: UUID, lease: Lease
) -> None:
    (grant,) = await service.begin(team, lease, [raw()])
    assert grant.output_id is not None
    key = (await database.rows("SELECT key FROM output WHERE id = $1", grant.output_id))[0]["key"]
    await store.put(key, b"something else", media_type="image/png")

    assert (await service.complete(team, lease, [grant.output_id])).results == [Arrival.MISMATCH]

    assert await store.head(key) is None
    (id,) = await bring(service, sender, team, lease, raw())
    assert id != grant.output_id
    assert await shown(service, owner, lease) == ["image.png"]


async def test_thumbnail_belongs_to_the_output_of_its_name(
    service: OutputService, sender: Sender, owner: Viewer, team: UUID, lease: Lease
) -> None:
    image, other, _ = await bring(
        service, sender, team, lease, raw("a.png"), raw("b.bin"), raw("a.png", role=THUMBNAIL, media_type="image/webp")
    )
    listed = [await only(service, owner, id) for id in (image, other)]

    urls = await service.thumbnail_urls(owner, listed)

    assert urls.keys() == {image}
    assert (await sender.get(urls[image])).headers["content-type"] == "image/webp"
    assert await shown(service, owner, lease) == ["a.png", "b.bin"]
    assert await service.thumbnail_urls(await make_owner(), listed) == {}


async def test_newest_previews_are_kept_and_signed_on_read(
    service: OutputService, store: ObjectStore, sender: Sender, owner: Viewer, team: UUID, lease: Lease
) -> None:
    ids = []
    for n in range(12):
        body = b"%d" % n
        ids += await bring(service, sender, team, lease, raw("preview", body, role=PREVIEW), body=body)

    keys = [await service.preview_key(lease, id) for id in ids]

    assert [key is not None for key in keys] == [False] * 4 + [True] * 8
    assert keys[-1] is not None
    cold = OutputService(store, limits=LIMITS, link_life=timedelta(minutes=5))
    for each in (service, cold):
        url = await each.preview_url(keys[-1])
        assert url is not None
        got = await sender.get(url)
        assert (got.content, got.headers["content-type"]) == (b"11", "image/png")
    assert await cold.preview_url(f"teams/{team}/x/{ids[0]}") is None
    assert await cold.preview_url("nonsense") is None
    assert await shown(service, owner, lease) == []
    assert await service.by_ids(owner, ids) == {}


async def test_preview_counts_only_under_its_own_lease(
    service: OutputService, sender: Sender, team: UUID, lease: Lease
) -> None:
    (preview,) = await bring(service, sender, team, lease, raw(role=PREVIEW))
    (output,) = await bring(service, sender, team, lease, raw())
    (begun,) = await service.begin(team, lease, [raw(body=b"x", role=PREVIEW)])
    assert begun.output_id is not None

    assert await service.preview_key(lease, preview) is not None
    assert await service.preview_key(replace(lease, number=2), preview) is None
    assert await service.preview_key(await run_task(team), preview) is None
    for other in (output, begun.output_id, uuid4()):
        assert await service.preview_key(lease, other) is None


async def test_task_shows_the_lease_that_runs_and_then_the_one_that_completed(
    service: OutputService, sender: Sender, owner: Viewer, team: UUID, lease: Lease
) -> None:
    await bring(service, sender, team, lease, raw("first"))
    assert await shown(service, owner, lease) == ["first"]

    await back_to_waiting(lease)
    assert await shown(service, owner, lease) == []

    second = await run_task(team, lease.task_id, lease_no=2)
    await bring(service, sender, team, second, raw("second"))
    assert await shown(service, owner, lease) == ["second"]

    await end(team, second)
    assert await shown(service, owner, lease) == ["second"]
    assert await shown(service, owner, lease, 1) == ["first"]
    assert await shown(service, owner, lease, 2) == ["second"]
    assert [each.name for each in await service.team_page(owner, team, limit=9, before=None)] == ["second"]
    assert await service.team_count(owner, team) == 1


@pytest.mark.parametrize("state", ["failed", "cancelled"])
async def test_outputs_of_a_task_that_did_not_complete_stay_with_their_attempt(
    service: OutputService, sender: Sender, owner: Viewer, team: UUID, lease: Lease, state: str
) -> None:
    await bring(service, sender, team, lease, raw())

    await end(team, lease, state)

    assert await shown(service, owner, lease) == []
    assert await shown(service, owner, lease, 1) == ["image.png"]


async def test_lease_that_ends_in_between_changes_nothing_that_is_shown(
    service: OutputService, sender: Sender, owner: Viewer, team: UUID, lease: Lease
) -> None:
    (late,) = await service.begin(team, lease, [raw("late", b"late")])
    await back_to_waiting(lease)
    second = await run_task(team, lease.task_id, lease_no=2)
    await bring(service, sender, team, second, raw("late"))
    await end(team, second)

    # The zombie's request was signed before its lease ended: what it still sends lies apart.
    late_id = await send(sender, late, b"late")
    with pytest.raises(LeaseLost):
        await service.complete(team, lease, [late_id])
    with pytest.raises(LeaseLost):
        await service.begin(team, lease, [raw("later")])

    (page,) = await service.pages(owner, [OutputPage(task_id=lease.task_id)])
    assert [(output.name, output.lease_no) for output in page] == [("late", 2)]
    assert (await sender.get(await service.url(owner, page[0]))).content == PNG
    assert [each.lease_no for each in await service.team_page(owner, team, limit=9, before=None)] == [2]
    assert await shown(service, owner, lease, 1) == []


async def test_only_the_lease_that_runs_the_task_announces_files(
    local_store: ObjectStore, team: UUID, lease: Lease
) -> None:
    service = OutputService(local_store, limits=LIMITS, link_life=timedelta(minutes=5))
    await service.begin(team, lease, [raw()])

    for other in (replace(lease, number=2), replace(lease, agent_id=uuid4()), replace(lease, task_id=uuid4())):
        with pytest.raises(LeaseLost):
            await service.begin(team, other, [raw("other")])
    await end(team, lease)
    with pytest.raises(LeaseLost):
        await service.begin(team, lease, [raw("late")])

    rows = await database.rows("SELECT name FROM output")
    assert [row["name"] for row in rows] == ["image.png"]


async def test_concurrent_announcements_never_pass_the_limit_of_a_task(
    monkeypatch: pytest.MonkeyPatch, local_store: ObjectStore, owner: Viewer, team: UUID, lease: Lease
) -> None:
    monkeypatch.setattr(outputs_module, "MAX_OUTPUTS", 25)
    service = OutputService(local_store, limits=LIMITS, link_life=timedelta(minutes=5))

    calls = [[raw(f"{call}-{n}") for n in range(10)] for call in range(5)]
    answers = await asyncio.gather(*(service.begin(team, lease, files) for files in calls))

    refusals = [grant.refused for grants in answers for grant in grants if grant.refused]
    assert len(refusals) == 25
    assert {type(refusal) for refusal in refusals} == {LimitExceeded}
    rows = await database.rows("SELECT count(*) AS n FROM output WHERE task_id = $1", lease.task_id)
    assert rows[0]["n"] == 25


async def test_concurrent_announcements_of_one_file_make_one_row(
    local_store: ObjectStore, team: UUID, lease: Lease
) -> None:
    service = OutputService(local_store, limits=LIMITS, link_life=timedelta(minutes=5))

    answers = await asyncio.gather(*(service.begin(team, lease, [raw()]) for _ in range(8)))

    assert len({grant.output_id for (grant,) in answers}) == 1


async def test_too_many_files_at_once_are_refused_whole(service: OutputService, team: UUID, lease: Lease) -> None:
    with pytest.raises(InvalidInput):
        await service.begin(team, lease, [raw(f"{n}") for n in range(501)])


async def test_bytes_of_a_task_are_limited_over_its_attempts(
    local_store: ObjectStore, team: UUID, lease: Lease
) -> None:
    service = OutputService(local_store, limits=Limits(size=100, total=150), link_life=timedelta(minutes=5))
    await service.begin(team, lease, [raw("a", b"x" * 100)])
    second = await run_task(team, lease.task_id, lease_no=2)

    b, c = await service.begin(team, second, [raw("b", b"x" * 51), raw("c", b"x" * 50)])

    assert (type(b.refused), c.refused) == (LimitExceeded, None)


async def test_pages_of_many_tasks_are_one_statement_and_keyset(
    service: OutputService, sender: Sender, owner: Viewer, team: UUID, lease: Lease
) -> None:
    await bring(service, sender, team, lease, *(raw(f"{n}") for n in range(5)))
    other = await run_task(team)
    await bring(service, sender, team, other, raw("x"))

    first, of_other, none = await service.pages(
        owner,
        [
            OutputPage(task_id=lease.task_id, limit=3),
            OutputPage(task_id=other.task_id),
            OutputPage(task_id=uuid4()),
        ],
    )
    (rest,) = await service.pages(owner, [OutputPage(task_id=lease.task_id, limit=3, after=first[-1].id)])

    assert [output.name for output in first + rest] == ["0", "1", "2", "3", "4"]
    assert ([output.name for output in of_other], none) == (["x"], [])


async def test_strangers_see_no_outputs(
    service: OutputService, sender: Sender, owner: Viewer, team: UUID, lease: Lease
) -> None:
    (id,) = await bring(service, sender, team, lease, raw())
    output, stranger = await only(service, owner, id), await make_owner()

    assert await service.by_ids(stranger, [id]) == {}
    assert await shown(service, stranger, lease) == []
    assert await service.team_page(stranger, team_of(stranger), limit=9, before=None) == []
    for refused in (
        service.get(stranger, id),
        service.url(stranger, output),
        service.team_page(stranger, team, limit=9, before=None),
        service.team_count(stranger, team),
    ):
        with pytest.raises(NotFound):
            await refused


async def test_what_an_agent_uploaded_before_it_died_is_removed_once_its_links_are_dead(
    service: OutputService, sender: Sender, store: ObjectStore, team: UUID, lease: Lease
) -> None:
    await bring(service, sender, team, lease, raw("kept"))
    grants = await service.begin(team, lease, [raw("sent"), raw("never sent")])
    await send(sender, grants[0])
    keys = [row["key"] for row in await database.rows("SELECT key FROM output WHERE completed_at IS NULL")]
    alive = await service.collect()
    await back_to_waiting(lease)
    await _ended_ago(team, lease, minutes=11)
    fresh = await run_task(team)
    await service.begin(team, fresh, [raw("may still come")])
    await _ended_ago(team, fresh, minutes=9)

    assert (alive, await service.collect()) == (0, 2)

    assert [await store.head(key) for key in keys] == [None, None]
    left = await database.rows("SELECT name FROM output ORDER BY id")
    assert [row["name"] for row in left] == ["kept", "may still come"]
    assert await service.collect() == 0


async def _ended_ago(team: UUID, lease: Lease, *, minutes: int) -> None:
    """The attempt of this lease has ended."""
    await database.rows(
        "INSERT INTO attempt AS a (task_id, no, team_id, lease_no, agent_id, started_at, ended_at, outcome) "
        "VALUES ($1, $2, $3, $4, $5, app_now(), app_now() - make_interval(mins => $6), 'agent_lost') "
        "RETURNING no",
        lease.task_id,
        lease.attempt,
        team,
        lease.number,
        lease.agent_id,
        minutes,
    )
