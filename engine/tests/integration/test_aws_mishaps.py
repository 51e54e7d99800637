"""A part of the figures ``aws-faults`` and ``aws-crash``: what hurts most, and what is drawn anew in every run."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator

import pytest
from benchmarks import aws_crash, aws_faults
from benchmarks.aws_crash import Death, Nursery
from benchmarks.aws_faults import Cell, Theatre

_DRAWN = 3


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    with aws_faults.theatre(tmp_path_factory.mktemp("aws-mishaps")) as opened:
        yield opened


@pytest.fixture(scope="module")
def nursery(house: Theatre) -> Iterator[Nursery]:
    del house  # its credentials are in the environment
    with Nursery() as opened:
        yield opened


@pytest.fixture(scope="module")
def chance() -> random.Random:
    seed = int(os.environ.get("FARSHORE_AWS_SEED") or time.time_ns() % 1_000_000)
    sys.stdout.write(f"seed {seed}; FARSHORE_AWS_SEED={seed} repeats it\n")
    return random.Random(seed)


@pytest.mark.parametrize(
    "cell",
    [
        Cell("copies", "seed", "CreateSnapshots", 0, "lost"),
        Cell("copies", "seed", "StartSnapshot", 0, "lost"),
        Cell("copies", "seed", "GetSnapshotBlock", 0, "expired-token"),
        Cell("copies", "delta", "DescribeSnapshots", 2, "stale"),
        Cell("copies", "delta", "CompleteSnapshot", 1, "lost"),
        Cell("copies", "retire", "DeleteSnapshot", 0, "5xx"),
        Cell("copies to volumes", "delta", "CreateSnapshot", 0, "lost"),
        Cell("rehearsal", "drill", "AuthorizeSecurityGroupEgress", 0, "lost"),
        Cell("rehearsal", "drill", "CreateSecurityGroup", 0, "lost"),
        Cell("rehearsal", "drill", "CreateSubnet", 0, "lost"),
        Cell("rehearsal", "drill", "RevokeSecurityGroupEgress", 0, "lost"),
        Cell("failover", "failover", "DeregisterImage", 0, "lost"),
        Cell("failover", "failover", "DescribeVolumes", 0, "stale"),
        Cell("guest", "prepare", "DescribeInstances", 0, "stale"),
    ],
    ids=str,
)
def test_a_call_that_fails_leaves_nothing_wrong(house: Theatre, cell: Cell) -> None:
    assert aws_faults.tried(house, cell) == []


@pytest.mark.parametrize("tale", aws_faults.TALES)
def test_any_call_may_fail_in_any_way(house: Theatre, chance: random.Random, tale: str) -> None:
    drawn = chance.sample(aws_faults.cells(house, [tale]), _DRAWN)
    assert {str(cell): aws_faults.tried(house, cell) for cell in drawn} == {str(cell): [] for cell in drawn}


def test_a_fault_that_was_not_met_is_told(house: Theatre) -> None:
    assert aws_faults.tried(house, Cell("fence", "fence", "StopInstances", 7, "5xx")) == ["the call was not made"]


def test_what_is_left_behind_is_told(house: Theatre) -> None:
    with house.tale("fence") as tale:
        stray = tale.aws.client("ec2").create_volume(Size=1, AvailabilityZone=f"{tale.aws.region}a")["VolumeId"]
        assert tale.verdict() == [f"left: {stray}"]


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


def test_a_node_may_die_at_any_call(house: Theatre, nursery: Nursery, chance: random.Random) -> None:
    drawn = chance.sample(aws_crash.deaths(house, nursery), _DRAWN)
    assert {str(death): aws_crash.died(house, nursery, death)[1] for death in drawn} == {
        str(death): [] for death in drawn
    }
