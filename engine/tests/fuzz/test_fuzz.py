"""A smoke of the fuzzers; `make fuzz` goes on for as long as one likes."""

from __future__ import annotations

import pytest
from fuzz import frames


@pytest.mark.parametrize("name", sorted(frames.TARGETS))
def test_mutated_inputs_are_taken_or_refused(name: str) -> None:
    assert frames.mutations(name, 0, seed=7, count=20_000) == 20_000
