"""What breaks in a chaos run, when and for how long, all drawn from one seed, and written down as it happens.

    replica_kill       SIGKILL of one of the replicas, every 10 to 25 s; the others serve
    agent_kill         SIGKILL of an agent, every 5 s; it is started anew, sometimes only after its lease has ended
    agent_stop         SIGSTOP of an agent for longer than its lease, every 20 s
    redis_kill         SIGKILL of Valkey, which comes back empty, every 45 s
    database_restart   immediate shutdown of PostgreSQL, every 60 s: all connections break, and its log is replayed
    link_fault         one to ten seconds of a bad network between agents and a replica, or a replica and Valkey,
                       every 15 s

Of `PAIRED` each two are made to happen at one time: whichever comes next takes a partner with it that it has not met.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tests.chaos.ledger import Ledger, Outcome, run_until
from tests.chaos.site import OverheardAgent, Site
from tests.e2e.world import Replica
from tests.faults.proxy import Cut, Delay, Drip, Fault, Hold, Lose, Proxy
from tests.waiting import until

KINDS = ("replica_kill", "agent_kill", "agent_stop", "redis_kill", "database_restart", "link_fault")
PAIRED = ("replica_kill", "agent_stop", "redis_kill", "database_restart")
PAIRS = frozenset(frozenset(pair) for pair in itertools.combinations(PAIRED, 2))
MANY = ("agent_kill", "agent_stop")  # several may be away at a time; of the others it is one
USUAL = 240.0  # seconds of a run for which these are meant; a shorter one has the rare ones as often
RARE = {"redis_kill": 45.0, "database_restart": 60.0}
TRIES = 4  # of each pair in the end, where it never met
START = 90.0  # seconds for a process to be back
EFFECT = 30.0  # seconds that a fault of a link may wait for traffic


@dataclass(frozen=True, slots=True)
class Struck:
    """One fault, from its first moment until all was whole again."""

    kind: str
    target: str
    began: float
    ended: float

    def overlaps(self, other: "Struck") -> bool:
        return self.began < other.ended and other.began < self.ended


@dataclass
class Nemesis:
    """Breaks things from `run` until it is stopped; afterwards everything is there again."""

    site: Site
    seed: int
    seconds: float
    ledger: Ledger
    struck: list[Struck] = field(default_factory=list)
    deaths: dict[int, float] = field(default_factory=dict)  # of agents' processes, by id
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _away: set[str] = field(default_factory=set)  # agents that are down or stopped
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def run(self) -> None:
        """Until `stop`, and until all is mended; raises what a fault of the test itself raised."""
        loops = [
            ("replica_kill", 10.0, 25.0),
            ("agent_kill", 4.0, 6.0),
            ("agent_stop", 18.0, 22.0),
            ("link_fault", 13.0, 17.0),
            *((kind, 0.9 * self._rare(kind), 1.1 * self._rare(kind)) for kind in RARE),
        ]
        async with asyncio.TaskGroup() as group:
            for kind, least, most in loops:
                group.create_task(self._every(group, kind, least, most))

    def stop(self) -> None:
        """No fault begins any more."""
        self._over.set()

    async def meet(self) -> None:
        """Bring about each pair that chance did not."""
        for pair in sorted(sorted(pair) for pair in PAIRS):
            for number in range(TRIES):
                if frozenset(pair) not in self.met:
                    chances = [random.Random(f"{self.seed} meet {number} {kind}") for kind in pair]
                    await asyncio.gather(*map(self._strike, pair, chances))

    @property
    def counts(self) -> dict[str, int]:
        """How often each kind has really happened."""
        return {kind: sum(each.kind == kind for each in self.struck) for kind in KINDS}

    @property
    def met(self) -> dict[frozenset[str], int]:
        """How often faults of two kinds were there at one time, by pair."""
        found = [
            frozenset((one.kind, two.kind))
            for one, two in itertools.combinations(self.struck, 2)
            if frozenset((one.kind, two.kind)) in PAIRS and one.overlaps(two)
        ]
        return {pair: found.count(pair) for pair in PAIRS if pair in found}

    def _rare(self, kind: str) -> float:
        return RARE[kind] * min(1.0, self.seconds / USUAL)

    async def _every(self, group: asyncio.TaskGroup, kind: str, least: float, most: float) -> None:
        pauses = random.Random(f"{self.seed} {kind}")
        for number in itertools.count():
            if not await run_until(self._over, pauses.uniform(least, most)):
                return
            partner = next((other for other in PAIRED if frozenset((kind, other)) in PAIRS - set(self.met)), None)
            strikes = [
                group.create_task(self._strike(each, random.Random(f"{self.seed} {kind} {number} {each}")))
                for each in ([kind] if partner is None else [kind, partner])
            ]
            if kind not in MANY:
                await asyncio.wait(strikes)

    async def _strike(self, kind: str, chance: random.Random) -> None:
        """One fault, mended; of some kinds there is one at a time."""
        await asyncio.sleep(chance.random())
        deed: Callable[[random.Random], Awaitable[None]] = getattr(self, f"_{kind}")
        if kind in MANY:
            await deed(chance)
            return
        async with self._locks.setdefault(kind, asyncio.Lock()):
            await deed(chance)

    @contextlib.asynccontextmanager
    async def _fault(self, kind: str, target: str) -> AsyncIterator[Outcome]:
        began = time.monotonic()
        with self.ledger.call("fault", "nemesis", kind=kind, target=target) as outcome:
            yield outcome
            outcome.type = "ok"
        if outcome.value is not False:  # it had an effect
            self.struck.append(Struck(kind, target, began, time.monotonic()))

    async def _replica_kill(self, chance: random.Random) -> None:
        replica = chance.choice(self.site.replicas)
        async with self._fault("replica_kill", replica.name):
            await replica.kill()
            await asyncio.sleep(chance.uniform(0, 1))
            await _started(replica)

    async def _agent_kill(self, chance: random.Random) -> None:
        async with self._agent(chance) as agent, self._fault("agent_kill", agent.name):
            pid = agent.pid
            await agent.kill()
            self.deaths[pid] = time.monotonic()
            late = chance.random() < 0.2
            await asyncio.sleep(chance.uniform(1.2, 1.6) * self.site.lease if late else chance.uniform(0, 2))
            await agent.start()

    async def _agent_stop(self, chance: random.Random) -> None:
        async with self._agent(chance) as agent, self._fault("agent_stop", agent.name):
            agent.pause()
            await asyncio.sleep(chance.uniform(1.3, 2.2) * self.site.lease)
            agent.resume()

    async def _redis_kill(self, chance: random.Random) -> None:
        async with self._fault("redis_kill", "valkey"):
            await self.site.valkey.kill()
            await asyncio.sleep(chance.uniform(0.2, 3))
            await self.site.valkey.start()

    async def _database_restart(self, chance: random.Random) -> None:
        async with self._fault("database_restart", "postgres"):
            await self.site.postgres.stop()
            await asyncio.sleep(chance.uniform(0, 0.5))
            await self.site.postgres.start()

    async def _link_fault(self, chance: random.Random) -> None:
        name, proxy = chance.choice(self.site.links)
        fault = chance.choice(_BAD)
        async with self._fault("link_fault", f"{name}: {fault or 'refused'}") as outcome:
            before = _effects(proxy)
            proxy.refuse = fault is None
            if fault is None:
                proxy.reset()
            else:
                chance.choice([proxy.up.become, proxy.down.become, proxy.both])(fault)
            # What is held for longer than a lease is said by a zombie when it arrives.
            least = 1.2 * self.site.lease if isinstance(fault, Hold) else 1
            await run_until(self._over, chance.uniform(least, 10))
            if not self._over.is_set():
                with contextlib.suppress(AssertionError):
                    await until(lambda: _effects(proxy) > before, within=EFFECT)
            outcome.value = _effects(proxy) > before
            proxy.heal()

    @contextlib.asynccontextmanager
    async def _agent(self, chance: random.Random) -> AsyncIterator[OverheardAgent]:
        """One that is there, for this fault alone."""
        await until(lambda: len(self._away) < len(self.site.agents) // 2, within=START)
        agent = chance.choice([each for each in self.site.agents if each.name not in self._away])
        self._away.add(agent.name)
        try:
            yield agent
        finally:
            self._away.discard(agent.name)


_BAD: Sequence[Fault | None] = (None, Lose(), Hold(), Hold(), Delay(0.3), Drip(4_000), Cut(5_000))


def _effects(proxy: Proxy) -> int:
    spoiled = sum(way.lost + way.held + way.delayed + way.dripped for way in (proxy.up, proxy.down))
    return spoiled + proxy.resets + proxy.refused


async def _started(replica: Replica) -> None:
    """Start it as a supervisor does: again where what it needs is not there yet."""
    deadline = time.monotonic() + START
    while True:
        try:
            return await replica.start()
        except AssertionError:
            if replica.returncode is None:
                await replica.kill()
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)
