"""Rows 11 to 14 of the fault matrix: agents that die, sleep, are doubled, and whose network fails.

One replica serves all tests; each has agents and a workflow of its own. Every test asserts that its fault happened.
"""

import asyncio
import os
import shutil
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import pytest

from tests.e2e.tasks import Watch, events, read, submit
from tests.e2e.world import AgentProcess, set_up, world_in
from tests.faults.proxy import Delay, Drip, Fault, Hold, Lose, Proxy, proxy_to
from tests.faults.puppet import Puppet, puppet
from tests.faults.site import COUNTING, Job, Site, raw, slots_free
from tests.faults.world import KILLED, LEASE, PATIENCE, QUICK, Servers, admin, present, states, whole
from tests.waiting import until

CALM = {"RUNYARD_LEASE": "60"}  # seconds, scaled: twice the time that a busy machine may stop us
CALM_LEASE = 2 * LEASE
WAYS = ("up", "down", "both")
FIRST = ["PENDING", "QUEUED", "RUNNING"]  # where an agent is free
HASH = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing

# Says one line, then works silently until its gate is open.
QUIET = """
import pathlib, sys, time

print("begun", flush=True)
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.05)
open("outputs/result.txt", "w").write("done")
print("through")
"""


@pytest.fixture(scope="module")
async def site(module_servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with world_in(tmp_path_factory.mktemp("agents")) as world:
        replica = world.replica(**{**module_servers.settings, **QUICK, **CALM})
        await replica.start()
        yield Site(world, replica, await set_up(replica), module_servers.database_url)
        await whole(module_servers.database_url)


@pytest.fixture
async def counting(site: Site) -> AsyncIterator[Job]:
    job = await site.job("counting", COUNTING)
    yield job
    await job.end()


@pytest.fixture
async def quiet(site: Site) -> AsyncIterator[Job]:
    job = await site.job("quiet", QUIET)
    yield job
    await job.end()


# -- row 11: an agent that dies; deaths around an upload are in test_store.py


async def test_row_11_an_agent_that_dies_with_an_order_in_its_hands_costs_no_attempt(quiet: Job) -> None:
    site = quiet.site
    dying = await quiet.agent()
    os.kill(dying.pid, signal.SIGSTOP)  # what it is given now it cannot acknowledge
    task_id = await submit(site.client, quiet.slug)
    await _reaches(quiet, task_id, "QUEUED")

    killed = await dying.kill()
    await _reaches(quiet, task_id, "WAITING")
    heir = await quiet.agent()
    heir.gate.touch()
    await _reaches(quiet, task_id, "COMPLETED")

    assert killed == KILLED
    ended = await present(site.database_url, raw(task_id))
    assert (ended["attempts"], ended["lease_no"]) == (1, 2)
    await slots_free(site.database_url, quiet.slug)


async def test_row_11_an_agent_that_dies_at_work_leaves_it_to_another(counting: Job) -> None:
    site = counting.site
    dying = await counting.agent()
    watch, following = await _watching(counting)

    killed = await dying.kill()
    await _hears(watch, lambda: watch.states[-1] == "WAITING")
    heir = await counting.agent()
    heir.gate.touch()

    assert await following
    assert killed == KILLED
    assert watch.states == [*FIRST, "WAITING", "QUEUED", "RUNNING", "COMPLETED"]
    ended = await present(site.database_url, raw(watch.task_id))
    assert (ended["attempts"], ended["lease_no"]) == (2, 2)
    await _settled(counting, watch)


# -- row 12: a zombie


async def test_row_12_a_frozen_agent_wakes_as_a_zombie_and_changes_nothing(counting: Job) -> None:
    site = counting.site
    zombie = await counting.agent()
    watch, following = await _watching(counting)

    os.kill(zombie.pid, signal.SIGSTOP)
    await _hears(watch, lambda: watch.states[-1] == "WAITING")
    heir = await counting.agent()
    await _hears(watch, lambda: watch.states[-1] == "RUNNING")
    zombie.gate.touch()  # its program, which was not frozen, completes: the result is a zombie's
    os.kill(zombie.pid, signal.SIGCONT)
    await until(lambda: "stopped: lease lost" in zombie.log, within=PATIENCE, what="the zombie learns it")
    await _more(watch, 10)
    heir.gate.touch()

    assert await following
    assert watch.states == [*FIRST, "WAITING", "QUEUED", "RUNNING", "COMPLETED"]
    assert _attempts_of_lines(watch) == [1, 2]
    assert (await present(site.database_url, raw(watch.task_id)))["lease_no"] == 2
    await _settled(counting, watch)


async def test_row_12_every_word_of_a_zombie_is_refused(quiet: Job) -> None:
    task_id = await submit(quiet.site.client, quiet.slug)
    async with puppet(quiet, "zombie") as zombie:
        await zombie.connect()
        token = await zombie.take()
        (grant,) = (await zombie.say("beginOutputs", token=token, files=[_file("late.txt")]))["grants"]
        await _reaches(quiet, task_id, "WAITING")  # silence was all it took
        heir = await quiet.agent()
        await _reaches(quiet, task_id, "RUNNING")
        await until(lambda: _logged(quiet, task_id, "begun"), within=PATIENCE, what="the heir works")
        before = await _everything(quiet, task_id)

        by_session = await _all_words(zombie, token, grant["outputId"])
        fresh = await zombie.connect(holding=[token])
        by_lease = await _all_words(zombie, token, grant["outputId"])

        assert await _everything(quiet, task_id) == before
    assert set(by_session) == {"LEASE_LOST"}
    assert set(by_lease) == {"LEASE_LOST"}
    assert (fresh["keep"], fresh["drop"]) == ([], [token])
    heir.gate.touch()
    await _reaches(quiet, task_id, "COMPLETED")
    outputs = (await read(quiet.site.client, task_id))["outputs"]["nodes"]
    assert [each["name"] for each in outputs] == ["result.txt"]


# -- row 13: two that say they are one


async def test_row_13_a_clone_is_told_that_its_name_is_taken_and_disturbs_nobody(counting: Job) -> None:
    site = counting.site
    agent = await counting.agent()
    clone = _clone(counting, agent)
    watch, following = await _watching(counting)
    await clone.start()

    await until(lambda: clone.log.count("asks this agent to come back") >= 2, within=PATIENCE, what="it is refused")
    await _more(watch, 10)
    connections = agent.log.count("connected by")
    agent.gate.touch()

    assert await following
    assert (connections, clone.log.count("connected by")) == (1, 0)
    assert watch.states == [*FIRST, "COMPLETED"]
    await clone.end()
    await _settled(counting, watch)
    assert (await present(site.database_url, raw(watch.task_id)))["lease_no"] == 1


async def test_row_13_a_second_connection_of_one_process_takes_over_what_the_first_one_holds(quiet: Job) -> None:
    task_id = await submit(quiet.site.client, quiet.slug)
    async with puppet(quiet, "twin") as first, puppet(quiet, "twin") as second:
        await first.connect()
        token = await first.take()
        taken_over = await second.connect(holding=[token], secret=first.secret)
        before = await _everything(quiet, task_id)

        old = _verdict(await first.say("report", reports=[_report(token, 1)]), token)
        beat = await first.say("beat", holding=[token])
        assert await _everything(quiet, task_id) == before
        new = _verdict(await second.say("report", reports=[_report(token, 1)]), token)
        end = await second.say("finish", results=[{**_report(token, 2), "outcome": "COMPLETED"}])

    assert (taken_over["keep"], taken_over["drop"]) == ([token], [])
    assert second.session > first.session
    assert (old, beat, new, end[0]["status"]) == ("LEASE_LOST", "LEASE_LOST", "ACCEPTED", "ENDED")
    await slots_free(quiet.site.database_url, quiet.slug)


async def test_row_13_a_restarted_agent_gives_up_what_it_ran_before_at_once(counting: Job) -> None:
    agent = await counting.agent()
    watch, following = await _watching(counting)

    killed = await agent.kill()
    await agent.start()
    await _hears(watch, lambda: watch.states[-1] == "RUNNING" and len(watch.states) > len(FIRST))
    agent.gate.touch()

    assert await following
    assert killed == KILLED
    assert watch.states == [*FIRST, "WAITING", "QUEUED", "RUNNING", "COMPLETED"]
    reasons = [event["reason"] for event in watch.received if event["__typename"] == "TaskStatusChanged"]
    assert reasons[len(FIRST)] == "AGENT_RESTARTED"  # not lost: nobody waited for the end of its lease
    await _settled(counting, watch)


def _clone(job: Job, agent: AgentProcess) -> AgentProcess:
    """Another process with the name and the secret of this one, copied while it runs nothing."""
    directory = job.site.world.directory / f"{agent.name}-clone"
    clone = AgentProcess(agent.name, directory, agent.url, job.site.team.agent_key, labels=[job.slug])
    job.site.world.programs.append(clone)
    shutil.copytree(agent.directory / "state", directory / "state", ignore=shutil.ignore_patterns("work*"))
    return clone.offers(job.command, job.source)


# -- row 14: the agent's link


async def test_row_14_a_task_outlives_a_black_hole_that_is_shorter_than_the_lease(site: Site) -> None:
    await asyncio.gather(*[_outlive(await site.job("counting", COUNTING), ways) for ways in WAYS])


async def _outlive(counting: Job, ways: str) -> None:
    async with proxy_to(_port(counting)) as link:
        agent = await counting.agent(url=link.url(counting.site.replica.url))
        watch, following = await _watching(counting)

        _break(link, ways, Hold())
        await asyncio.sleep(CALM_LEASE / 4)  # the time of the fault is the subject
        lost = link.up.held + link.down.held
        link.heal()
        await _more(watch, 20)
        agent.gate.touch()

        assert await following
        assert lost > 0
        assert watch.states == [*FIRST, "COMPLETED"]
        assert _attempts_of_lines(watch) == [1]
        await _settled(counting, watch)


async def test_row_14_a_task_moves_on_where_the_black_hole_outlasts_the_lease(site: Site) -> None:
    await asyncio.gather(*[_move_on(await site.job("counting", COUNTING), ways) for ways in WAYS])


async def _move_on(counting: Job, ways: str) -> None:
    async with proxy_to(_port(counting)) as link:
        cut_off = await counting.agent(url=link.url(counting.site.replica.url))
        watch, following = await _watching(counting)

        _break(link, ways, Lose())
        # Where only the answers are lost, the first beat without one ends the connection, and the silence begins then.
        await _hears(watch, lambda: watch.states[-1] == "WAITING")
        heir = await counting.agent()
        await _hears(watch, lambda: watch.states[-1] == "RUNNING")
        lost = link.up.lost + link.down.lost
        link.heal()
        await until(lambda: "stopped: lease lost" in cut_off.log, within=PATIENCE, what="it learns that it lost")
        heir.gate.touch()

        assert await following
        assert lost > 0
        assert watch.states == [*FIRST, "WAITING", "QUEUED", "RUNNING", "COMPLETED"]
        assert _attempts_of_lines(watch) == [1, 2]
        await _settled(counting, watch)


async def test_row_14_a_task_outlives_the_reset_of_its_agents_connection(counting: Job) -> None:
    async with proxy_to(_port(counting)) as link:
        agent = await counting.agent(url=link.url(counting.site.replica.url))
        watch, following = await _watching(counting)

        resets = 0
        for _ in range(3):
            resets += link.reset()
            await _more(watch, 10)
        agent.gate.touch()

        assert await following
        assert resets >= 3
        assert watch.states == [*FIRST, "COMPLETED"]
        assert _attempts_of_lines(watch) == [1]
        await _settled(counting, watch)


async def test_row_14_a_slow_link_slows_the_log_and_costs_no_lease(site: Site) -> None:
    slow = (Drip(3000), Delay(0.2))
    await asyncio.gather(*[_slow_down(await site.job("counting", COUNTING), fault) for fault in slow])


async def _slow_down(counting: Job, fault: Fault) -> None:
    async with proxy_to(_port(counting)) as link:
        agent = await counting.agent(url=link.url(counting.site.replica.url))
        watch, following = await _watching(counting)

        link.both(fault)
        await asyncio.sleep(CALM_LEASE * 1.2)  # longer than the lease: it lives by beats that come slowly
        await _more(watch, 20)
        slowed = link.up.dripped + link.up.delayed
        agent.gate.touch()

        assert await following
        link.heal()
        assert slowed > 0
        assert watch.states == [*FIRST, "COMPLETED"]
        assert _attempts_of_lines(watch) == [1]
        await _settled(counting, watch)


# -- how these tests see


async def _watching(job: Job) -> tuple[Watch, "asyncio.Task[bool]"]:
    """A new task that is followed over a socket and has said a few lines."""
    watch = Watch(await submit(job.site.client, job.slug))
    await watch.begin(job.site.client)
    following = asyncio.create_task(watch.follow(job.site.client))
    await _hears(watch, lambda: len(watch.lines) >= 5)
    return watch, following


async def _hears(watch: Watch, condition: Callable[[], bool]) -> None:
    await until(condition, within=PATIENCE, what=f"more of the task than {watch.states}, {len(watch.lines)} lines")


async def _more(watch: Watch, count: int) -> None:
    """Return once so many more lines were received."""
    wanted = len(watch.lines) + count
    await _hears(watch, lambda: len(watch.lines) >= wanted)


async def _reaches(job: Job, task_id: str, state: str) -> None:
    async def there() -> bool:
        return state.lower() in (await states(job.site.database_url, raw(task_id)))[-1:]

    await until(there, within=PATIENCE, every=0.05, what=f"the task is {state}")


async def _logged(job: Job, task_id: str, line: str) -> bool:
    chunks = [event for event in await events(job.site.client, task_id) if event["__typename"] == "TaskLogged"]
    return any(line in event["lines"] for event in chunks)


def _attempts_of_lines(watch: Watch) -> list[int]:
    """The attempts that said something; the lines of each are whole: 1, 2, 3 .. as far as they came."""
    chunks = [event for event in watch.received if event["__typename"] == "TaskLogged" and event["stream"] == "STDOUT"]
    said = defaultdict[int, list[str]](list)
    for chunk in chunks:
        said[chunk["attempt"]] += chunk["lines"]
    for lines in said.values():
        numbered = [line for line in lines if line != "through"]
        assert numbered == [f"line {n}" for n in range(1, len(numbered) + 1)]
    return sorted(said)


async def _settled(job: Job, watch: Watch) -> None:
    """The stream was whole, the task has ended once, and no slot of the job's agents is taken any more."""
    site = job.site
    assert [event["seq"] for event in watch.received] == list(range(1, len(watch.received) + 1))
    assert watch.received == await events(site.client, watch.task_id)
    await slots_free(site.database_url, job.slug)
    await whole(site.database_url)
    await job.end()


async def _everything(job: Job, task_id: str) -> list[str]:
    """All rows that a word about the task could change."""
    async with admin(job.site.database_url) as connection:
        return [str(row) for sql in _ROWS for row in await connection.fetch(sql, UUID(raw(task_id)))]


_ROWS = (
    "SELECT * FROM task_live WHERE task_id = $1",
    "SELECT * FROM task_event WHERE task_id = $1 ORDER BY seq",
    "SELECT * FROM attempt WHERE task_id = $1 ORDER BY no",
    "SELECT * FROM output WHERE task_id = $1 ORDER BY id",
    "SELECT * FROM slot WHERE task_id = $1",
)


async def _all_words(zombie: Puppet, token: str, output_id: str) -> list[str]:
    """The server's verdict on everything that an agent can say about a lease."""
    chunk = {"stream": "STDOUT", "level": "INFO", "firstLine": 1, "lines": ["from the grave"]}
    report = {"token": token, "number": 1, "events": [chunk], "progress": {"fraction": 0.9}}
    failure = {"reason": "agent_error", "message": "from the grave"}
    results = [
        {"token": token, "number": 1, "events": [chunk], "outcome": "COMPLETED", "result": 1},
        {"token": token, "number": 1, "events": [chunk], "outcome": "FAILED", "error": failure},
    ]
    answers = [
        await zombie.say("acknowledge", tokens=[token]),
        await zombie.say("report", reports=[report]),
        await zombie.say("beginOutputs", token=token, files=[_file("other.txt")]),
        await zombie.say("completeOutputs", token=token, outputIds=[output_id]),
        *[await zombie.say("finish", results=[result]) for result in results],
        await zombie.say("beat", holding=[token]),
    ]
    await zombie.say("release", tokens=[token])  # may be answered: it is how lost work says that it has stopped
    return [_verdict(answer, token) for answer in answers]


def _report(token: str, number: int) -> dict[str, Any]:
    chunk = {"stream": "STDOUT", "level": "INFO", "firstLine": number, "lines": ["from a twin"]}
    return {"token": token, "number": number, "events": [chunk]}


def _verdict(answer: Any, token: str) -> str:
    match answer:
        case [str(verdict)] | [{"status": str(verdict)}] | {"code": str(verdict)} | str(verdict):
            return verdict
        case {"drop": [dropped]} if dropped == token:
            return "LEASE_LOST"
        case {"results": [str(verdict)]}:
            return verdict
    return str(answer)


def _file(name: str) -> dict[str, Any]:
    return {"role": "OUTPUT", "name": name, "mediaType": "text/plain", "size": 0, "sha256": HASH}


def _port(job: Job) -> int:
    return int(job.site.replica.url.rpartition(":")[2])


def _break(link: Proxy, ways: str, fault: Fault) -> None:
    for way in {"up": [link.up], "down": [link.down], "both": [link.up, link.down]}[ways]:
        way.become(fault)
