"""Every verb of the agents' contract with a token that is not the caller's: a definitive refusal, and no row moves.

The verbs are those of the contract itself: a new one that is not tried here fails.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.agent.client import Socket
from app.domain.credential import KeyKind
from app.interfaces.agents.schema import build
from tests.integration.agents_site import TIMEOUT, WORKFLOW, Agent, World, introduction, open_site
from tests.viewers import make_owner, team_of

MOVES_BY_ITSELF = frozenset({"agent_session", "credential", "duty"})  # signs of life, marks of last use, rounds

FILE = {"role": "OUTPUT", "name": "a", "mediaType": "text/plain", "size": 1, "sha256": "0" * 64, "parts": []}
OUTPUT = "01990000-0000-7000-8000-000000000000"
EVENT = {"stream": "STDOUT", "level": "INFO", "firstLine": 1, "lines": ["forged"]}


def _report(token: str) -> dict[str, Any]:
    return {"token": token, "number": 1, "events": [EVENT], "progress": {"fraction": 1.0}}


def _saying(token: str) -> dict[str, tuple[dict[str, Any], Any]]:
    """Each verb about a lease: what is said with this token, and the definitive answer."""
    lost = {"__typename": "Refused", "code": "LEASE_LOST"}
    return {
        "acknowledge": ({"tokens": [token]}, ["LEASE_LOST"]),
        "report": (
            {"reports": [_report(token)]},
            [{"status": "LEASE_LOST", "seq": None, "expected": None, "after": None}],
        ),
        "finish": (
            {"results": [{**_report(token), "outcome": "COMPLETED", "result": "forged"}]},
            [{"status": "LEASE_LOST", "state": None, "after": None}],
        ),
        "release": ({"tokens": [token]}, ["RELEASED"]),  # nothing is held by it
        "beginOutputs": ({"token": token, "files": [FILE]}, lost),
        "completeOutputs": ({"token": token, "outputIds": [OUTPUT]}, lost),
        "beat": ({"holding": [token]}, {"drop": [token]}),
    }


VERBS = tuple(_saying(""))

GARBAGE = {
    "empty": "",
    "word": "token",
    "zeros": "A" * 75,
    "unicode": "\u202e\U0001f600",
    "nul": "a\0b",
    "line breaks": "a\r\nX: 1",
    "long": "x" * 100_000,
}


@dataclass(frozen=True)
class Scene:
    """An agent of one team beside another agent and another team; `tokens` are none that it may use."""

    world: World
    caller: Agent
    tokens: Mapping[str, str]
    rows: asyncpg.Connection

    async def checksums(self) -> dict[str, str]:
        """The rows of every table, summed up."""
        names = await self.rows.fetch(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1"
        )
        return {
            name: await self.rows.fetchval(f"SELECT md5(string_agg(t::text, ' ' ORDER BY t::text)) FROM {name} t")
            for (name,) in names
            if name not in MOVES_BY_ITSELF
        }


@pytest.fixture
async def scene(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_site(database_url, redis_url, tmp_path) as world, AsyncExitStack() as stack:
        caller = await stack.enter_async_context(world.agent("socket", "caller"))
        neighbour = await stack.enter_async_context(world.agent("socket", "neighbour"))
        stranger = await stack.enter_async_context((await _another_team(world)).agent("socket", "caller"))
        stale, current = await _given_away(world, caller, neighbour)
        tokens = {"stale": stale, "another agent's": current, "another team's": await _running(stranger)}
        tokens |= {"cut": current[:-1], "changed": current[:20] + "AAAA" + current[24:], **GARBAGE}
        rows = await asyncpg.connect(database_url)
        stack.push_async_callback(rows.close)
        yield Scene(world, caller, tokens, rows)


async def _another_team(world: World) -> World:
    """A team with the same workflow, a task that waits, and a key of its own."""
    viewer = await make_owner()
    other = replace(world, viewer=viewer, team_id=team_of(viewer))
    await world.services.workflows.create(viewer, other.team_id, WORKFLOW)
    other.agent_key = await other.key(KeyKind.AGENT)
    await other.submit()
    return other


async def _running(agent: Agent) -> str:
    token: str = (await agent.order())["token"]
    assert await agent.say("acknowledge", tokens=[token]) == ["RUNNING"]
    return token


async def _given_away(world: World, caller: Agent, neighbour: Agent) -> tuple[str, str]:
    """The token of a lease that the caller has lost, and that of the lease after it, which the neighbour has."""
    await neighbour.say("beat", holding=[], accepting=False)
    await world.submit()
    stale: str = (await caller.order())["token"]
    await neighbour.say("beat", holding=[], accepting=True)
    await caller.say("beat", holding=[], accepting=False)
    current = await _running(neighbour)
    await caller.say("beat", holding=[], accepting=True)
    return stale, current


def test_every_verb_of_the_contract_is_tried() -> None:
    contract = build().mutation_type
    assert contract is not None

    assert {name for name, field in contract.fields.items() if "session" in field.args} == set(VERBS)
    assert set(contract.fields) - set(VERBS) == {"connect"}


@pytest.mark.parametrize("verb", VERBS)
async def test_a_token_that_is_not_the_callers_is_refused_and_moves_nothing(scene: Scene, verb: str) -> None:
    before = await scene.checksums()
    wrong = {}

    for kind, token in scene.tokens.items():
        said, expected = _saying(token)[verb]
        answer = await scene.caller.say(verb, **said)
        if isinstance(answer, dict):
            answer.pop("message", None)
        if answer != expected:
            wrong[kind] = answer

    assert wrong == {}
    assert await scene.checksums() == before


async def test_who_claims_foreign_tokens_at_its_connect_is_told_to_drop_them(scene: Scene) -> None:
    tables = ("task", "task_live", "task_end", "attempt", "task_event", "slot", "ready")
    claimed = [token for token in scene.tokens.values() if len(token) < 1000]
    before = await scene.checksums()

    async with scene.world.agent("socket", "claimant") as claimant:
        said = introduction("claimant", instanceId="same", agentSecret=claimant.welcome["agentSecret"])
        await claimant.transport.close()
        after_own = await scene.checksums()
        socket = await Socket.open(scene.world.url, scene.world.agent_key)
        try:
            welcome = await socket.execute("connect", {"input": {**said, "holding": claimed}}, TIMEOUT)
        finally:
            await socket.close()

    assert (welcome["keep"], sorted(welcome["drop"])) == ([], sorted(claimed))
    after = await scene.checksums()
    assert [t for t in tables if after[t] != before[t] and t != "slot"] == []
    assert after_own["task_live"] == after["task_live"]
