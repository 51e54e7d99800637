"""Estimates of what replication costs, with numbers that were computed by hand."""

from __future__ import annotations

import pytest
from farshore.checkpoints.costs import Load, estimate, kept_bytes
from farshore.model.plan import Retention
from farshore.model.prices import Prices
from farshore.units import GIB

AWS = Prices(region="r", write_calls=0.006, read_calls=0.003, list_calls=0.0006, stored_gib_month=0.05, sent_gib=0.09)
#: A GiB changes in each half hour; two GiB are compared by the audit of a cycle.
LOAD = Load((60 * GIB, 40 * GIB), GIB / 1800, 2.0 * GIB)
RULES = Retention(count=8, hourly=24)


def test_what_a_target_charges() -> None:
    found = estimate([LOAD], interval_s=1800, rules=RULES, audit_fraction=0.02, source=None, target=AWS)
    # 100 GiB are 204,800 blocks of 512 KiB, 0.006 for a thousand.
    assert found["first_copy"] == {"calls": 1.23, "storage": 0.0, "transfer": 0.0, "total": 1.23}
    # 1,440 cycles of 2,048 blocks: 17.69472. 100 GiB, 7 half hours of 1 GiB and 24 hours of 2 GiB are 155 GiB: 7.75.
    assert found["per_month"] == {"calls": 17.69, "storage": 7.75, "transfer": 0.0, "total": 25.44}
    assert (found["basis"], found["changed_gib_per_day"], found["currency"]) == ("measured", 48.0, "USD")


def test_what_a_source_charges() -> None:
    found = estimate([LOAD], interval_s=1800, rules=RULES, audit_fraction=0.02, source=AWS, target=None)
    # 204,800 reads: 0.6144; 21 listings; 100 GiB that leave: 9.
    assert found["first_copy"] == {"calls": 0.61, "storage": 0.0, "transfer": 9.0, "total": 9.61}
    # 1,440 cycles of 2,048 + 4,096 reads: 26.54208, and of 2 listings: 0.001728. The snapshot that is kept: 100 GiB.
    assert found["per_month"] == {"calls": 26.54, "storage": 5.0, "transfer": 129.6, "total": 161.14}


def test_what_was_not_measured_is_assumed_and_said_so() -> None:
    load = Load((100 * GIB,))
    found = estimate(
        [load, LOAD], interval_s=21600, rules=Retention(count=1), audit_fraction=0.1, source=AWS, target=None
    )
    # 5 GiB a day beside 48.
    assert (found["basis"], found["changed_gib_per_day"]) == ("assumed", 53.0)
    # 120 cycles. The first reads 1.25 GiB and a tenth of the other 98.75 GiB, 22,784 blocks; the second 14 GiB, 28,672.
    assert found["per_month"]["calls"] == pytest.approx((22784 + 28672) * 120 * 0.003 / 1000, abs=0.005)


def test_no_point_holds_more_than_the_disks_and_none_is_older_than_its_age() -> None:
    busy = Load((GIB,), rate=GIB / 60)
    assert kept_bytes(busy, 1800, Retention(count=3)) == 3 * GIB
    assert kept_bytes(busy, 1800, Retention(count=3, daily=7)) == 10 * GIB
    assert kept_bytes(busy, 1800, Retention(count=3, daily=7, max_age=2 * 86400.0)) == 4 * GIB


def test_nothing_is_known_of_a_plan_without_machines() -> None:
    found = estimate([], interval_s=60, rules=RULES, audit_fraction=0.02, source=None, target=AWS)
    assert (found["basis"], found["per_month"]["total"]) == ("assumed", 0.0)
