"""The end of a failover's cancel, and what stays of a failover that failed past the epoch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from doubles import shop_records
from farshore.control.runs import failover, ledger, story
from farshore.control.runs.story import Story
from farshore.control.scheduling import fences
from farshore.control.store import Store
from farshore.control.store.records import Fence, Lease, Plan
from farshore.errors import Permanent
from sqlalchemy import select


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "records.db")
    opened.migrate()
    return opened


@pytest.mark.parametrize(("told", "after"), [(failover.PLANNED, "halt"), (failover.UNPLANNED, "restore")])
def test_a_cancel_that_comes_just_before_the_epoch_counts(store: Store, told: Story, after: str) -> None:
    with store.write() as tx:
        plan = shop_records.plan(tx, state="failing-over")
        run = ledger.create(tx, "failover", plan, "me", {"mode": "planned", "checkpoint": "latest"}, workflow=True)
        run.cancel = True
        run_id = run.run_id
    ctx = SimpleNamespace(store=store)
    assert story.advance(cast("Any", ctx), told, run_id, "epoch") == after
    with store.read() as session:
        assert session.get_one(Plan, "shop").epoch == 1


@pytest.mark.parametrize("fact", ["raised", "resumed"])
def test_what_a_failed_failover_recovers_from_stays_leased_past_the_epoch(store: Store, fact: str) -> None:
    with store.write() as tx:
        plan = shop_records.plan(tx, state="failing-over")
        shop_records.checkpoint(tx, 1)
        for past in (False, True):
            run = ledger.create(tx, "failover", plan, "me", {"mode": "planned"}, workflow=True)
            ledger.lease(tx, run.run_id, "cp-1")
            if past:
                ledger.note(tx, run, **{fact: True})
            ledger.finish(tx, run, "failed", Permanent("no"))
            tx.flush()
            assert list(tx.scalars(select(Lease.run_id))) == ([run.run_id] if past else [])


def test_orders_of_two_plans_of_one_name_have_different_keys() -> None:
    found = [
        fences.key(Fence(plan="shop", epoch=2, machine_id="vm", created_at=at, attempts=number))
        for at in (1.0, 2.5)
        for number in (0, 1)
    ]
    assert len(set(found)) == 4
