"""A part of the figures ``aws-faults`` and ``aws-crash``: what hurts most, in every run of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from benchmarks import aws_crash, aws_faults
from benchmarks.aws_crash import Death, Nursery
from benchmarks.aws_faults import Cell, Theatre


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    with aws_faults.theatre(tmp_path_factory.mktemp("aws-mishaps")) as opened:
        yield opened


@pytest.fixture(scope="module")
def nursery(house: Theatre) -> Iterator[Nursery]:
    del house  # its credentials are in the environment
    with Nursery() as opened:
        yield opened


@pytest.mark.parametrize(
    "cell",
    [
        Cell("seed", "CreateSnapshots", 0, "lost"),
        Cell("seed", "StartSnapshot", 0, "lost"),
        Cell("seed", "GetSnapshotBlock", 0, "expired-token"),
        Cell("delta", "DescribeSnapshots", 2, "stale"),
        Cell("delta", "CompleteSnapshot", 1, "lost"),
        Cell("retire", "DeleteSnapshot", 0, "5xx"),
    ],
    ids=str,
)
def test_a_call_that_fails_leaves_nothing_wrong(house: Theatre, cell: Cell) -> None:
    assert aws_faults.tried(house, cell) == []


@pytest.mark.parametrize(
    ("death", "fate"),
    [
        (Death(1, 0, "kill-after", "other term", "StartSnapshot"), "discarded"),
        (Death(2, 1, "kill-after", "other term", "CompleteSnapshot"), "discarded"),
        (Death(2, 1, "kill-after", "same term", "PutObject"), "gone on with"),
        (Death(1, 0, "kill-after", "same term", "CreateVolume", attached=True), "none begun"),
        (Death(1, 0, "kill-after", "same term", "CreateSnapshot", attached=True), "gone on with"),
        (Death(2, 1, "kill-after", "other term", "CreateSnapshot", attached=True), "discarded"),
    ],
    ids=str,
)
def test_a_node_that_dies_leaves_nothing_wrong(house: Theatre, nursery: Nursery, death: Death, fate: str) -> None:
    assert aws_crash.died(house, nursery, death) == (fate, [])
