"""What docs/guarantees.md promises is proved by tests that are there and run."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text()
PROMISES = TEXT.split("\n## How the proofs work")[0].split("\n### ")[1:]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
SKIPPING = ("skip", "skipif", "xfail", "browser", "node")
"""Marks with which a test may not run, or not count."""


def marks(decorators: list[ast.expr]) -> set[str]:
    """The names of the marks among these decorators."""
    texts = [ast.unparse(each) for each in decorators]
    return {match[1] for text in texts if (match := re.match(r"pytest\.mark\.(\w+)", text))}


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.partition("\n")[0])
def test_each_promise_names_its_proof(promise: str) -> None:
    assert re.search(r"^- `tests/[\w/]+\.py::\w+`$", promise, re.MULTILINE)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_each_proof_is_there_and_runs(file: str, name: str) -> None:
    path = ROOT / file
    assert path.is_file(), f"docs/guarantees.md names {file}, which is not there"
    module = ast.parse(path.read_text())

    found = [
        each for each in module.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name == name
    ]

    assert found, f"docs/guarantees.md names {name}, which {file} does not have"
    assert not marks(found[0].decorator_list) & set(SKIPPING)
    whole = ast.unparse(module)
    assert "importorskip" not in whole
    assert not re.search(r"^pytestmark = .*(skip|xfail)", whole, re.MULTILINE)
    skipped = [each for each in ast.walk(found[0]) if isinstance(each, ast.Attribute) and each.attr in SKIPPING]
    assert skipped == []


def test_all_of_them_are_run_by_the_gate() -> None:
    gate = (ROOT / ".ci" / "run").read_text()
    options = (ROOT / "pyproject.toml").read_text()

    assert "make --no-print-directory test" in gate
    assert 'testpaths = ["tests"]' in options
    assert "addopts" in options
    assert not re.search(r"addopts = .*(-m |-k |--ignore|--deselect)", options)
