"""One chaos run from its seed: load, faults, rest, and what the history of it says.

load begins ----------------------------------------------> no more submits --> every task ended --> checked
      faults begin -----------> all pairs met, all mended ^
"""

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import asyncpg
import orjson

from tests.chaos.ledger import Ledger, merge, save
from tests.chaos.nemesis import PAIRS, Nemesis
from tests.chaos.site import Crowd, Site, site_in
from tests.faults.world import whole
from tests.model.history import PATIENCE, TERMINAL, Op, check, total
from tests.servers import S3Config
from tests.waiting import until

SECONDS = float(os.environ.get("CHAOS_SECONDS", "240"))
FAULTS = os.environ.get("CHAOS_FAULTS", "1") != "0"
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
ENDS = 4_000 / 240  # a second at least
LONGER = 1.5  # times as long a slow machine may take for them
BEGIN = 120.0  # seconds until the first task has ended
PARTS = 1 / 20  # of all tasks at least meet a fault


@dataclass
class Verdict:
    """What came out."""

    seconds: float  # of load
    history: list[Op]
    counts: Counter[str]
    wrong: dict[str, list[str]]
    faults: dict[str, int] = field(default_factory=dict)
    pairs: dict[frozenset[str], int] = field(default_factory=dict)

    @property
    def goal(self) -> int:
        return int(ENDS * SECONDS)

    def table(self) -> str:
        """For people: what happened, and the zeros."""
        counts = self.counts
        rows = [
            ("seed", f"{SEED}  (CHAOS_SEED repeats it)"),
            ("load", f"{self.seconds:.0f} s"),
            ("submitted", counts["submitted"]),
            ("ended", f"{counts['ended']}  (at least {self.goal})"),
            *((f"  {state}", counts[state]) for state in sorted(TERMINAL)),
            ("met a fault", f"{counts['met']}  ({counts['met'] / max(1, counts['ended']):.0%})"),
            ("answers lost", counts["info"]),
            ("late writes refused", counts["late"]),
            ("views resumed", counts["broke"]),
            *((f"fault: {kind}", count) for kind, count in self.faults.items()),
            ("replicas killed amid a submit", counts["amid"]),
            *((f"at once: {' + '.join(sorted(pair))}", self.pairs.get(pair, 0)) for pair in PAIRS if self.faults),
            ("lost", counts["lost"]),
            ("doubled", counts["doubled"]),
            ("zombie writes", len(self.wrong.get("C3", ()))),
            ("gaps", len(self.wrong.get("C6", ()))),
            ("tracebacks in logs", counts["tracebacks"]),
            ("wrong", ", ".join(f"{name}: {len(found)}" for name, found in self.wrong.items()) or 0),
        ]
        return "\n".join(f"{name:<40} {value}" for name, value in rows)

    def complaints(self) -> list[str]:
        """Why the run does not count as one; empty where it does."""
        found = [f"{name}: {sentence}" for name, wrong in self.wrong.items() for sentence in wrong[:10]]
        if self.counts["tracebacks"]:
            found.append(f"{self.counts['tracebacks']} tracebacks are in the logs")
        if self.counts["ended"] < self.goal:
            found.append(f"{self.counts['ended']} tasks ended, expected at least {self.goal}")
        found += [f"no fault of kind {kind} happened" for kind, count in self.faults.items() if not count]
        if self.faults:
            if self.counts["met"] < PARTS * self.counts["ended"]:
                found.append(f"{self.counts['met']} of {self.counts['ended']} tasks met a fault, expected 5 %")
            found += [f"never at once: {' and '.join(sorted(pair))}" for pair in PAIRS - set(self.pairs)]
            found += [f"no {name}" for name in ("amid", "late", "broke", "info") if not self.counts[name]]
        return found


async def chaos(folder: Path, bucket: S3Config) -> Verdict:
    """The whole run; raises AssertionError where it could not be carried out."""
    (folder / "ledgers").mkdir()
    ledger = Ledger(folder / "ledgers", "end")
    async with site_in(folder, bucket, Crowd(), seed=SEED, faults=FAULTS) as site:
        await until(lambda: _ended(site, 1), within=BEGIN, every=0.2, what="the first task ends")
        began = time.monotonic()
        nemesis = Nemesis(site, SEED, SECONDS, ledger)
        await _load(site, nemesis)
        seconds = time.monotonic() - began
        await _rest(site, ledger)
        broken = await _broken(site)
        history = merge(folder / "ledgers", nemesis.deaths)
    save(history, folder / "history.jsonl")
    verdict = judge(history, seconds)
    verdict.wrong |= {"tables": broken} if broken else {}
    verdict.counts["tracebacks"] = sum(_failures(replica.log) for replica in site.replicas)
    for program in (*site.agents, *site.clients):
        verdict.counts["tracebacks"] += program.log.count("Traceback (most")
    if FAULTS:
        verdict.faults, verdict.pairs = nemesis.counts, nemesis.met
    return verdict


def judge(history: list[Op], seconds: float) -> Verdict:
    """What the checker says, and what happened how often."""
    counts = total(history)
    ends = [op.value["state"] for op in history if op.op == "final"]
    counts.update(Counter(ends))
    counts["ended"] = sum(state in TERMINAL for state in ends)
    counts["doubled"] = counts["unexpected"]
    counts["met"] = len(met_a_fault(history))
    counts["info"] = sum(op.type == "info" for op in history)
    counts["late"] = len(_late(history))
    counts["broke"] = sum(op.op == "broke" for op in history)
    kills = [op.t_call for op in history if op.op == "fault" and op.args["kind"] == "replica_kill"]
    submits = [op for op in history if op.op == "submit"]
    counts["amid"] = sum(any(op.t_call < at <= op.t_ret and op.type == "info" for op in submits) for at in kills)
    return Verdict(seconds, history, counts, check(history))


def met_a_fault(history: list[Op]) -> set[str]:
    """The tasks of which some call was not answered, or refused for now, or a lease or a view was lost."""
    tasks = {op.args["key"]: str(op.value) for op in history if op.op == "submit" and op.type == "ok"}
    found = {op.task for op in _late(history)}
    for op in history:
        if op.type != "ok" or (op.op == "broke" and not op.args["ours"]):
            found.add(op.args.get("task") or tasks.get(op.args.get("key", ""), ""))
    return found & set(tasks.values())


def _late(history: list[Op]) -> list[Op]:
    """The writes that were refused because their lease was over, of tasks that nobody had cancelled."""
    cancelled = {op.task for op in history if op.op == "cancel"}
    refused = [op for op in history if op.value == "LEASE_LOST" and op.op in ("acknowledge", "report", "finish")]
    return [op for op in refused if op.task not in cancelled]


def _failures(log: str) -> int:
    """Lines of a replica's log that tell of an exception that nobody expected."""
    count = 0
    for line in log.splitlines():
        with contextlib.suppress(orjson.JSONDecodeError):  # of a line that SIGKILL cut short, or one for people
            entry = orjson.loads(line)
            count += entry["level"] == "error" and "Traceback" in entry.get("error", "")
    return count


async def _load(site: Site, nemesis: Nemesis) -> None:
    """Faults for as long as the run lasts, and no longer."""
    striking = asyncio.create_task(nemesis.run() if FAULTS else asyncio.sleep(SECONDS))
    try:
        await _until_enough(site, striking)
        if FAULTS:
            nemesis.stop()
            await striking
            await nemesis.meet()
    finally:
        striking.cancel()
        for _, proxy in site.links:
            proxy.heal()


async def _until_enough(site: Site, striking: asyncio.Task[None]) -> None:
    end = time.monotonic() + SECONDS
    latest = time.monotonic() + LONGER * SECONDS
    while time.monotonic() < end or (time.monotonic() < latest and not await _ended(site, int(1.02 * ENDS * SECONDS))):
        await asyncio.wait([striking], timeout=1)
        if striking.done() and FAULTS:
            striking.result()


async def _rest(site: Site, ledger: Ledger) -> None:
    """No more submits; return once all tasks have ended and everybody has heard it, and write down what they are."""
    for client in site.clients:
        client.ask()
    await until(lambda: all(client.returncode is not None for client in site.clients), within=PATIENCE, every=0.1)
    assert [client.returncode for client in site.clients] == [0] * len(site.clients)
    connection = await asyncpg.connect(site.database_url)
    try:
        for table, what in _LEFT.items():
            await until(partial(_none, connection, table), within=PATIENCE, every=0.1, what=what)
        for row in await connection.fetch("SELECT id, state, event_seq FROM task_state"):
            ledger.note("final", "end", {"state": row["state"], "seq": row["event_seq"]}, task=str(row["id"]))
    finally:
        await connection.close()


async def _broken(site: Site) -> list[str]:
    """What is wrong with the tables."""
    try:
        await whole(site.database_url, keyed=True)
    except AssertionError as error:
        return [str(error)]
    return []


async def _none(connection: "asyncpg.Connection[asyncpg.Record]", table: str) -> bool:
    return not await connection.fetchval(f"SELECT count(*) FROM {table}")


async def _ended(site: Site, count: int) -> bool:
    """Whether so many tasks have ended; false while the database is away."""
    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
        connection = await asyncpg.connect(site.database_url, timeout=5)
        try:
            return bool(await connection.fetchval("SELECT count(*) FROM task_end", timeout=5) >= count)
        finally:
            connection.terminate()
    return False


_LEFT = {"task_live": "all tasks end", "slot WHERE task_id IS NOT NULL": "all slots are free again"}
