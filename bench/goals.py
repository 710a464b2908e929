"""How each goal is measured: its rounds, its columns in turns, its figures."""

import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import growth, latency, life, lines
from bench.figures import Figure
from bench.latency import Sample, measured
from bench.peers import DURABLE, WORKERS
from bench.scene import Scene, set_up
from bench.servers import Servers, new_database, runyard

TELL = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What a goal is measured with; `share` of 1 is a full run, less of it is quicker and rougher."""

    servers: Servers
    scene: Scene
    rounds: int
    share: float
    tell: TELL
    folder: Path

    def some(self, count: int, least: int = 1) -> int:
        return max(least, round(count * self.share))


async def p6(bench: Bench) -> list[Figure]:
    ours, raw = latency.report_to_socket(bench.scene), latency.raw_report_to_socket(bench.servers.raw)
    return await _latency(bench, "P6", "agent's report -> subscriber's socket", ours, raw, floor=20, stretch=10)


async def p7(bench: Bench) -> list[Figure]:
    ours, raw = latency.submit_to_agent(bench.scene), latency.raw_submit_to_agent(bench.servers.raw)
    return await _latency(bench, "P7", "submit -> agent has it", ours, raw, floor=10, stretch=5)


async def _latency(
    bench: Bench,
    goal: str,
    what: str,
    ours: AbstractAsyncContextManager[Sample],
    raw: AbstractAsyncContextManager[Sample],
    *,
    floor: float,
    stretch: float,
) -> list[Figure]:
    samples = bench.some(300, least=20)
    taken: tuple[list[list[float]], list[list[float]]] = ([], [])
    async with ours as our_sample, raw as raw_sample:
        for sample in (our_sample, raw_sample):
            await measured(sample, bench.some(100, least=10))
        for number in range(bench.rounds):
            bench.tell(f"{goal}: round {number + 1} of {bench.rounds}, {samples} samples of each column")
            for column, sample in zip(taken, (our_sample, raw_sample), strict=True):
                column.append([1000 * each for each in await measured(sample, samples)])
    halves, tails = ([[_percentile(each, p) for each in column] for column in taken] for p in (50, 99))
    return [
        Figure(
            goal=goal, what=f"{what}, p50", unit="ms", against="raw, p50", ours=halves[0], theirs=halves[1], less=True
        ),
        Figure(
            goal=goal,
            what=f"{what}, p99",
            unit="ms",
            against="raw, p99",
            ours=tails[0],
            theirs=tails[1],
            floor=floor,
            stretch=stretch,
            absolute=True,
            less=True,
        ),
    ]


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


async def p8_and_p9(bench: Bench, wanted: set[str]) -> list[Figure]:
    """The peers are measured in both ways at once, so both goals share their rounds."""
    tasks = bench.some(2_000, least=200)
    ours: dict[str, list[float]] = {"P8": [], "P9": []}
    peers: dict[str, dict[str, list[float]]] = {name: {"P8": [], "P9": []} for name in WORKERS}
    ways = {"P8": life.ONE, "P9": life.MANY}
    async with life.noop_agent(bench.scene) as ended:
        for goal in sorted(wanted):
            await life.lives(bench.scene, ended, tasks // 2, ways[goal])
        for number in range(bench.rounds):
            for goal in sorted(wanted):
                bench.tell(f"{goal}: round {number + 1} of {bench.rounds}, {tasks} tasks")
                ours[goal].append(await life.lives(bench.scene, ended, tasks, ways[goal]))
            for name, rates in peers.items():
                one, many = await life.peer(bench.servers, name, tasks)
                bench.tell(f"    {name}: {one:,.0f} and {many:,.0f} tasks/s")
                rates["P8"].append(one)
                rates["P9"].append(many)
    return [figure for goal in sorted(wanted) for figure in _peers(goal, ours[goal], peers)]


BOUNDS: dict[str, dict[str, tuple[float, float]]] = {
    "P8": {"celery": (5, 10), "procrastinate": (8, 15), "": (1.5, 3)},
    "P9": {"": (5, 10)},
}
WHAT = {"P8": "whole lives of no-op tasks, one request each", "P9": "the same, 50 in a request"}


def _peers(goal: str, ours: list[float], peers: dict[str, dict[str, list[float]]]) -> list[Figure]:
    best = max((name for name in peers if name != "celery"), key=lambda name: statistics.median(peers[name][goal]))
    figures = []
    for name in sorted(peers, key=lambda name: -statistics.median(peers[name][goal])):
        durable = "durable" if name in DURABLE else "not durable"
        bounds = BOUNDS[goal].get(name) or (BOUNDS[goal][""] if name == best else (None, None))
        against = f"{name} ({durable}{', the best peer' if name == best else ''})"
        figures.append(
            Figure(
                goal=goal,
                what=WHAT[goal],
                unit="tasks/s",
                against=against,
                ours=ours,
                theirs=peers[name][goal],
                floor=bounds[0],
                stretch=bounds[1],
            )
        )
    return figures


async def p10(bench: Bench) -> list[Figure]:
    reports = bench.some(30, least=3)
    ours, orm = [], []
    async with lines.writers(bench.scene) as writers:
        await writers.write(3)
        for number in range(bench.rounds):
            bench.tell(f"P10: round {number + 1} of {bench.rounds}, {reports * lines.TASKS * lines.LINES:,} lines")
            ours.append(await writers.write(reports))
            orm.append(await lines.bulk_create(bench.servers.peers_database, max(3, reports // 4)))
        await lines.check_pages(writers)
    what = "log lines through `report`, fenced, numbered, readable by page"
    against = "bulk_create of a row a line, alone"
    return [
        Figure(
            goal="P10",
            what=what,
            unit="lines/s",
            against=against,
            ours=ours,
            theirs=orm,
            floor=50_000,
            stretch=150_000,
            absolute=True,
        )
    ]


async def p11_and_p12(bench: Bench, wanted: set[str]) -> list[Figure]:
    """Both need the same million of tasks. P11 runs without a server, whose own loops would be in its way."""
    large = growth.Size(bench.some(growth.LARGE.tasks, least=20_000), bench.some(growth.LARGE.agents, least=1_200))
    figures = []
    async with _seeded(bench, "large", large) as (many, scene):
        if "P12" in wanted:
            figures += await _pages(bench, many, scene, large)
    if "P11" in wanted:
        async with _seeded(bench, "small", growth.SMALL) as (few, small):
            pass
        few_waiting = growth.backlog(few, bench.servers.redis, small.team, growth.SMALL)
        many_waiting = growth.backlog(many, bench.servers.redis, scene.team, large)
        figures += await _passes(bench, few_waiting, many_waiting, large)
    return figures


@asynccontextmanager
async def _seeded(bench: Bench, name: str, size: growth.Size) -> AsyncIterator[tuple[str, Scene]]:
    """A Runyard over a database of its own with so many waiting tasks; it serves while the block lasts."""
    bench.tell(f"growth: {size.tasks:,} waiting tasks")
    url = await new_database(bench.servers.database, f"growth_{name}")
    async with runyard(bench.servers.redis, url, bench.folder / name) as served:
        scene = await set_up(served)
        await growth.seed(url, scene.team, size)
        yield url, scene


async def _passes(
    bench: Bench,
    small: AbstractAsyncContextManager[growth.Backlog],
    large: AbstractAsyncContextManager[growth.Backlog],
    size: growth.Size,
) -> list[Figure]:
    times: tuple[list[float], list[float]] = ([], [])
    async with small as few, large as many:
        for backlog in (few, many):
            await backlog.pass_once()
        for number in range(bench.rounds):
            bench.tell(f"P11: round {number + 1} of {bench.rounds}")
            for column, backlog in zip(times, (many, few), strict=True):
                taken = [await backlog.pass_once() for _ in range(3)]
                column.append(1000 * statistics.median(taken))
    what = f"a pass that assigns 1,000 tasks over 1,000 requirements, {size.tasks:,} waiting, {size.agents:,} agents"
    against = "10,000 waiting, 1,100 agents"
    return [
        Figure(
            goal="P11",
            what=what,
            unit="ms",
            against=against,
            ours=times[0],
            theirs=times[1],
            floor=3,
            stretch=1.5,
            less=True,
        )
    ]


async def _pages(bench: Bench, database: str, scene: Scene, size: growth.Size) -> list[Figure]:
    depth = size.tasks - 100
    last = await growth.deepest(database, depth)
    pages, samples = growth.Pages(scene.url, scene.integration_key), bench.some(300, least=20)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, bench.rounds):
        bench.tell(f"P12: round {number + 1} of {bench.rounds}" if number >= 0 else "P12: warm-up")
        taken = [(await pages.page(last), await pages.page(None)) for _ in range(samples)]
        if number >= 0:
            for column, values in zip(times, zip(*taken, strict=True), strict=True):
                column.append(1000 * statistics.median(values))
    pages.close()
    return [
        Figure(
            goal="P12",
            what=f"a page of 50 tasks at depth {depth:,}, p50",
            unit="ms",
            against="the first page, p50",
            ours=times[0],
            theirs=times[1],
            floor=1.5,
            stretch=1.1,
            less=True,
        )
    ]


Goal = Callable[[Bench, set[str]], Awaitable[list[Figure]]]


def _alone(measure: Callable[[Bench], Awaitable[list[Figure]]]) -> Goal:
    async def goal(bench: Bench, _wanted: set[str]) -> list[Figure]:
        return await measure(bench)

    return goal


GROUPS: dict[tuple[str, ...], Goal] = {
    ("P6",): _alone(p6),
    ("P7",): _alone(p7),
    ("P8", "P9"): p8_and_p9,
    ("P10",): _alone(p10),
    ("P11", "P12"): p11_and_p12,
}
"""Goals that are measured together."""

GOALS = [goal for group in GROUPS for goal in group]
