"""A goal's figures, and how they are shown: as a table in the terminal and as the one of bench/README.md."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

FOLDER = Path(__file__).parent
SAVED = FOLDER / "figures.json"
README = FOLDER / "README.md"
BEGIN, END = "<!-- figures: written by `python -m bench --write` -->", "<!-- end of figures -->"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What one goal asks for in one comparison; `ours` and `theirs` have a value for each round.

    `floor` and `stretch` are of the ratio ours/theirs, or of our own value where `absolute`; `less` is better, or more.
    """

    goal: str
    what: str
    unit: str
    against: str
    ours: Sequence[float]
    theirs: Sequence[float]
    floor: float | None = None
    stretch: float | None = None
    absolute: bool = False
    less: bool = False

    @property
    def ratios(self) -> list[float]:
        """One for each round: both columns are measured side by side."""
        return [our / their for our, their in zip(self.ours, self.theirs, strict=True)]

    @property
    def verdict(self) -> str:
        if self.floor is None or self.stretch is None:
            return ""
        value = statistics.median(self.ours if self.absolute else self.ratios)
        for name, bound in (("stretch", self.stretch), ("floor", self.floor)):
            if value <= bound if self.less else value >= bound:
                return name
        return "short"

    def cells(self) -> list[str]:
        """As a line of the table: goal, what, ours, against, theirs, ratio, floor, stretch, verdict."""
        sign = "<=" if self.less else ">="
        bounds = [
            "" if b is None else f"{sign} {b:g}{'' if self.absolute else 'x'}" for b in (self.floor, self.stretch)
        ]
        theirs, ratio = _shown(self.theirs), f"{statistics.median(self.ratios):.2f}x"
        return [
            self.goal,
            self.what,
            f"{_shown(self.ours)} {self.unit}",
            self.against,
            theirs,
            ratio,
            *bounds,
            self.verdict,
        ]


HEADINGS = ("goal", "what", "measured", "against", "its figure", "ratio", "floor", "stretch", "meets")


def _shown(values: Sequence[float]) -> str:
    """The median, and how far the rounds lie apart."""
    middle, low, high = statistics.median(values), min(values), max(values)
    digits = 0 if middle >= 100 else 2
    return (
        f"{middle:,.{digits}f} ({low:,.{digits}f}..{high:,.{digits}f})" if len(values) > 1 else f"{middle:,.{digits}f}"
    )


def save(figures: Iterable[Figure], conditions: dict[str, Any]) -> None:
    """Keep these figures, in place of earlier ones of the same goals."""
    new = list(figures)
    goals = {figure.goal for figure in new}
    kept = [each for each in load() if each.goal not in goals]
    every = sorted([*kept, *new], key=lambda figure: int(figure.goal[1:]))
    told = {"conditions": conditions, "figures": [asdict(each) for each in every]}
    SAVED.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def load() -> list[Figure]:
    """What was saved last."""
    return [Figure(**each) for each in orjson.loads(SAVED.read_bytes())["figures"]] if SAVED.exists() else []


def write() -> None:
    """Put the saved figures into the README."""
    conditions = orjson.loads(SAVED.read_bytes())["conditions"]
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(figure.cells()) + " |" for figure in load()]
    said = "; ".join(f"{name}: {value}" for name, value in conditions.items())
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{said}\n\n" + "\n".join(lines) + f"\n{END}{after}")
