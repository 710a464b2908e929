"""What pools start: asked for, started, watched, retired and cleared away, by any replica and after any crash.

    scale    a look at a team: rows for the agents that its pools need; those that are not needed are to leave
    attend   a step of each launch that this replica holds: claim -> look -> decide (`domain.pool.step`) -> write

The row is written before anything is started, so that nothing can be forgotten; a key is made in the commit that says
"starting", given to the provisioner alone, and revoked before the launch is over. Processes of `local` belong to the
replica that started them: it alone claims them while it lives, and when it is silent they have ended with it.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from app.domain.errors import Unavailable
from app.domain.events import Batch
from app.domain.pool import (
    Alive,
    Gone,
    LaunchOrder,
    LaunchRefused,
    LaunchState,
    LaunchVerb,
    ProvisionerKind,
    Sight,
    Step,
    end,
    step,
)
from app.persistence import database as stored
from app.persistence import duties, launches, scaling, sessions
from app.persistence.database import Database
from app.persistence.launches import Claimed
from app.persistence.provisions import Moved
from app.services.credentials import CredentialService
from app.services.feed_publisher import FeedPublisher
from app.services.ports import Provisioner

log = logging.getLogger(__name__)

HOUR = 3600.0
KEPT = 7
"""Days that launches which are over are shown."""


_NOT_HERE = Gone("the server that started it is gone", counts=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchTimes:
    """In seconds: `claim` is longer than any step may take; `settle` is how long a new agent has first choice."""

    claim: float = 60.0
    again: float = 5.0  # between two looks at what lives elsewhere, and after an outage
    settle: float = 5.0

    def scaled(self, factor: float) -> "LaunchTimes":
        """For tests; a claim is never shorter than a step takes."""
        return replace(self, again=self.again * factor, settle=self.settle * factor)


class LaunchService:
    """`replica` names this process, and no other one ever; `url` is what its agents call the server."""

    def __init__(
        self,
        *,
        database: Database,
        credentials: CredentialService,
        publisher: FeedPublisher,
        provisioners: Mapping[ProvisionerKind, Provisioner],
        replica: str,
        url: str,
        times: LaunchTimes,
        time_scale: float = 1.0,
    ) -> None:
        self._database = database
        self._credentials = credentials
        self._publisher = publisher
        self._provisioners = provisioners
        self._replica = replica
        self._url = url
        self._times = times
        self._time_scale = time_scale

    async def scale(self) -> int:
        """System verb: ask for the agents that pools need, retire those that they do not; returns how many of both."""
        return sum([await self._scale(team_id) for team_id in await scaling.teams(self._database)])

    async def attend(self) -> int:
        """System verb: the next step of every launch that is this replica's to drive; returns how many moved."""
        held = await launches.claim(self._database, self._replica, [*self._provisioners], seconds=self._times.claim)
        await self._end_lost()
        moved = await asyncio.gather(*(self._guarded(each) for each in held))
        return sum(moved)

    async def forget(self) -> int:
        """System verb: delete launches that were over long ago, with their revoked keys."""
        if not await duties.take(self._database, "launches", every=HOUR):
            return 0
        return await launches.forget(self._database, days=KEPT)

    async def close(self) -> None:
        """End the processes that end with this one, and write it down; what cannot be written others find out."""
        for kind, provisioner in self._provisioners.items():
            mine = provisioner.held()
            await provisioner.close()
            if mine:
                await self._close(kind, mine)

    async def _scale(self, team_id: UUID) -> int:
        """One team that cannot be looked at keeps no other one waiting."""
        try:
            done = await scaling.scale(self._database, team_id, [*self._provisioners], time_scale=self._time_scale)
        except Unavailable:
            raise
        except Exception:
            log.exception("the pools of a team could not be looked at", extra={"team": str(team_id)})
            return 0
        self._tell(done.moved)
        return len(done.starts) + len(done.retired)

    async def _close(self, kind: ProvisionerKind, mine: frozenset[UUID]) -> None:
        try:
            held = await launches.claim(self._database, self._replica, [kind], seconds=self._times.claim)
            for each in held:
                if each.id in mine:
                    await self._stop(each, Step(LaunchVerb.STOP))
                    await self._clear(each)
        except Unavailable:
            log.warning("the end of this server's agents is left for another one to write down")

    async def _end_lost(self) -> None:
        """End processes whose launch is no longer ours: we were silent for too long, and others wrote it off."""
        for provisioner in self._provisioners.values():
            if mine := provisioner.held():
                for launch_id in mine - await launches.own(self._database, self._replica):
                    log.warning("ending an agent that others have written off", extra={"launch": str(launch_id)})
                    await provisioner.stop(launch_id)

    async def _guarded(self, held: Claimed) -> bool:
        """One launch that cannot be dealt with keeps no other one waiting."""
        moved = False
        try:
            moved = await self._attend(held)
        except Unavailable as outage:
            log.warning("launch put off", extra={"launch": str(held.id), "cause": outage.message})
        except Exception:
            log.exception("launch failed", extra={"launch": str(held.id)})
        if held.provisioner is not ProvisionerKind.LOCAL:  # any replica may take the next step
            await launches.put_back(self._database, held, seconds=0.0 if moved else self._times.again)
        return moved

    async def _attend(self, held: Claimed) -> bool:
        provisioner = self._provisioners.get(held.provisioner)
        if held.state is LaunchState.STOPPING:
            return await self._clear(held)
        machine: Alive | Gone = Alive()
        if held.state is not LaunchState.REQUESTED:
            machine = await provisioner.look(held.id) if provisioner else _NOT_HERE
        seen = Sight(
            machine=machine,
            connected=held.connected,
            busy=held.busy,
            overdue=held.overdue,
            unwanted=held.unwanted,
            deadline=held.deadline,
        )
        if (next := step(held.state, seen)) is None:
            return await self._go_on(held)
        return await self._take(held, next)

    async def _take(self, held: Claimed, next: Step) -> bool:
        match next.verb:
            case LaunchVerb.START:
                return await self._start(held)
            case LaunchVerb.CONNECT:
                return await launches.connect(self._database, held)
            case _:
                return await self._stop(held, next)

    async def _start(self, held: Claimed) -> bool:
        provisioner = self._provisioners[held.provisioner]
        async with stored.transaction():
            lent = await self._credentials.lend(
                held.team_id,
                f"agent {held.agent_name}",
                labels=held.labels,
                max_slots=held.slots,
                made_by=held.made_by_id,
            )
            begun = await launches.begin(held, lent.id)
        if not begun:
            await self._credentials.take_back(lent.id)
            return False
        try:
            reference = await provisioner.start(self._order(held, lent.key))
        except LaunchRefused as refused:
            return await self._stop(held, Step(LaunchVerb.STOP, str(refused), counts=True))
        except Unavailable as away:
            await self._credentials.take_back(lent.id)
            log.warning("launch put off", extra={"launch": str(held.id), "cause": away.message})
            await launches.put_off(self._database, held, away.message)
            return False
        await launches.started(self._database, held, reference)
        return True

    async def _go_on(self, held: Claimed) -> bool:
        """Nothing moves it: tell its agent what it should know by now, and look again later."""
        if held.state is LaunchState.DRAINING and held.connected and not held.told and held.agent_id is not None:
            await sessions.set_pause(
                self._database, held.team_id, held.agent_id, sessions.DRAINING, "its pool needs it no longer"
            )
            self._publisher.agent_look(held.team_id, held.agent_id)
            self._publisher.agents_changed(held.team_id, held.agent_id)
        if held.state is LaunchState.RUNNING and held.linked and held.connected_for >= self._times.settle:
            self._tell(await launches.unlink(self._database, held))
        return False

    async def _stop(self, held: Claimed, why: Step) -> bool:
        moved = await launches.stop(self._database, held, why.error, counts=why.counts, time_scale=self._time_scale)
        if moved is None:
            return False
        if why.error is not None:
            log.warning("a launch came to nothing", extra={"launch": str(held.id), "cause": why.error})
        self._tell(moved)
        return True

    async def _clear(self, held: Claimed) -> bool:
        """Revoke its key first, then remove what is left of it."""
        if held.credential_id is not None:
            await self._credentials.take_back(held.credential_id)
        if (provisioner := self._provisioners.get(held.provisioner)) is not None:
            await provisioner.stop(held.id)
        if held.agent_id is not None:
            self._publisher.agents_changed(held.team_id, held.agent_id)
        return await launches.settle(self._database, held, end(held.error))

    def _order(self, held: Claimed, key: str) -> LaunchOrder:
        return LaunchOrder(
            launch_id=held.id,
            team_id=held.team_id,
            pool=held.pool,
            agent_name=held.agent_name,
            labels=held.labels,
            slots=held.slots,
            url=self._url,
            settings=held.settings,
            key=key,
        )

    def _tell(self, moved: Sequence[Moved]) -> None:
        epoch = self._database.log_epoch
        for each in moved:
            batch = Batch(epoch, each.event.seq, each.event.seq, each.state, (each.event,))
            self._publisher.task_changed(each.team_id, each.task_id, batch)
