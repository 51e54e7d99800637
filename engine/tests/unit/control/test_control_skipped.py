"""How many cycles a drill kept from beginning."""

from __future__ import annotations

import pytest
from farshore.control.runs.drill import skipped


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], 0),  # never protected
        ([(90, 95)], 0),  # due at 195
        ([(40, 50)], 1),  # due at 150
        ([(40, 50), (140, 145)], 0),
        ([(40, 50), (160, 165)], 1),  # late
        ([(-900, -850)], 1),  # long late before, but it would have been due again
        ([(40, 50), (120, 190)], 0),  # a long one at work is none that is skipped
        ([(95, 180)], 0),
    ],
)
def test_a_cycle_that_was_due_in_a_drill_and_did_not_begin_is_counted(
    spans: list[tuple[float, float]], expected: int
) -> None:
    """The drill lasts from 100 to 190, the RPO is 100."""
    assert skipped(spans, 100.0, 190.0, 100.0) == expected
