"""Each mutant is a patch that fits today's code and names a proof that is there."""

import pytest

from tests.mutants.mutant import ROOT, Mutant, all_mutants

MUTANTS = all_mutants()


def test_there_are_mutants() -> None:
    assert len(MUTANTS) >= 15


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_applies(mutant: Mutant) -> None:
    mutant.apply(ROOT, check=True)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_proof_is_there(mutant: Mutant) -> None:
    for proof in mutant.proofs:
        file, _, name = proof.partition("::")
        assert (ROOT / file).is_file()
        assert not name or f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_guarantees_tells_of_it(mutant: Mutant) -> None:
    assert f"| {mutant.name} |" in (ROOT / "docs" / "guarantees.md").read_text()
