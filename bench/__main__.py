"""`python -m bench`: starts both columns, warms up, takes three rounds, prints a table of medians."""

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from bench.latency import (
    Sample,
    measured,
    raw_report_to_socket,
    raw_submit_to_agent,
    report_to_socket,
    submit_to_agent,
)
from bench.scene import Scene, set_up
from bench.servers import LOAD_CORE, SERVER_CORE, servers

ROUNDS = 3
SAMPLES = 300  # of a round, of each column
WARM_UP = 100  # samples
WIDTH = 130  # characters at least, also where no terminal is


@dataclass(frozen=True)
class Goal:
    """A latency to measure in two columns; `floor` and `stretch` are milliseconds of its p99."""

    name: str
    floor: float
    stretch: float
    ours: Callable[[Scene], AbstractAsyncContextManager[Sample]]
    raw: Callable[[str], AbstractAsyncContextManager[Sample]]


@dataclass
class Column:
    """What one server took, round by round, in milliseconds."""

    rounds: list[list[float]] = field(default_factory=list)

    def percentile(self, percent: int) -> float:
        """The median over the rounds."""
        return statistics.median(statistics.quantiles(each, n=100)[percent - 1] for each in self.rounds)


GOALS = {
    "P6": Goal("P6 report -> socket", 20, 10, report_to_socket, raw_report_to_socket),
    "P7": Goal("P7 submit -> agent", 10, 5, submit_to_agent, raw_submit_to_agent),
}


async def run(console: Console, goals: list[Goal], rounds: int, samples: int) -> list[tuple[Goal, Column, Column]]:
    """Measure these goals, the two columns in turns."""
    results = []
    with tempfile.TemporaryDirectory(prefix="runyard-bench-") as folder:
        async with servers(Path(folder)) as running:
            console.print(f"servers on core {SERVER_CORE}, load on core {LOAD_CORE} of {os.cpu_count()}", style="dim")
            console.print(f"{platform.machine()}, Python {platform.python_version()}, process {running.runyard_pid}")
            scene = await set_up(running)
            for goal in goals:
                ours, raw = Column(), Column()
                async with goal.ours(scene) as our_sample, goal.raw(running.raw) as raw_sample:
                    columns = ((ours, our_sample), (raw, raw_sample))
                    for _, sample in columns:
                        await measured(sample, WARM_UP)
                    for number in range(rounds):
                        console.print(f"{goal.name}: round {number + 1} of {rounds}", style="dim")
                        for column, sample in columns:
                            column.rounds.append([1000 * each for each in await measured(sample, samples)])
                results.append((goal, ours, raw))
    return results


def table(results: list[tuple[Goal, Column, Column]], rounds: int, samples: int) -> Table:
    """The figures beside the goals."""
    shown = Table(title=f"milliseconds, medians of {rounds} rounds of {samples} samples")
    for heading in ("", "p50", "p99", "raw p50", "raw p99", "ratio p50", "ratio p99", "floor", "stretch", "p99 meets"):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for goal, ours, raw in results:
        p50, p99, raw50, raw99 = (column.percentile(each) for column in (ours, raw) for each in (50, 99))
        met = "stretch" if p99 < goal.stretch else "floor" if p99 < goal.floor else "neither"
        figures = [f"{each:.2f}" for each in (p50, p99, raw50, raw99, p50 / raw50, p99 / raw99)]
        shown.add_row(goal.name, *figures, f"{goal.floor:g}", f"{goal.stretch:g}", met)
    return shown


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("goals", nargs="*", default=list(GOALS), metavar="GOAL", help=f"of {', '.join(GOALS)} [all]")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"[{ROUNDS}]")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"of each round [{SAMPLES}]")
    given = parser.parse_args()
    console = Console(width=max(WIDTH, Console().width))
    chosen = [GOALS[name] for name in given.goals]
    results = uvloop.run(run(console, chosen, given.rounds, given.samples))
    console.print(table(results, given.rounds, given.samples))


if __name__ == "__main__":
    main()
