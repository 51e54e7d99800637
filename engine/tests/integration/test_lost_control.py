"""Real guests, with the control plane and the whole source site lost: taken over from what the other site keeps."""

from __future__ import annotations

import pytest
from benchmarks import lost

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


def test_a_new_control_plane_recovers_the_shop_and_the_old_one_is_refused() -> None:
    row = lost.figure(print)
    assert [check.row() for check in row.checks if not check.ok] == [], row.details
    assert row.details["generations"] == [1, 2, 2]
