"""Agents' connections: who may be which agent, what each one is to do, and what it forgot.

    connect -> orders .. beat(holding) .. -> gone

Orders are level-triggered: they are read from the slots, on connect, on each hint and when a poll finds something else
there; a connection is sent what it has not been told yet. Invariants:

1. An agent is (team, name). Its first connect returns a secret that later ones need; labels and slots are claims that
   its key bounds.
2. A lease that the agent no longer holds for `forgotten` seconds is lost; a token that the server no longer knows is
   dropped by the agent. So neither side keeps alive what the other has let go.
3. What is remembered of an agent is bounded by its slots, however long it stays and however often it comes.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from app.domain import lease as tokens
from app.domain.agent import Introduction, check_introduction
from app.domain.errors import AgentTaken, Busy, Forbidden, LeaseLost
from app.domain.lease import Lease
from app.persistence import sessions
from app.persistence.database import Database
from app.persistence.hot import Reclaimed
from app.persistence.placement import Order, PlacementReads, Standing
from app.persistence.reconnects import Comeback, Reconnected
from app.persistence.sessions import Connected, Hello, KnownAgent, NameKnown, Taken
from app.services.access import AgentIdentity
from app.services.departure import spread
from app.services.dispatch import AgentConnection
from app.services.feed import FeedService
from app.services.feed_publisher import FeedPublisher
from app.services.introductions import hashed, new_secret, registration_of
from app.services.orders import AgentOrder, Orders, Reconnect, rest_of
from app.services.ports import Quota
from app.services.reclaims import tell_reclaimed
from app.services.scheduler import Scheduler
from app.services.uploads import UploadService
from app.services.workflows import WorkflowService

LONGEST_SPREAD = 18.0  # seconds; agents wait up to a fifth longer, and are back before a lease of 30 s ends
CONNECTS = 10  # of one agent in a minute
CONNECTING = 256  # agents that connect the long way or wait for it: about a second's worth
AT_ONCE = 3  # of them, so that reports and others find a connection to the database meanwhile
COME_BACK = (1.0, 3.0)  # seconds, for the others
COMPARE_EVERY = 30.0  # seconds between two looks at what an agent holds that says nothing surprising


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """A new session. `secret` comes once, on the first connect of a name; times are in seconds."""

    connection: AgentConnection
    keep: tuple[str, ...]
    drop: tuple[str, ...]
    lease: float
    beat: float
    secret: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTimes:
    """In seconds: between beats, from a cancel to the kill, and until a lease that an agent does not hold is lost.

    `connects` counts the connects of each agent; without it anybody may connect as often as they like.
    """

    beat: float = 5.0
    grace: float = 10.0
    forgotten: float = 10.0
    minute: float = 60.0  # in which an agent may connect `CONNECTS` times
    connects: Quota | None = None


@dataclass(slots=True)
class _Known:
    """What this process remembers of an agent's newest session; without `holding` nothing was compared yet."""

    session_no: int
    accepting: bool | None = None  # as it has said; None: not here
    heard_at: float = 0.0
    holding: frozenset[str] | None = None
    compared_at: float = 0.0
    missing_since: dict[Lease, float] = field(default_factory=dict)


class ConnectionService:
    """For agents alone; its methods take the key's identity or the connection that it opened."""

    def __init__(
        self,
        *,
        database: Database,
        placement: PlacementReads,
        feed: FeedService,
        publisher: FeedPublisher,
        scheduler: Scheduler,
        workflows: WorkflowService,
        uploads: UploadService,
        token_keys: Sequence[bytes],
        replica: str,
        times: AgentTimes,
    ) -> None:
        self._database = database
        self._placement = placement
        self._feed = feed
        self._publisher = publisher
        self._scheduler = scheduler
        self._keys = token_keys
        self._replica = replica
        self._times = times
        self._orders = Orders(
            database=database,
            publisher=publisher,
            scheduler=scheduler,
            workflows=workflows,
            uploads=uploads,
            token_keys=token_keys,
            grace=times.grace,
        )
        self._known: dict[UUID, _Known] = {}
        self._connecting = 0  # the long way
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._listening = 0  # connections that follow their orders
        self._spread: float | None = None  # seconds, once this process is leaving

    def drain(self) -> None:
        """Order every agent that is connected here, or comes yet, to connect elsewhere, after a pause of its own."""
        self._spread = spread(self._listening, most=LONGEST_SPREAD)
        self._feed.look_again()

    async def connect(self, identity: AgentIdentity, introduction: Introduction) -> Welcome:
        """Begin a session of the agent with this name; idempotent for an instance.

        Raises `AgentTaken` while another process of the name beats, `Forbidden` for a wrong secret, `InvalidInput` with
        every fault, `Busy` for more than ten connects a minute. Labels and slots beyond what the key allows are left
        out: they are claims.
        """
        checked = check_introduction(introduction, labels=identity.labels, max_slots=identity.max_slots)
        await self._count(identity, checked)
        held = self._held(checked.holding)
        if (again := await self._reconnect(identity, checked, held)) is not None:
            connection = AgentConnection(identity=identity, agent_id=again.agent_id, session_no=again.session_no)
            return self._welcome(connection, held, again.living, again)
        async with self._turn():
            return await self._connect(identity, checked, held)

    async def _connect(
        self, identity: AgentIdentity, checked: Introduction, held: Mapping[str, Lease | None]
    ) -> Welcome:
        for _ in range(2):  # again where what was found is no longer so, as another first connect took the name
            known = await sessions.find_agent(self._database, identity.team_id, checked.name)
            secret = new_secret(identity, checked, known)
            hello = self._hello(identity, checked, known, secret)
            answer = await sessions.connect(self._database, hello)
            if not isinstance(answer, NameKnown):
                break
        if isinstance(answer, Taken):
            wait = answer.retry_after
            raise AgentTaken(f"another process is {checked.name!r} and gives signs of life", retry_after=wait)
        if isinstance(answer, NameKnown):
            raise Forbidden(f"the name {checked.name!r} was taken by another agent: its secret is needed")
        connection = AgentConnection(identity=identity, agent_id=answer.agent_id, session_no=answer.session_no)
        self._tell_reclaimed(answer.reclaimed)
        living = {(lease.task_id, lease.number) for lease in answer.keep}
        return self._welcome(connection, held, living, answer, secret)

    async def _reconnect(
        self, identity: AgentIdentity, checked: Introduction, held: Mapping[str, Lease | None]
    ) -> Reconnected | None:
        if checked.secret is None:
            return None
        return await self._database.batched.reconnect(
            Comeback(
                team_id=identity.team_id,
                name=checked.name,
                secret_hash=hashed(checked.secret),
                registration=registration_of(identity, checked),
                instance_id=checked.instance_id,
                replica=self._replica,
                holding=tuple(lease for lease in held.values() if lease),
            )
        )

    def _welcome(
        self,
        connection: AgentConnection,
        held: Mapping[str, Lease | None],
        living: Collection[tuple[UUID, int]],
        begun: Connected | Reconnected,
        secret: str | None = None,
    ) -> Welcome:
        """Tell everybody of the new session, and the agent what goes on of what it holds."""
        team_id, agent_id, now = connection.team_id, connection.agent_id, time.monotonic()
        self._known[agent_id] = _Known(
            connection.session_no, accepting=begun.accepting, missing_since=dict.fromkeys(begun.missing, now)
        )
        self._scheduler.let_go(team_id, agent_id)
        self._publisher.agents_changed(team_id, agent_id)
        self._publisher.agent_look(team_id, agent_id)  # an older connection finds that it is over
        return Welcome(
            connection=connection,
            keep=tuple(token for token, lease in held.items() if lease and (lease.task_id, lease.number) in living),
            drop=tuple(t for t, lease in held.items() if not lease or (lease.task_id, lease.number) not in living),
            lease=self._database.hot.timings.lease,
            beat=self._times.beat,
            secret=secret,
        )

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Of the connects that take many statements each; raises `Busy` where too many wait for theirs."""
        if self._connecting >= CONNECTING:
            raise Busy("very many agents connect at this moment", retry_after=random.uniform(*COME_BACK))
        self._connecting += 1
        try:
            async with self._turns:
                yield
        finally:
            self._connecting -= 1

    async def _count(self, identity: AgentIdentity, said: Introduction) -> None:
        """Before any statement; by the secret too, so that who only knows the name uses up nothing of the agent's."""
        if self._times.connects is not None:
            who = f"connect {identity.team_id} {hashed(said.secret)} {said.name}"
            window = timedelta(seconds=self._times.minute)
            if wait := await self._times.connects.take(who, limit=CONNECTS, window=window):
                raise Busy(f"{said.name!r} has connected more than {CONNECTS} times in a minute", retry_after=wait)

    async def orders(self, agent: AgentConnection) -> AsyncGenerator[list[AgentOrder], None]:
        """What the agent has not been told on this connection, at once and whenever it changes, for ever.

        Ends with `Reconnect` when this process drains. Raises `LeaseLost` once another connection has taken over.
        """
        told: set[tuple[UUID, int, bool]] = set()
        pause: str | None = None
        async with self._counted(), aclosing(self._feed.watch_agent(agent.team_id, agent.agent_id)) as looks:
            async for _ in looks:
                if self._spread is not None:
                    yield [Reconnect(after=random.uniform(0, self._spread))]
                    return
                standing = await self._read(agent)
                fresh = [order for order in standing.orders if _state(order) not in told]
                batch: list[AgentOrder] = [] if standing.pause == pause else [rest_of(standing)]
                batch += [order for each in fresh if (order := await self._orders.of(agent, each)) is not None]
                told, pause = {_state(order) for order in standing.orders}, standing.pause
                if batch:
                    yield batch

    async def beat(self, agent: AgentConnection, holding: Sequence[str], *, accepting: bool = True) -> list[str]:
        """A sign of life; returns the tokens to drop. Raises `LeaseLost` where the session is over.

        Who accepts nothing new is given nothing from here on, and what it was given but does not hold waits again.
        """
        if not await self._database.batched.beat(agent.agent_id, agent.session_no):
            raise LeaseLost(f"session {agent.session_no} of this agent is over: connect again")
        known = self._remember(agent)
        if accepting is not known.accepting:
            await self._accept(agent, holding, accepting)
            known.accepting = accepting
        now = time.monotonic()
        if known.missing_since or known.holding != frozenset(holding) or now - known.compared_at > COMPARE_EVERY:
            known.holding, known.compared_at = frozenset(holding), now
            return await self._compare(agent, holding, known, now)
        return []

    def heard(self, agent: AgentConnection) -> None:
        """Whatever an agent says is a sign of life; it is written with the beats of others, and waits for nothing."""
        known, now = self._remember(agent), time.monotonic()
        if now - known.heard_at >= self._times.beat / 2:
            known.heard_at = now
            self._database.batched.heard(agent.agent_id, agent.session_no)

    def _remember(self, agent: AgentConnection) -> _Known:
        known = self._known.get(agent.agent_id)
        if known is None or known.session_no < agent.session_no:  # by HTTP another replica may have answered so far
            known = self._known[agent.agent_id] = _Known(agent.session_no)
        return known if known.session_no == agent.session_no else _Known(agent.session_no)

    async def _accept(self, agent: AgentConnection, holding: Sequence[str], accepting: bool) -> None:
        await sessions.set_accepting(self._database, agent.agent_id, agent.session_no, accepting)
        self._publisher.agents_changed(agent.team_id, agent.agent_id)
        if accepting:
            self._scheduler.freed(agent.team_id, agent.agent_id)
            return
        held = {(lease.task_id, lease.number) for lease in self._held(holding).values() if lease}
        declined = [
            _lease_of(agent, order)
            for order in (await self._read(agent)).orders
            if order.alive and not order.acknowledged and (order.task_id, order.lease_no) not in held
        ]
        if declined:
            self._tell_reclaimed(await self._database.hot.reclaim(declined, cause="declined"))

    async def leave(self, agent: AgentConnection) -> None:
        """The connection has ended; its leases live on until the session falls silent."""
        known = self._known.get(agent.agent_id)
        if known is not None and known.session_no == agent.session_no:
            del self._known[agent.agent_id]
        await sessions.leave(self._database, agent.agent_id, agent.session_no)

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self._listening += 1
        try:
            yield
        finally:
            self._listening -= 1

    async def _compare(self, agent: AgentConnection, holding: Sequence[str], known: _Known, now: float) -> list[str]:
        orders = (await self._read(agent)).orders
        living = {(order.task_id, order.lease_no): order for order in orders if order.alive}
        held = self._held(holding)
        places = {(lease.task_id, lease.number) for lease in held.values() if lease}
        missing = [
            _lease_of(agent, order) for place, order in living.items() if order.acknowledged and place not in places
        ]
        known.missing_since = {lease: known.missing_since.get(lease, now) for lease in missing}
        forgotten = [lease for lease, since in known.missing_since.items() if now - since >= self._times.forgotten]
        if forgotten:
            self._tell_reclaimed(await self._database.hot.reclaim(forgotten, cause="forgotten"))
        return [token for token, lease in held.items() if not lease or (lease.task_id, lease.number) not in living]

    async def _read(self, agent: AgentConnection) -> Standing:
        standing = await self._placement.standing(agent.agent_id, agent.session_no)
        if standing is None:
            raise LeaseLost(f"session {agent.session_no} of this agent is over: connect again")
        return standing

    def _hello(
        self, identity: AgentIdentity, checked: Introduction, known: KnownAgent | None, secret: str | None
    ) -> Hello:
        registration = registration_of(identity, checked)
        as_before = known is not None and secret is None and known.registration == registration
        return Hello(
            team_id=identity.team_id,
            name=checked.name,
            agent_id=known.id if known else None,
            secret_hash=hashed(secret) if secret is not None or known is None else known.secret_hash,
            credential_id=identity.credential_id,
            instance_id=checked.instance_id,
            labels=tuple(checked.labels),
            facts=dict(checked.facts),
            slots=checked.slots,
            version=checked.version,
            replica=self._replica,
            registration=registration,
            known=as_before and known is not None and known.pause != sessions.DRAINING,
            workflows=None if identity.workflows is None else tuple(identity.workflows),
            holding=tuple(lease for lease in self._held(checked.holding).values() if lease),
        )

    def _held(self, holding: Sequence[str]) -> dict[str, Lease | None]:
        """Each token with the lease that it proves; None for what is no token of ours."""
        return {token: _lease(token, self._keys) for token in holding}

    def _tell_reclaimed(self, reclaimed: Sequence[Reclaimed]) -> None:
        tell_reclaimed(reclaimed, self._publisher, self._scheduler, self._database.log_epoch)


def _state(order: Order) -> tuple[UUID, int, bool]:
    return order.task_id, order.lease_no, order.alive


def _lease_of(agent: AgentConnection, order: Order) -> Lease:
    return Lease(order.task_id, agent.agent_id, order.lease_no, order.attempt)


def _lease(token: str, keys: Sequence[bytes]) -> Lease | None:
    try:
        return tokens.read(token, keys)
    except LeaseLost:
        return None
