"""Pools as people see them: what a team lets be started by itself, and what became of it.

A pool starts machines and lends keys, so only people make and change one, never a key. What a provisioner may do is the
operator's word: one that this server does not have is refused before anything is stored.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

from app.domain import pool_draft
from app.domain.errors import NotFound, ProvisionerOff, WrongState
from app.domain.pool import COMING as COMING
from app.domain.pool import Launch as Launch
from app.domain.pool import LaunchState as LaunchState
from app.domain.pool import Pool as Pool
from app.domain.pool import ProvisionerKind as ProvisionerKind
from app.domain.pool_draft import Draft
from app.persistence import idempotency, pools
from app.persistence.database import Database
from app.persistence.idempotency import Claim
from app.persistence.pools import LaunchPage as LaunchPage
from app.services.access import Permission, Viewer
from app.services.inputs import Checked

MAX_LAUNCHES = 10_001
"""Where counting stops: lists say "more than 10,000"."""


class PoolService:
    """The pools of the viewer's teams. What belongs to another team does not exist (`NotFound`)."""

    def __init__(self, database: Database, *, offered: Collection[ProvisionerKind]) -> None:
        self._database = database
        self._offered = frozenset(offered)

    async def create(
        self, viewer: Viewer, team_id: UUID, document: Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> Pool:
        """A new pool, whose minimum is started at once.

        Raises `InvalidInput` with every fault, `ProvisionerOff`, `AlreadyExists` for a name that is taken.
        """
        _require(viewer, team_id)
        checked = Checked()
        checked.key(idempotency_key)
        checked.settle()
        draft = pool_draft.read(document)
        self._allow(draft)
        claim = Claim.of(
            idempotency_key,
            team_id=team_id,
            caller_id=viewer.caller_id,
            operation="createPool",
            asked=asdict(draft),
        )

        async def store() -> UUID:
            return await pools.add(team_id, draft, made_by=viewer.user_id)

        return await self._found(viewer, (await idempotency.once(claim, store)).id)

    async def update(self, viewer: Viewer, pool_id: UUID, changes: Mapping[str, Any]) -> Pool:
        """Change what is in `changes`; agents that are there keep their labels and slots until they go.

        A pool that is switched off starts nothing, and its agents go once they are idle. The provisioner stays: its
        agents would be nobody's. Raises as `create`, and `WrongState` for a pool that was removed.
        """
        pool = await self._changing(viewer, pool_id)
        draft = pool_draft.read({**pool_draft.write(pool), **changes})
        if draft.provisioner is not pool.provisioner:
            raise WrongState(f"the pool {pool.name!r} starts agents by {pool.provisioner}: make another pool")
        if draft.enabled:
            self._allow(draft)
        if not await pools.change(self._database, pool.team_id, pool_id, draft):
            raise WrongState(f"the pool {pool.name!r} was removed")
        return await self._found(viewer, pool_id)

    async def remove(self, viewer: Viewer, pool_id: UUID) -> Pool:
        """Take a pool away: its agents finish what they run, then go. Idempotent."""
        pool = await self._found(viewer, pool_id)
        _require(viewer, pool.team_id)
        await pools.remove(self._database, pool.team_id, pool_id)
        return await self._found(viewer, pool_id)

    async def page(self, viewer: Viewer, team_id: UUID, *, limit: int, after: UUID | None) -> list[Pool]:
        """The team's pools in the order in which they were made, past `after`."""
        viewer.require(Permission.READ, team_id)
        return await pools.page(self._database, team_id, limit=limit, after=after)

    async def count(self, viewer: Viewer, team_id: UUID) -> int:
        viewer.require(Permission.READ, team_id)
        return await pools.count(self._database, team_id)

    async def by_ids(self, viewer: Viewer, ids: Sequence[UUID]) -> dict[UUID, Pool]:
        """Those that the viewer may see, removed ones too."""
        return await pools.by_ids(self._database, _readable(viewer), ids)

    async def living(self, viewer: Viewer, pool_ids: Sequence[UUID]) -> dict[UUID, dict[str, int]]:
        """How many launches of each pool are in each state, of those that are not over."""
        return await pools.living(self._database, _readable(viewer), pool_ids)

    async def launches(self, viewer: Viewer, wanted: Sequence[LaunchPage]) -> list[list[Launch]]:
        """What pools started, one list for each page, the newest first; nothing for what is not visible."""
        return await pools.launches(self._database, _readable(viewer), wanted)

    async def launch_counts(self, viewer: Viewer, pool_ids: Sequence[UUID]) -> list[int]:
        """How many launches each pool has had, counted up to 10,001."""
        return await pools.launch_counts(self._database, _readable(viewer), pool_ids, most=MAX_LAUNCHES)

    async def launches_by_ids(self, viewer: Viewer, ids: Sequence[UUID]) -> dict[UUID, Launch]:
        """Those that the viewer may see."""
        return await pools.launches_by_ids(self._database, _readable(viewer), ids)

    def _allow(self, draft: Draft) -> None:
        if draft.provisioner not in self._offered:
            raise ProvisionerOff(
                f"this server does not start agents by {draft.provisioner}: its operator has to allow it",
                path=("provisioner",),
            )

    async def _found(self, viewer: Viewer, pool_id: UUID) -> Pool:
        pool = (await self.by_ids(viewer, [pool_id])).get(pool_id)
        if pool is None:
            raise NotFound(f"no pool {pool_id}")
        return pool

    async def _changing(self, viewer: Viewer, pool_id: UUID) -> Pool:
        pool = await self._found(viewer, pool_id)
        _require(viewer, pool.team_id)
        if pool.removed_at is not None:
            raise WrongState(f"the pool {pool.name!r} was removed")
        return pool


def _require(viewer: Viewer, team_id: UUID) -> None:
    viewer.require(Permission.READ, team_id)
    viewer.require_person()
    viewer.require(Permission.MANAGE_AGENTS, team_id)


def _readable(viewer: Viewer) -> list[UUID]:
    return [team_id for team_id in viewer.grants if viewer.may(Permission.READ, team_id)]
