"""A team's tasks as a state machine: any verb, by anybody, with any lease that was ever given, at any time.

    submit .. place .. acknowledge .. report .. finish        people, agents and the clock, in any order
      grants: every lease that any agent ever held, so that stale ones are used in every rule
      strangers: another team, which must neither see nor move anything

What each verb answers is judged in `acts`, what holds after each step in `promises`. Compound rules go where a walk of
single steps rarely comes: a lease that expired and was taken again, late finishes, an absence of the server.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from app.domain.errors import NotFound, Unauthenticated
from app.domain.lease import Lease
from app.domain.task import TaskState
from app.persistence.hot import Fence
from app.services.dispatch import AgentConnection
from app.services.tasks import TaskFilter
from app.storage.local import LocalStore
from tests.model.acts import Box, Cast
from tests.model.promises import Present, Watcher, Witness, idle_beside_waiting, parked_beside_a_permit
from tests.model.world import TIMINGS, ModelWorld
from tests.waiting import until

T = TypeVar("T")

BEHIND = st.sampled_from([0, 0, 0, 0, 1, 2])
"""How many connects ago the connection was opened that a verb comes by."""
AHEAD = st.sampled_from([1, 1, 0, 2])
"""How far a report's number is from the last one."""
NAMES = st.sampled_from(["a", "b", "c"])
WORKFLOW = st.sampled_from(["once", "again", "shared"])
STEP = 12.0  # seconds: less than the gap that counts as our own absence


class LeaseMachine(RuleBasedStateMachine):
    """Subclass it with a world and the loop that it lives in; runs in another thread than that loop."""

    world: ClassVar[ModelWorld]
    store: ClassVar[LocalStore]
    loop: ClassVar[asyncio.AbstractEventLoop]
    seen: ClassVar[Counter[str]]

    tasks = Bundle("tasks")
    grants = Bundle("grants")
    watchers = Bundle("watchers")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it, and let placement come to rest, so that every run of the same steps is the same."""

        async def settled() -> T:
            done = await work
            await self.world.scheduler.settle()
            return done

        return asyncio.run_coroutine_threadsafe(settled(), self.loop).result(60)

    @initialize(target=tasks)
    def begin(self) -> MultipleResults[UUID]:
        ours, theirs = self.run(self.world.fresh())
        self.cast = Cast(world=self.world, store=self.store, team=ours)
        self.strangers = Cast(world=self.world, store=self.store, team=theirs)
        self.witness, self.strange = Witness(), Witness()
        self.readers = [self.run(self.world.reader(ours)) for _ in range(2)]
        self.revoked: set[UUID] = set()
        self.watching: list[Watcher] = []
        self.known: set[Lease] = set()
        self.ours: set[UUID] = set()
        for cast in (self.cast, self.strangers):
            cast.boxes["a"] = Box(name="a", slots=2)
            self.run(cast.connect(cast.boxes["a"]))
        return multiple(*(self._task(self.run(self.cast.submit(name))) for name in ("again", "once", "again")))

    # People

    @rule(
        target=tasks, workflow=WORKFLOW, priority=st.sampled_from([0, 0, 5]), wait=st.sampled_from([None, None, 20.0])
    )
    def submit(self, workflow: str, priority: int, wait: float | None) -> UUID:
        return self._task(self.run(self.cast.submit(workflow, priority=priority, queue_timeout=wait)))

    @rule(target=tasks, key=st.sampled_from(["k1", "k2", "k3"]), title=st.sampled_from(["A", "A", "B"]))
    def submit_with_key(self, key: str, title: str) -> UUID:
        return self._task(self.run(self.cast.submit("again", title=title, key=key)))

    @rule(target=tasks, task=tasks)
    def rerun(self, task: UUID) -> UUID:
        return self._task(self.run(self.cast.rerun(task)))

    @rule(task=tasks)
    def cancel(self, task: UUID) -> None:
        self.run(self.cast.cancel(task))

    @rule(target=watchers, task=tasks, reader=st.integers(0, 1))
    def watch(self, task: UUID, reader: int) -> Watcher:
        watcher = Watcher(self.world.feed, self.readers[reader], task, epoch=self.world.database.log_epoch)
        self.watching.append(watcher)
        self.run(watcher.resume())
        return watcher

    @rule(watcher=watchers)
    def drop_the_view(self, watcher: Watcher) -> None:
        self.run(watcher.drop())

    @rule(watcher=watchers)
    def resume_the_view(self, watcher: Watcher) -> None:
        self.run(watcher.resume())

    @rule(reader=st.integers(0, 1), sure=st.integers(0, 5))
    def revoke(self, reader: int, sure: int) -> None:
        credential = self.readers[reader].credential_id
        assert credential is not None
        if sure:  # rarely, so that most views live long
            return
        self.run(self.world.credentials.revoke(self.cast.team.owner, credential))
        self.revoked.add(credential)
        theirs = [w for w in self.watching if w.viewer.credential_id == credential and w.open]
        self.run(until(lambda: all(w.finished for w in theirs), within=10, what="revoked views to end"))
        self.cast.happened["revoke"] += 1

    # Agents

    @rule(name=NAMES, slots=st.integers(1, 2))
    def connect(self, name: str, slots: int) -> None:
        box = self.cast.boxes.setdefault(name, Box(name=name, slots=slots))
        self.run(self.cast.connect(box, holding=self._holding(box)))

    @rule(name=NAMES)
    def connect_with_a_wrong_secret(self, name: str) -> None:
        if (box := self.cast.boxes.get(name)) and box.secret:
            self.run(self.cast.connect(box, secret="wrong"))

    @rule(name=NAMES)
    def restart(self, name: str) -> None:
        if (box := self._box(name)) is not None:
            self.run(self.cast.restart(box))

    @rule(name=NAMES)
    def leave(self, name: str) -> None:
        if (box := self._box(name)) is not None:
            self.run(self.cast.leave(box))

    @rule(name=NAMES, forgets=st.sampled_from([False, False, False, True]))
    def beat(self, name: str, forgets: bool) -> None:
        if (box := self._box(name)) is not None:
            self.run(self.cast.beat(box, forgets=forgets))

    @rule(name=NAMES, behind=st.integers(1, 2))
    def beat_by_an_older_connection(self, name: str, behind: int) -> None:
        if (box := self._box(name)) is not None:
            self.run(self.cast.beat_by(self.cast.stale(box, behind)))

    @rule(target=grants, name=NAMES, takes=st.sampled_from([True, True, False]))
    def look_at_orders(self, name: str, takes: bool) -> MultipleResults[Lease]:
        """Leases that are new to the agent, acknowledged at once or left."""
        box = self._box(name)
        return multiple(*(self.run(self._orders(box, takes=takes)) if box else ()))

    @rule(grant=grants, behind=BEHIND)
    def acknowledge(self, grant: Lease, behind: int) -> None:
        if (by := self._by(grant, behind)) is not None:
            self.run(self.cast.acknowledge(grant, by))

    @rule(grant=grants, behind=BEHIND, ahead=AHEAD)
    def report(self, grant: Lease, behind: int, ahead: int) -> None:
        if (by := self._by(grant, behind)) is not None:
            self.run(self.cast.report(grant, by, ahead=ahead))

    @rule(grant=grants, behind=BEHIND, name=st.sampled_from(["one.txt", "two.txt"]))
    def output(self, grant: Lease, behind: int, name: str) -> None:
        if (by := self._by(grant, behind)) is not None:
            self.run(self.cast.output(grant, by, name))

    @rule(grant=grants, behind=BEHIND, ok=st.booleans(), ahead=AHEAD)
    def finish(self, grant: Lease, behind: int, ok: bool, ahead: int) -> None:
        if (by := self._by(grant, behind)) is not None:
            self.run(self.cast.finish(grant, by, ok=ok, ahead=ahead))

    @rule(grant=grants, behind=BEHIND)
    def release(self, grant: Lease, behind: int) -> None:
        if (by := self._by(grant, behind)) is not None:
            self.run(self.cast.release(grant, by))

    @rule(target=grants, name=NAMES, ahead=AHEAD, brings=st.booleans())
    def work(self, name: str, ahead: int, brings: bool) -> MultipleResults[Lease]:
        """What an agent does all day: it takes what it is given, and reports on all that it works on."""
        box = self._box(name)
        if box is None or box.connection is None or not self.run(self.cast.beat(box)):
            return multiple()
        new = self.run(self._orders(box, takes=True))
        for task_id, number in sorted(box.working):
            lease = Lease(task_id, box.connection.agent_id, number, 1)
            self.run(self.cast.report(lease, box.connection, ahead=1))
            self.run(self.cast.report(lease, box.connection, ahead=ahead))
            if brings:
                self.run(self.cast.output(lease, box.connection, "one.txt"))
        return multiple(*new)

    @rule(name=NAMES, ok=st.booleans(), ahead=AHEAD)
    def end_work(self, name: str, ok: bool, ahead: int) -> None:
        """An agent finishes the first of what it works on."""
        box = self._box(name)
        if box is not None and box.connection is not None and box.working:
            task_id, number = min(box.working)
            lease = Lease(task_id, box.connection.agent_id, number, 1)
            self.run(self.cast.finish(lease, box.connection, ok=ok, ahead=ahead))

    @rule(grant=grants, name=NAMES)
    def use_the_token_of_another(self, grant: Lease, name: str) -> None:
        box = self._box(name)
        if box is not None and box.connection is not None and box.connection.agent_id != grant.agent_id:
            assert self.run(self.cast.acknowledge(grant, box.connection)) is Fence.LEASE_LOST
            assert self.run(self.cast.report(grant, box.connection, ahead=1)) is Fence.LEASE_LOST
            assert self.run(self.cast.finish(grant, box.connection, ok=True)) is Fence.LEASE_LOST
            self.run(self.cast.release(grant, box.connection))

    # The clock

    @rule(seconds=st.sampled_from([1.0, 3.0, 5.0, 11.0, 12.0]))
    def tick(self, seconds: float) -> None:
        self.run(self.world.tick(seconds))

    @rule()
    def sweep(self) -> None:
        self.run(self.cast.sweep())

    @rule()
    def due(self) -> None:
        self.run(self.cast.due())

    @rule()
    def place(self) -> None:
        """After a full pass nothing waits beside a free slot."""
        self.run(self.world.scheduler.place_all())
        self.cast.swept = False
        assert not idle_beside_waiting(self.run(Present.read(self.world.admin, self.cast.team.id)))

    # Deep paths

    @precondition(lambda self: any(box.connection for box in self.cast.boxes.values()))
    @rule(target=grants, name=NAMES)
    def expire_and_reclaim(self, name: str) -> MultipleResults[Lease]:
        """An agent falls silent, loses what it had, and comes back as a new process; its old tokens are dead."""
        box = self._box(name)
        if box is None or box.connection is None:
            return multiple()
        self.run(self.world.scheduler.place_all())
        old = [lease for lease in self.known if lease.agent_id == box.connection.agent_id]
        new = self.run(self._orders(box, takes=True))
        self._silence(box)
        assert not self.run(self.cast.beat(box))
        for lease in (*old[-3:], *new):
            assert self.run(self.cast.report(lease, box.connection, ahead=1)) is Fence.LEASE_LOST
        self.run(self.cast.restart(box))
        self.run(self.world.scheduler.place_all())
        taken = self.run(self._orders(box, takes=True))
        for lease in new:
            assert self.run(self.cast.finish(lease, box.connection, ok=True)) is Fence.LEASE_LOST
        self.cast.happened["expire and reclaim"] += bool(new)
        return multiple(*new, *taken)

    @rule(target=grants, grant=grants)
    def reclaim_by_same_agent(self, grant: Lease) -> MultipleResults[Lease]:
        """The process forgets a lease, the server takes it, and the same process is given the task again."""
        box = self._owner(grant)
        if box is None or not self.run(self.cast.beat(box)):
            return multiple()
        assert box.connection is not None
        self.run(self.cast.beat(box, forgets=True))
        for _ in range(3):
            self.run(self.world.tick(STEP))
            self._beat_all()
            self.run(self.cast.sweep())
        self.run(self.cast.due())
        self.run(self.world.scheduler.place_all())
        taken = self.run(self._orders(box, takes=True))
        again = [lease for lease in taken if lease.task_id == grant.task_id]
        if again:
            assert again[0].number > grant.number
            assert self.run(self.cast.finish(grant, box.connection, ok=True)) is not Fence.ACCEPTED
            assert self.run(self.cast.report(again[0], box.connection, ahead=1)) is Fence.ACCEPTED
            self.cast.happened["reclaimed by the same agent"] += 1
        return multiple(*taken)

    @rule(grant=grants)
    def cancel_then_late_finish(self, grant: Lease) -> None:
        box = self._owner(grant)
        if box is not None and box.connection is not None:
            state = self.run(self.cast.cancel(grant.task_id))
            fence = self.run(self.cast.finish(grant, box.connection, ok=True))
            assert fence is not Fence.ACCEPTED
            assert self.run(self.cast.get(grant.task_id)).state is state
            self.cast.happened["late finish after a cancel"] += state is TaskState.CANCELLED

    @rule(grant=grants)
    def finish_then_cancel(self, grant: Lease) -> None:
        box = self._owner(grant)
        if box is None or box.connection is None:
            return
        if self.run(self.cast.finish(grant, box.connection, ok=True)) is Fence.ACCEPTED:
            assert self.run(self.cast.cancel(grant.task_id)) is TaskState.COMPLETED
            self.cast.happened["cancel after a finish"] += 1

    @rule(away=st.sampled_from([20.0, 90.0, 600.0]))
    def outage_then_sweep(self, away: float) -> None:
        """We were away: nobody is declared dead for it, and whoever is there again within the grace goes on."""
        self.run(self.world.tick(away))
        assert self.run(self.cast.sweep()) == set()
        self.run(self.world.tick(STEP))
        assert self.run(self.cast.sweep()) == set()
        self._beat_all()
        self.cast.happened["outage"] += 1

    # Another team

    @rule(workflow=WORKFLOW)
    def strangers_submit(self, workflow: str) -> None:
        self.run(self.strangers.submit(workflow))

    @rule(task=tasks)
    def strangers_ask(self, task: UUID) -> None:
        self.run(self._strangers_ask(task))

    @rule(grant=grants)
    def strangers_use_a_token(self, grant: Lease) -> None:
        by = self.strangers.boxes["a"].connection
        assert by is not None
        assert self.run(self.cast.acknowledge(grant, by)) is Fence.LEASE_LOST
        assert self.run(self.cast.finish(grant, by, ok=True)) is Fence.LEASE_LOST
        orders = self.run(self.strangers.orders(self.strangers.boxes["a"]))
        assert not {order.task_id for order in orders} & self.ours

    # Promises

    @invariant()
    def promises(self) -> None:
        if not hasattr(self, "cast"):
            return
        self.run(self._promises())

    def teardown(self) -> None:
        if hasattr(self, "cast"):
            self.run(self._end())
            self.seen.update(self.cast.happened)

    async def _promises(self) -> None:
        now = await Present.read(self.world.admin, self.cast.team.id)
        self.witness.check(now)
        self.strange.check(await Present.read(self.world.admin, self.strangers.team.id))
        assert {UUID(id) for id in now.tasks} == self.ours, "what was submitted is there, and nothing else"
        for watcher in self.watching:
            watcher.check(now.events[str(watcher.task_id)])
        await self.cast.check_owed()
        self.cast.happened["parked"] += bool(now.blocked)
        assert self.cast.swept or not parked_beside_a_permit(now), "nothing is parked beside a free permit"

    async def _end(self) -> None:
        """Every view that may go on has heard everything in the end."""
        now = await Present.read(self.world.admin, self.cast.team.id)
        for watcher in self.watching:
            log = now.events[str(watcher.task_id)]
            if watcher.viewer.credential_id in self.revoked:
                assert watcher.refused is None or isinstance(watcher.refused, Unauthenticated)
            else:
                await watcher.resume()
                await watcher.hears(len(log))
            watcher.check(log)
        for watcher in self.watching:
            await watcher.drop()

    async def _strangers_ask(self, task: UUID) -> None:
        tasks, viewer = self.world.tasks, self.strangers.team.owner
        assert await tasks.by_ids(viewer, [task]) == {}
        assert await tasks.details(viewer, [task]) == {}
        [outcome] = await tasks.cancel(viewer, [task])
        assert isinstance(outcome.refusal, NotFound)
        page = await tasks.page(viewer, self.strangers.team.id, TaskFilter(), limit=100, before=None)
        assert {each.team_id for each in page} <= {self.strangers.team.id}
        watcher = Watcher(self.world.feed, viewer, task, epoch=self.world.database.log_epoch)
        await watcher.resume()
        await until(lambda: watcher.finished, what="a stranger's view to be refused")
        assert isinstance(watcher.refused, NotFound)
        assert watcher.events == []

    async def _orders(self, box: Box, *, takes: bool) -> list[Lease]:
        new = [lease for lease in await self.cast.orders(box) if lease not in self.known]
        self.known.update(new)
        for lease in new if takes else ():
            assert box.connection is not None
            await self.cast.acknowledge(lease, box.connection)
        return new

    def _silence(self, box: Box) -> None:
        """Longer than a lease lasts, while the others beat and we are there all the time."""
        for _ in range(int(TIMINGS.lease / STEP) + 1):
            self.run(self.world.tick(STEP))
            self._beat_all(but=box)
            self.run(self.cast.sweep())
        for _ in range(8):  # a grace after an absence may still have been running
            session = self.run(self.world.admin.fetchval(_ALIVE, box.connection and box.connection.agent_id))
            if not session:
                return
            self.run(self.world.tick(STEP))
            self._beat_all(but=box)
            self.run(self.cast.sweep())
        raise AssertionError("an agent that is silent is found out")

    def _beat_all(self, *, but: Box | None = None) -> None:
        for box in self.cast.boxes.values():
            if box is not but and box.connection is not None:
                self.run(self.cast.beat(box))

    def _holding(self, box: Box) -> list[str]:
        if box.connection is None:
            return []
        agent = box.connection.agent_id
        return [self.run(self.cast.token(where, agent)) for where in sorted(box.working)]

    def _box(self, name: str) -> Box | None:
        box = self.cast.boxes.get(name)
        return box if box is not None and box.connection is not None else None

    def _owner(self, grant: Lease) -> Box | None:
        boxes = self.cast.boxes.values()
        return next((box for box in boxes if box.connection and box.connection.agent_id == grant.agent_id), None)

    def _by(self, grant: Lease, behind: int) -> AgentConnection | None:
        box = self._owner(grant)
        return self.cast.stale(box, behind) if box else None

    def _task(self, task: UUID) -> UUID:
        self.ours.add(task)
        return task


_ALIVE = "SELECT alive FROM agent_session WHERE agent_id = $1"
