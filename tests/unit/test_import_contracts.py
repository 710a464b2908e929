"""The import contracts catch what they are for: every planted fault is found."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A module to plant, what it imports, and the contract that refuses it.
FAULTS = [
    ("domain/planted_clock.py", "time", "Domain is pure"),
    ("domain/planted_loop.py", "asyncio", "Domain is pure"),
    ("domain/planted_rows.py", "app.persistence.models", "Layers point down"),
    ("services/planted_bus.py", "redis", "Services, interfaces and loops reach the world only through ports"),
    (
        "services/planted_files.py",
        "app.storage.local",
        "Services, interfaces and loops reach the world only through ports",
    ),
    ("services/planted_door.py", "app.interfaces.auth", "Layers point down"),
    ("loops/planted_rows.py", "app.persistence.database", "Interfaces and loops do not touch tables"),
    ("loops/planted_door.py", "app.interfaces.auth", "Layers point down"),
    ("interfaces/graphql/planted_orm.py", "tortoise", "Interfaces and loops do not touch tables"),
    ("interfaces/rest/planted_sibling.py", "app.interfaces.graphql.schema", "Interfaces do not know each other"),
    ("interfaces/engine/planted_user.py", "app.interfaces.graphql.schema", "Interfaces do not know each other"),
    ("storage/planted_sibling.py", "app.events.bus", "Layers point down"),
    ("persistence/planted_user.py", "app.services.access", "Layers point down"),
    ("agent/planted_rules.py", "app.domain.task", "The agent knows its schema, not the server"),
    ("agent/planted_weight.py", "starlette", "The agent knows its schema, not the server"),
    ("loops/planted_agent.py", "app.agent.client", "Nothing imports the agent"),
    ("planted_layer/__init__.py", "json", "Layers point down"),
]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the linter says of a copy of the package with all faults in it."""
    place = tmp_path_factory.mktemp("planted")
    shutil.copytree(ROOT / "app", place / "app", ignore=shutil.ignore_patterns("node_modules", "static", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    for file, module, _ in FAULTS:
        (place / "app" / file).parent.mkdir(exist_ok=True)
        (place / "app" / file).write_text(f"import {module}\n")
    (place / "app" / "services" / "planted_one.py").write_text("import app.services.planted_two\n")
    (place / "app" / "services" / "planted_two.py").write_text("import app.services.planted_one\n")
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-logo", "--no-cache"], cwd=place, env={"PYTHONPATH": str(place)}, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    return done.stdout


@pytest.mark.parametrize(("file", "module", "contract"), FAULTS, ids=[file for file, _, _ in FAULTS])
def test_a_planted_fault_is_found(said: str, file: str, module: str, contract: str) -> None:
    planted = "app." + file.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")

    assert planted in section(said, contract)


def test_a_planted_cycle_is_found(said: str) -> None:
    assert "planted_" in section(said, "No cycles anywhere")


def section(said: str, contract: str) -> str:
    """The part of the report that is about one contract; the summary above names each once."""
    report = said.partition("Broken contracts\n")[2]
    return report.partition(f"{contract}\n---")[2].partition("\n---")[0]
