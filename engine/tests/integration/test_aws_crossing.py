"""A real guest goes from KVM to AWS and back: bit by bit what it was, and it answers at every stop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from doubles.crossing import crossing, there_and_back

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="private hypervisors need root"),
    pytest.mark.skipif(
        not os.environ.get("FARSHORE_CROSSING"), reason="takes minutes; the figure aws-crossing tells the same story"
    ),
    pytest.mark.timeout(900),
]
CACHE = Path(os.environ.get("FARSHORE_LAB_CACHE", ".cache/lab"))


def test_a_guest_goes_to_aws_and_comes_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    with crossing(tmp_path_factory.mktemp("f"), CACHE) as made:
        seen = there_and_back(made)
    assert seen["back_mode"] == "verify"
    # What the old disks hold does not cross again, whatever blocks of EBS it lies in.
    assert seen["back_moved_bytes"] < seen["disk_bytes"] / 10
