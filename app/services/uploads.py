"""Input uploads: brought in before the submit, named by its file parameters, kept as long as a task may run with them.

The bytes go straight to the object store; a submit may name an upload only once the store has verified them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from app.domain.errors import Fault, InvalidInput, InvalidParameters, NotFound, WrongState
from app.domain.file import Arrival, FileClaim, RawFile, Upload, claim
from app.domain.parameters import Parameter, accepts, files
from app.persistence import idempotency, uploads
from app.persistence.idempotency import Claim, fingerprint
from app.services.access import Permission, Viewer
from app.services.arrivals import abandon, arrival, plan
from app.services.inputs import Checked
from app.services.ports import ObjectStore, UploadPlan

COLLECTED = 100
"""Uploads that one round of `collect` condemns and removes at most."""

ARRIVED = UploadPlan(requests=())


@dataclass(frozen=True, slots=True)
class Begun:
    """An upload, and the requests that bring its bytes in: none where they are there."""

    upload: Upload
    plan: UploadPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInput:
    """One input file of a task as its agent gets it; the URL opens this object alone, for a while."""

    parameter: str
    name: str
    media_type: str
    size: int
    sha256: bytes
    url: str


class UploadService:
    """Uploads of the viewer's teams. `largest` in bytes, `link_life` is how long a signed request is good for."""

    def __init__(self, store: ObjectStore, *, largest: int, link_life: timedelta) -> None:
        self._store = store
        self._largest = largest
        self._link_life = link_life

    async def begin(self, viewer: Viewer, team_id: UUID, raw: RawFile, *, idempotency_key: str | None = None) -> Begun:
        """A new upload with its signed requests; raises `InvalidInput` with every fault of the description.

        The same key gives the same upload, with fresh requests where its bytes are not there yet.
        """
        viewer.require(Permission.RUN, team_id)
        wanted = claim(raw, largest=self._largest, part_size=self._store.part_size)

        async def make() -> UUID:
            return (await uploads.add(team_id, viewer.user_id, wanted)).id

        made = await idempotency.once(_claim(viewer, team_id, idempotency_key, wanted), make)
        upload = await self.get(viewer, made.id)
        if upload.completed_at is not None:
            return Begun(upload, ARRIVED)
        planned = await plan(self._store, upload, expires=self._link_life)
        if planned.upload_id != upload.upload_id:
            await uploads.set_upload_id(upload.id, planned.upload_id)
        return Begun(upload, planned)

    async def complete(self, viewer: Viewer, upload_id: UUID) -> Upload:
        """Have the store verify the bytes; may be repeated.

        Raises `WrongState` where they are not all there yet, `InvalidInput` where they are not what was announced.
        """
        upload = await self.get(viewer, upload_id)
        viewer.require(Permission.RUN, upload.team_id)
        if upload.completed_at is not None:
            return upload
        match await arrival(self._store, upload):
            case Arrival.MISSING:
                raise WrongState(f"the store does not have all of the {upload.size} bytes yet: send them first")
            case Arrival.MISMATCH:
                expected = f"{upload.size} bytes with SHA-256 {upload.sha256.hex()}"
                raise InvalidInput([Fault(("upload",), f"expected {expected}, found others: begin another upload")])
        completed = await uploads.complete(upload.id)
        if completed is None:
            raise NotFound(f"no upload {upload_id}")
        return completed

    async def get(self, viewer: Viewer, upload_id: UUID) -> Upload:
        """An upload of the viewer's teams; raises `NotFound`."""
        upload = (await self.by_ids(viewer, [upload_id])).get(upload_id)
        if upload is None:
            raise NotFound(f"no upload {upload_id}")
        return upload

    async def by_ids(self, viewer: Viewer, upload_ids: Sequence[UUID]) -> dict[UUID, Upload]:
        """Those of `upload_ids` that the viewer may see."""
        teams = [team_id for team_id in viewer.grants if viewer.may(Permission.READ, team_id)]
        return {upload.id: upload for upload in await uploads.by_ids(upload_ids, teams)}

    async def use(
        self,
        viewer: Viewer,
        team_id: UUID,
        definitions: Sequence[Parameter],
        values: Mapping[str, Any],
        *,
        path: tuple[str, ...] = ("parameters",),
    ) -> dict[str, Upload]:
        """The uploads that validated values name, by parameter, kept from now on; to be called right before a submit.

        Raises `InvalidParameters` with every fault: no such upload in this team, not complete, or not accepted.
        """
        viewer.require(Permission.RUN, team_id)
        named = files(definitions, values)
        if not named:
            return {}
        known = {upload.id: upload for upload in await uploads.by_ids(list(named.values()), [team_id])}
        by_key = {parameter.key: parameter for parameter in definitions}
        faults = [
            Fault((*path, key), fault)
            for key, id in named.items()
            if (fault := _unfit(by_key[key], known.get(id))) is not None
        ]
        if faults:
            raise InvalidParameters(faults)
        kept = await uploads.use(team_id, list(named.values()))
        if gone := [key for key, id in named.items() if id not in kept]:
            raise InvalidParameters([Fault((*path, key), _NO_UPLOAD) for key in gone])
        return {key: known[id] for key, id in named.items()}

    async def inputs(
        self, team_id: UUID, definitions: Sequence[Parameter], values: Mapping[str, Any]
    ) -> list[TaskInput]:
        """System verb, for dispatch: the input files of a stored task with links for its agent; raises `NotFound`."""
        named = files(definitions, values)
        if not named:
            return []
        known = {upload.id: upload for upload in await uploads.by_ids(list(named.values()), [team_id])}
        if gone := [key for key, id in named.items() if id not in known]:
            raise NotFound(f"the input files of {', '.join(gone)} are no longer kept")
        return [await self._input(key, known[id]) for key, id in named.items()]

    async def collect(self) -> int:
        """System verb, for a loop: remove uploads that nothing can use any more; returns how many went."""
        await uploads.condemn(COLLECTED)
        dead = await uploads.condemned(COLLECTED)
        if dead:
            await abandon(self._store, [upload for upload in dead if upload.completed_at is None])
            await self._store.delete([upload.key for upload in dead])
            await uploads.remove([upload.id for upload in dead])
        return len(dead)

    async def _input(self, parameter: str, upload: Upload) -> TaskInput:
        url = await self._store.sign_get(
            upload.key,
            expires=self._link_life,
            filename=upload.name,
            media_type=upload.media_type,
            inline=False,
            internal=True,
        )
        return TaskInput(
            parameter=parameter,
            name=upload.name,
            media_type=upload.media_type,
            size=upload.size,
            sha256=upload.sha256,
            url=url,
        )


_NO_UPLOAD = "expected the id of an upload of this team, found none: it may have expired"


def _unfit(parameter: Parameter, upload: Upload | None) -> str | None:
    """Why this upload cannot be the value of this parameter."""
    if upload is None:
        return _NO_UPLOAD
    if upload.completed_at is None:
        return "the upload is not complete: send its bytes, then complete it"
    if not accepts(parameter, name=upload.name, media_type=upload.media_type):
        return f"expected {' or '.join(parameter.accept)}, found {upload.name} of type {upload.media_type}"
    return None


def _claim(viewer: Viewer, team_id: UUID, key: str | None, wanted: FileClaim) -> Claim | None:
    checked = Checked()
    checked.key(key)
    checked.settle()
    if key is None:
        return None
    asked = {"name": wanted.name, "mediaType": wanted.media_type, "size": wanted.size, "sha256": wanted.sha256.hex()}
    return Claim(
        team_id=team_id,
        caller_id=viewer.caller_id,
        operation="beginUpload",
        key=key,
        hash=fingerprint(asked | {"parts": [part.hex() for part in wanted.parts]}),
    )
