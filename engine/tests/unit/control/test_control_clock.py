"""Ages never look younger than they are."""

from __future__ import annotations

import pytest
from farshore.control import clock
from farshore.control.clock import Stamp


@pytest.mark.parametrize(
    ("earlier", "now", "age_s"),
    [
        (Stamp(1000, 50, "a"), Stamp(1060, 110, "a"), 60),
        (Stamp(1000, 50, "a"), Stamp(400, 110, "a"), 60),  # the wall clock was set back
        (Stamp(1000, 50, "a"), Stamp(9000, 110, "a"), 8000),  # or forward: never younger
        (Stamp(1000, 50, "a"), Stamp(1300, 20, "b"), 300),  # another boot
        (Stamp(1000, 50, "a"), Stamp(900, 20, "b"), 20),  # and set back meanwhile: this boot's length at least
    ],
)
def test_an_age_is_the_larger_of_both_clocks(earlier: Stamp, now: Stamp, age_s: float) -> None:
    assert now.age_s(earlier) == age_s


def test_times_are_written_and_read_in_utc() -> None:
    assert clock.iso(0.25) == "1970-01-01T00:00:00.250Z"
    assert clock.iso(None) is None
    assert clock.parse_iso("1970-01-01T01:00:00+01:00") == 0
    assert clock.parse_iso("1970-01-01T00:00:01") == 1
    assert clock.parse_iso("cp-0abc") is None


def test_now_reads_both_clocks() -> None:
    first, second = clock.now(), clock.now()
    assert first.boot_id == second.boot_id
    assert second.age_s(first) >= 0
