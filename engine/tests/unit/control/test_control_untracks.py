"""Traces of ours go from machines that are not protected any more: not before nothing reads them, and surely."""

from __future__ import annotations

from pathlib import Path

import pytest
from doubles import shop_records
from farshore.control.planning.apply import untrack
from farshore.control.scheduling import untracks
from farshore.control.store import Store
from farshore.control.store.database import Transaction
from farshore.control.store.records import Task
from farshore.control.views import protection
from farshore.control.views.protection import members
from farshore.errors import Permanent, Retry
from sqlalchemy import select


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "records.db")
    opened.migrate()
    return opened


def orders(tx: Transaction) -> list[Task]:
    return list(tx.scalars(select(Task).where(Task.kind == "machine-untrack").order_by(Task.created_at)))


def unprotected(tx: Transaction) -> None:
    plan = shop_records.plan(tx, activity="inactive", state="unprotected")
    row = members(tx, "shop")[0]
    row.activity = "inactive"
    untrack(tx, plan, row)


def pending(tx: Transaction) -> bool:
    return "untrack-pending" in protection.plan(tx, "shop")["conditions"]


def test_traces_stay_while_a_cycle_reads(store: Store) -> None:
    with store.write() as tx:
        unprotected(tx)
        cycle = shop_records.cycle(tx, state="replicate", machines=["id-db"])
        untracks.advance(tx)
        assert orders(tx)[0].not_before == untracks.HELD
        assert pending(tx)
        cycle.ended_at = 2.0
        untracks.advance(tx)
        assert orders(tx)[0].not_before == 0.0
        orders(tx)[0].state = "succeeded"
        untracks.advance(tx)
        assert len(orders(tx)) == 1
        assert not pending(tx)


def test_a_failure_that_may_pass_is_tried_again_and_another_is_not(store: Store) -> None:
    with store.write() as tx:
        unprotected(tx)
        for number in (1, 2):
            untracks.advance(tx)
            orders(tx)[-1].state, orders(tx)[-1].error = "failed", Retry("another backup runs").to_dict()
            untracks.advance(tx)
            untracks.advance(tx)
            assert len(orders(tx)) == number + 1
            assert 0 < orders(tx)[-1].not_before < untracks.HELD
            assert pending(tx)
        orders(tx)[-1].state, orders(tx)[-1].error = "failed", Permanent("no").to_dict()
        untracks.advance(tx)
        assert len(orders(tx)) == 3


def test_an_order_is_taken_back_when_the_machine_is_protected_again(store: Store) -> None:
    with store.write() as tx:
        unprotected(tx)
        members(tx, "shop")[0].activity = "active"
        tx.flush()
        untracks.advance(tx)
        assert orders(tx)[0].state == "cancelled"
        assert not pending(tx)


def test_an_old_primary_keeps_them_until_the_way_back_has_begun(store: Store) -> None:
    """The first copy back may begin with what its disks hold."""
    with store.write() as tx:
        shop_records.plan(tx, state="reprotecting")
        row = members(tx, "shop")[0]
        row.state = "reprotecting"
        untracks.order(tx, "shop", "alpha", "db", "id-old", 2)
        untracks.advance(tx)
        assert orders(tx)[0].not_before == untracks.HELD
        row.state = "protected"
        tx.flush()
        untracks.advance(tx)
        assert orders(tx)[0].not_before == 0.0
