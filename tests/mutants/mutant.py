"""One mutant: a patch with a head that says what it breaks and which proof has to notice."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
PATCHES = Path(__file__).parent / "patches"

_FIELD = re.compile(r"^(Layer|Proof): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Mutant:
    """A patch. `proofs`: ids of tests, as pytest takes them, of which one at least has to fail."""

    path: Path
    breaks: str
    layer: str
    proofs: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Refuses, by ValueError, a patch whose head is not whole."""
        head = path.read_text().partition("\ndiff --git ")[0]
        fields = dict(_FIELD.findall(head))
        breaks = " ".join(head.partition("\nLayer: ")[0].split())
        if not breaks or fields.keys() != {"Layer", "Proof"}:
            raise ValueError(f"{path.name}: expected a sentence, then `Layer:` and `Proof:`; found {head!r}")
        return cls(path, breaks, fields["Layer"], tuple(fields["Proof"].split()))

    @property
    def name(self) -> str:
        return self.path.stem.replace("-", " ")

    def apply(self, tree: Path, *, check: bool = False) -> None:
        """Break `tree`; with `check`, only try. Raises ValueError with git's words where the patch does not fit."""
        command = ["git", "apply", *(["--check"] if check else []), str(self.path)]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{self.path.name} does not apply: {done.stderr.strip()}")


def all_mutants() -> list[Mutant]:
    return [Mutant.read(path) for path in sorted(PATCHES.glob("*.patch"))]


def copy_of_the_tree(to: Path) -> Path:
    """What tests need of the sources, as they are now; without what was built or installed."""
    ignored = shutil.ignore_patterns("__pycache__", "node_modules", "*.pyc")
    for part in ("app", "tests", "docs"):
        shutil.copytree(ROOT / part, to / part, ignore=ignored)
    for file in ("pyproject.toml", "schema.graphql", "README.md", "Makefile"):
        shutil.copy(ROOT / file, to / file)
    return to
