"""docs/operations.md tells each series that /metrics serves and no other; its files and settings exist."""

import re

import pytest

from app.domain.measure import Counter, Histogram
from app.interfaces.rest.metrics import PROCESS, _Shown
from app.persistence.database import Use
from app.persistence.gauges import Present
from app.services.measures import Measures
from app.services.metrics import Measured
from app.settings import Settings
from tests.deploy.manifests import ROOT

DOCS = {name: (ROOT / "docs" / name).read_text() for name in ("operations.md", "deployment.md")}
PRESENT = Present(depth={"gpu": 1}, oldest=1, younger_than={1.0: 1}, slots_free=1, slots_held=1, sessions=1)


def served() -> dict[str, set[str]]:
    """The names of all series with the names of their labels."""
    measures = Measures()
    for measure in measures.all():
        if isinstance(measure, Histogram):
            measure.observe(1, *measure.labels)
        elif isinstance(measure, Counter):
            measure.add(*measure.labels)
    measured = Measured(PRESENT, dict.fromkeys(PROCESS, 1.0), measures.all(), {"hot": Use(1, 1)})
    found = {}
    for family in _Shown(measured).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    return found


def told() -> dict[str, set[str]]:
    """The series of the tables, with their labels."""
    rows = re.findall(r"^\| `(runyard_\w+)(?:\{([\w,]+)\})?` \|", DOCS["operations.md"], re.MULTILINE)
    return {name: set(filter(None, labels.split(","))) for name, labels in rows}


def test_the_tables_tell_what_is_served_and_nothing_else() -> None:
    assert told() == served()


@pytest.mark.parametrize("text", DOCS.values(), ids=DOCS)
def test_every_series_and_setting_in_the_text_exists(text: str) -> None:
    series = {name.removesuffix("_bucket") for name in re.findall(r"runyard_[a-z_]+", text)}
    settings = set(re.findall(r"RUNYARD_[A-Z0-9_]+", text))

    assert series <= set(served())
    assert settings <= {f"RUNYARD_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("text", DOCS.values(), ids=DOCS)
def test_every_file_that_is_linked_exists(text: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target


def test_the_query_of_the_manifests_is_the_one_that_is_explained() -> None:
    manifest = (ROOT / "deploy" / "kubernetes" / "agents.yaml").read_text()
    (explained,) = re.findall(r"```\n(sum\(.*?)```", DOCS["deployment.md"], re.DOTALL)

    assert " ".join(explained.split()) in " ".join(manifest.split())
