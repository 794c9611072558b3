"""The list of mutations (``make mutants``) is true to the code: each can be made, and its tests are there."""

from __future__ import annotations

from tests.mutants.mutants import problems, read_mutants


def test_every_mutation_applies_to_the_code_as_it_is() -> None:
    """Whoever changes what one replaces changes the mutation too, in tests/mutants."""
    mutants = read_mutants()
    assert not problems(mutants), "\n".join(problems(mutants))
    assert len(mutants) >= 80
