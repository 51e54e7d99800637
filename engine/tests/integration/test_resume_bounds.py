"""Real processes, killed or cut off at random instants: what is sent again is bounded, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

from farshore.testing.resume import BOUND, measure_resume


def test_what_is_sent_again_is_bounded_whatever_is_killed_when(tmp_path: Path) -> None:
    found = measure_resume(tmp_path, instants=8, seed=3, faults=("target", "source", "both", "cut"))
    for row in found["rows"]:
        assert row["identical"], row
        assert max(row["resent_bytes"].values()) <= BOUND, row
        assert row["bystander_resent_bytes"] == 0, row
    assert found["ok"]
