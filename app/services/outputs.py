"""Outputs: how an agent brings files in under its lease, and how people see them.

Bytes never pass through here: the agent gets signed requests for exactly what it announced, under keys of its lease,
and the store verifies what arrived. A file under a lease that has ended is harmless: a task shows files of the lease
that completed it, or that runs it now. Every link is minted on the read that shows it, for one object and a while.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from app.domain.admission import Decision, Known, New, Quota, Refused, Repeated, decide, named
from app.domain.errors import DomainError, Fault, InvalidInput, LeaseLost, NotFound
from app.domain.file import Arrival, FileClaim, FileRole, Output, RawFile, claim
from app.domain.lease import Lease
from app.domain.output import safe_inline
from app.persistence import database, outputs
from app.persistence.outputs import LeaseFiles
from app.persistence.outputs import OutputPage as OutputPage
from app.services.access import Permission, Viewer
from app.services.arrivals import abandon, arrival, plan
from app.services.ports import ObjectStore, SignedRequest

MAX_OUTPUTS = 10_000
"""Outputs of one task, over all of its attempts."""
MAX_FILES = 500
"""Files of one call."""
MAX_TOTAL = 10_001
"""Where counting stops: lists say "more than 10,000"."""
KEPT_PREVIEWS = 8
"""The newest of a lease; readers may still load the one before the last."""
ORPHANED = 2
"""Lives of a link after which nothing can bring an announced file any more."""
COLLECTED = 500
"""Files of one round of the loop."""
AT_ONCE = 8
"""Questions to the store at a time, for one call."""
KNOWN_TYPES = 4096
"""Media types of previews that are remembered."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bytes of one output, and of all outputs of one task."""

    size: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one announced file is answered: requests to send, none where it is there, or why it is refused."""

    output_id: UUID | None = None
    requests: tuple[SignedRequest, ...] = ()
    part_size: int = 0
    refused: DomainError | None = None


@dataclass(frozen=True, slots=True)
class Completed:
    """What the store says of each file, in order, and the bodies of the events that tell of new outputs."""

    results: list[Arrival]
    facts: list[dict[str, Any]]


class OutputService:
    """Files of tasks: brought in under leases, shown to viewers. `link_life`: how long a signed request is good for."""

    def __init__(self, store: ObjectStore, *, limits: Limits, link_life: timedelta) -> None:
        self._store = store
        self._limits = limits
        self._link_life = link_life
        self._preview_types: OrderedDict[str, str] = OrderedDict()

    # -- under a lease, whose token was checked before

    async def begin(self, team_id: UUID, lease: Lease, files: Sequence[RawFile]) -> list[Grant]:
        """How to bring these files in, one answer each, in order; one that is refused does not stop the others.

        May be repeated: the same (role, name) with the same bytes is the same file. Raises `InvalidInput` for more than
        500 files at once, `LeaseLost` where the lease has ended, `StorageUnavailable`.
        """
        _check_count(files)
        at = _files_of(team_id, lease)
        claims = [self._claim(raw) for raw in files]
        async with database.transaction():
            await _check_runs(lease)
            decisions, made = await self._admit(at, claims)
        if any(isinstance(each, FileClaim) and each.role is FileRole.PREVIEW for each in claims):
            await self._forget_previews(at)
        granted = await _gather(self._grant(decision, made) for decision in decisions)
        return [granted[each.first] if isinstance(each, Repeated) else granted[i] for i, each in enumerate(decisions)]

    async def complete(self, team_id: UUID, lease: Lease, output_ids: Sequence[UUID]) -> Completed:
        """Have the store verify these files; one result each, in order. May be repeated.

        `facts` has the body of an output event for each output that is verified and has no event yet; previews and
        thumbnails have none. A file that is not what was announced is forgotten, so that it may be announced anew.
        Raises `LeaseLost` where the lease has ended.
        """
        _check_count(output_ids)
        await _check_runs(lease)
        rows = {row.id: row for row in await outputs.of_lease(_files_of(team_id, lease), output_ids)}
        known = {id for id, row in rows.items() if row.completed_at is not None}
        fresh = [row for id, row in rows.items() if id not in known]
        arrivals = dict.fromkeys(known, Arrival.VERIFIED)
        arrivals |= dict(
            zip([row.id for row in fresh], await _gather(arrival(self._store, row) for row in fresh), strict=True)
        )
        completed = await outputs.complete([row.id for row in fresh if arrivals[row.id] is Arrival.VERIFIED])
        await self._forget([row for row in fresh if arrivals[row.id] is Arrival.MISMATCH])
        untold = completed | await _untold(lease, [rows[id] for id in known])
        facts = [_fact(rows[id]) for id in dict.fromkeys(output_ids) if id in untold and _is_output(rows[id])]
        return Completed([arrivals.get(id, Arrival.MISSING) for id in output_ids], facts)

    async def preview_key(self, lease: Lease, output_id: UUID) -> str | None:
        """The key of a preview that arrived under this lease; None for anything else."""
        row = await outputs.preview(output_id)
        if row is None or (row.task_id, row.lease_no) != (lease.task_id, lease.number):
            return None
        self._remember(row)
        return row.key

    # -- reads

    async def get(self, viewer: Viewer, output_id: UUID) -> Output:
        """An output of the viewer's teams; raises `NotFound`."""
        output = (await self.by_ids(viewer, [output_id])).get(output_id)
        if output is None:
            raise NotFound(f"no output {output_id}")
        return output

    async def by_ids(self, viewer: Viewer, output_ids: Sequence[UUID]) -> dict[UUID, Output]:
        """Those of `output_ids` that the viewer may see."""
        return {output.id: output for output in await outputs.by_ids(output_ids, _readable(viewer))}

    async def pages(self, viewer: Viewer, wanted: Sequence[OutputPage]) -> list[list[Output]]:
        """One list of outputs for each page, in order, by one statement: of a given lease, or what the task shows."""
        return await outputs.pages(wanted, _readable(viewer))

    async def counts(self, viewer: Viewer, tasks: Sequence[tuple[UUID, int | None]]) -> list[int]:
        """How many outputs each (task, lease number or None for what the task shows) has, in order."""
        return await outputs.counts(tasks, _readable(viewer))

    async def team_page(self, viewer: Viewer, team_id: UUID, *, limit: int, before: UUID | None) -> list[Output]:
        """At most `limit` outputs that the team's tasks show, older than the one with id `before`, newest first."""
        viewer.require(Permission.READ, team_id)
        return await outputs.team_page(team_id, limit=limit, before=before)

    async def team_count(self, viewer: Viewer, team_id: UUID) -> int:
        """How many outputs the team's tasks show, counted up to 10,001."""
        viewer.require(Permission.READ, team_id)
        return await outputs.team_count(team_id, most=MAX_TOTAL)

    async def url(self, viewer: Viewer, output: Output, *, inline: bool = False) -> str:
        """A fresh link that downloads the output; shown in place only where it was asked for and nothing can run."""
        viewer.require(Permission.READ, output.team_id)
        return await self._link(output, inline=inline and safe_inline(output.media_type))

    async def thumbnail_urls(self, viewer: Viewer, shown: Sequence[Output]) -> dict[UUID, str]:
        """Fresh links to the thumbnails of these outputs, by output; without those that have none."""
        names = {(output.task_id, output.lease_no, output.name): output for output in shown}
        readable = set(_readable(viewer))
        thumbnails = await outputs.thumbnails([name for name, each in names.items() if each.team_id in readable])
        return {names[name].id: await self._link(row, inline=True) for name, row in thumbnails.items()}

    async def preview_url(self, key: str) -> str | None:
        """System verb: a fresh link to a task's preview, by the key that the task's row or its batch carries.

        Whoever holds the key was shown the task. None where the preview is no longer kept.
        """
        media_type = self._preview_types.get(key) or await self._preview_type(key)
        if media_type is None:
            return None
        name = f"preview.{media_type.partition('/')[2]}"
        return await self._store.sign_get(
            key, expires=self._link_life, filename=name, media_type=media_type, inline=True
        )

    async def collect(self) -> int:
        """System verb, for a loop: remove what agents that died had uploaded and never completed; returns how much.

        A signed request that was given out lives longer than its lease, so that its object may still come until then.
        """
        lost = await outputs.orphans(COLLECTED, older=ORPHANED * self._link_life)
        if lost:
            await abandon(self._store, lost)
            await self._store.delete([row.key for row in lost])
            await outputs.forget([row.id for row in lost])  # last: a crash in between does it again
        return len(lost)

    # -- parts

    def _claim(self, raw: RawFile) -> FileClaim | DomainError:
        try:
            return named(claim(raw, largest=self._limits.size, part_size=self._store.part_size))
        except InvalidInput as invalid:
            return invalid

    async def _admit(
        self, at: LeaseFiles, claims: Sequence[FileClaim | DomainError]
    ) -> tuple[list[Decision], dict[tuple[FileRole, str], Output]]:
        """Decide and write the rows of what is new, while nobody else announces files of the task."""
        await outputs.lock(at.task_id)
        count, size = await outputs.held(at.task_id)
        names = [(each.role, each.name) for each in claims if isinstance(each, FileClaim)]
        kept = {(row.role, row.name): row for row in await outputs.announced(at, names)}
        room = Quota(outputs=MAX_OUTPUTS - count, size=self._limits.total - size)
        decisions = decide(claims, kept, room=room)
        made = await outputs.add(at, [each.claim for each in decisions if isinstance(each, New)])
        return decisions, {(row.role, row.name): row for row in made}

    async def _grant(self, decision: Decision, made: dict[tuple[FileRole, str], Output]) -> Grant:
        match decision:
            case Refused(error):
                return Grant(refused=error, part_size=self._store.part_size)
            case Known(output) if output.completed_at is not None:
                return Grant(output_id=output.id)
            case Known(output):
                return await self._plan(output)
            case New(new):
                return await self._plan(made[new.role, new.name])
            case Repeated():
                return Grant()  # takes the answer of the first one

    async def _plan(self, output: Output) -> Grant:
        planned = await plan(self._store, output, expires=self._link_life)
        if planned.upload_id != output.upload_id:
            await outputs.set_upload_id(output.id, planned.upload_id)
        return Grant(output_id=output.id, requests=planned.requests, part_size=planned.part_size)

    async def _forget(self, rows: Sequence[Output]) -> None:
        if rows:
            await outputs.forget([row.id for row in rows])
            await self._store.delete([row.key for row in rows])

    async def _forget_previews(self, at: LeaseFiles) -> None:
        gone = await outputs.outdated_previews(at, keep=KEPT_PREVIEWS)
        if gone:
            await self._store.delete([row.key for row in gone])

    async def _link(self, output: Output, *, inline: bool) -> str:
        return await self._store.sign_get(
            output.key,
            expires=self._link_life,
            filename=output.name,
            media_type=output.media_type,
            inline=inline,
        )

    async def _preview_type(self, key: str) -> str | None:
        try:
            row = await outputs.preview(UUID(key.rpartition("/")[2]))
        except ValueError:
            return None
        if row is None or row.key != key:
            return None
        self._remember(row)
        return row.media_type

    def _remember(self, preview: Output) -> None:
        self._preview_types[preview.key] = preview.media_type
        while len(self._preview_types) > KNOWN_TYPES:
            self._preview_types.popitem(last=False)


async def _check_runs(lease: Lease) -> None:
    if not await outputs.runs(lease):
        raise LeaseLost(f"lease {lease.number} of task {lease.task_id} does not run it: no file is taken in")


async def _untold(lease: Lease, known: Sequence[Output]) -> set[UUID]:
    """Outputs that were verified by an earlier call whose event was never stored: that caller died in between."""
    shown = {row.id for row in known if _is_output(row)}
    return shown - await outputs.told(lease.task_id) if shown else set()


async def _gather(calls: Iterable[Awaitable[T]]) -> list[T]:
    turn = asyncio.Semaphore(AT_ONCE)

    async def in_turn(call: Awaitable[T]) -> T:
        async with turn:
            return await call

    return list(await asyncio.gather(*(in_turn(call) for call in calls)))


def _fact(row: Output) -> dict[str, Any]:
    """The body of an output event."""
    return {
        "v": 1,
        "attempt": row.attempt,
        "output": str(row.id),
        "name": row.name,
        "size": row.size,
        "mediaType": row.media_type,
    }


def _files_of(team_id: UUID, lease: Lease) -> LeaseFiles:
    return LeaseFiles(team_id=team_id, task_id=lease.task_id, lease_no=lease.number, attempt=lease.attempt)


def _is_output(row: Output) -> bool:
    return row.role is FileRole.OUTPUT


def _check_count(files: Sequence[object]) -> None:
    if len(files) > MAX_FILES:
        raise InvalidInput([Fault(("files",), f"expected at most {MAX_FILES} files at once, found {len(files)}")])


def _readable(viewer: Viewer) -> list[UUID]:
    return [team_id for team_id in viewer.grants if viewer.may(Permission.READ, team_id)]
