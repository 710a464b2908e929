"""`make mutants`: break the product in each way that the list names, and see the named proof notice.

Exit code 1 where a mutant survives its proof, where the proof could not run, or where the proof fails without a mutant.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import Mutant, all_mutants, copy_of_the_tree

FAILED = 1  # pytest's exit code where tests ran and some failed; above it nothing can be concluded
LONGEST = 900  # seconds of one proof
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"


@dataclass(frozen=True)
class Outcome:
    """What the proof of one mutant said; `failed`: the ids of the tests that noticed it."""

    mutant: Mutant
    failed: tuple[str, ...]
    seconds: float
    trouble: str = ""

    @property
    def caught(self) -> bool:
        return bool(self.failed) and not self.trouble


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="only mutants whose name contains one of these")
    parser.add_argument("--write", type=Path, help="put the table into this document, between its two marks")
    parser.add_argument("--no-control", action="store_true", help="do not run the proofs on sound code first")
    asked = parser.parse_args(arguments)
    chosen = [each for each in all_mutants() if not asked.names or any(name in each.name for name in asked.names)]
    if not asked.no_control and not _sound(chosen):
        return 1
    outcomes = [_try(each, number, len(chosen)) for number, each in enumerate(chosen, 1)]
    survivors = [each for each in outcomes if not each.caught]
    print(f"\n{len(outcomes) - len(survivors)} of {len(outcomes)} mutants were caught by the layer that has to")
    for each in survivors:
        print(f"NOT CAUGHT: {each.mutant.name} by {' '.join(each.mutant.proofs)} {each.trouble}")
    if asked.write and not survivors:
        _write(asked.write, outcomes)
    return 1 if survivors else 0


def _sound(mutants: Sequence[Mutant]) -> bool:
    """Whether all proofs are green on code that nobody broke."""
    proofs = sorted({proof for each in mutants for proof in each.proofs})
    print("control: the proofs on sound code ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="runyard-mutant-") as folder:
        tree = copy_of_the_tree(Path(folder) / "tree")
        done = _pytest(tree, proofs, search="default", longest=LONGEST * len(proofs))
    if done.returncode:
        print(done.stdout[-4000:], "a proof fails, or cannot run, without a mutant", sep="\n")
    return done.returncode == 0


def _try(mutant: Mutant, number: int, of: int) -> Outcome:
    began = time.monotonic()
    print(f"[{number}/{of}] {mutant.name} ...", end=" ", flush=True)
    with tempfile.TemporaryDirectory(prefix="runyard-mutant-") as folder:
        tree = copy_of_the_tree(Path(folder) / "tree")
        mutant.apply(tree)
        done = _pytest(tree, mutant.proofs, search="find")
    lines = done.stdout.splitlines()
    failed = tuple(line.split()[1].partition("[")[0] for line in lines if line.startswith("FAILED "))
    trouble = "" if done.returncode == FAILED and failed else f"exit code {done.returncode}: {' '.join(lines[-3:])}"
    outcome = Outcome(mutant, failed if done.returncode == FAILED else (), time.monotonic() - began, trouble)
    print(f"{'caught' if outcome.caught else 'NOT CAUGHT'} in {outcome.seconds:.0f} s", flush=True)
    return outcome


def _pytest(
    tree: Path, proofs: Sequence[str], *, search: str, longest: int = LONGEST
) -> subprocess.CompletedProcess[str]:
    """Run `proofs` on `tree`; a mutant that hangs is ended, and counts as a proof that could not run."""
    options = ["-q", "-x", "-rf", "-p", "no:cacheprovider"]
    if all(proof.startswith("tests/model") for proof in proofs):  # the others do not know these profiles
        options.append(f"--hypothesis-profile={search}")
    command = [sys.executable, "-m", "pytest", *options, *proofs]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=longest, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, f"not ended after {longest} s", "")


def _write(document: Path, outcomes: Sequence[Outcome]) -> None:
    """The table of `outcomes` between the marks of `document`."""
    rows = ["| mutant | what it breaks | layer | caught by |", "|---|---|---|---|"]
    for each in outcomes:
        test = each.failed[0].rpartition("/")[2]
        rows.append(f"| {each.mutant.name} | {each.mutant.breaks} | {each.mutant.layer} | `{test}` |")
    before, _, rest = document.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text("\n".join([f"{before}{BEGIN}", *rows, f"{END}{after}"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
