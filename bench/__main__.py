"""`python -m bench`: starts everything that is compared, warms up, takes three rounds, prints a table of medians."""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from bench import figures
from bench.figures import HEADINGS, Figure
from bench.goals import GOALS, GROUPS, Bench
from bench.scene import set_up
from bench.servers import LOAD_CORE, SERVER_CORE, servers

ROUNDS = 3
WIDTH = 170  # characters at least, also where no terminal is


async def run(console: Console, wanted: set[str], rounds: int, share: float) -> list[Figure]:
    """Measure these goals."""
    began = time.monotonic()

    def tell(what: str) -> None:
        console.print(f"{time.monotonic() - began:5.0f} s  {what}", style="dim")

    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="runyard-bench-") as folder:
        async with servers(Path(folder)) as running:
            tell(f"Runyard on core {SERVER_CORE}, load on core {LOAD_CORE} of {os.cpu_count()}, databases on either")
            bench = Bench(running, await set_up(running.runyard), rounds, share, tell, Path(folder))
            for group, measure in GROUPS.items():
                if here := wanted.intersection(group):
                    found += await measure(bench, here)
    return found


def table(measured: list[Figure], rounds: int) -> Table:
    """The figures beside the goals."""
    shown = Table(title=f"medians of {rounds} rounds (least..most)")
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading in ("goal", "what", "against", "meets") else "right")
    for figure in measured:
        shown.add_row(*figure.cells())
    return shown


def conditions(rounds: int, share: float) -> dict[str, Any]:
    """Where and how it was measured."""
    where = "databases on either core" if SERVER_CORE != LOAD_CORE else "all on one core"
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "cores": f"Runyard on {SERVER_CORE}, load on {LOAD_CORE}, {where}",
        "servers": "PostgreSQL with fsync on, Valkey without persistence (appendonly no, save off)",
        "rounds": f"{rounds}" if share == 1 else f"{rounds}, of {share:g} of the usual size",
    }


def main() -> None:
    """Measure, print, and keep the figures where asked to."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("goals", nargs="*", metavar="GOAL", help=f"of {', '.join(GOALS)} [all]")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"[{ROUNDS}]")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the usual size of a round: 0.1 is rough and quick [1]"
    )
    parser.add_argument("--write", action="store_true", help="keep the figures, and write the table of bench/README.md")
    given = parser.parse_args()
    wanted = {name.upper() for name in given.goals} or set(GOALS)
    if unknown := wanted - set(GOALS):
        parser.error(f"expected goals of {', '.join(GOALS)}, found {', '.join(sorted(unknown))}")
    console = Console(width=max(WIDTH, Console().width))
    measured = uvloop.run(run(console, wanted, given.rounds, given.share))
    console.print(table(measured, given.rounds))
    if given.write:
        figures.save(measured, conditions(given.rounds, given.share))
        figures.write()


if __name__ == "__main__":
    main()
