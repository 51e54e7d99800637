"""Approval: which policy is weaker than another, and a run that nobody has approved in time."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from doubles import shop_records
from farshore.control.planning import protect
from farshore.control.runs import approving, failover, ledger, orders, story
from farshore.control.store import Store
from farshore.control.store.records import Plan, Run
from farshore.errors import Conflict


def policy(*verbs: str, people: int = 1) -> dict[str, Any]:
    return {"verbs": list(verbs), "people": people, "within": 60.0}


@pytest.mark.parametrize(
    ("before", "after", "weaker"),
    [
        (None, None, False),
        (None, policy("drill"), False),
        (policy("drill"), None, True),
        (policy("drill"), policy("drill", "failover"), False),
        (policy("drill", "failover"), policy("drill"), True),
        (policy("drill", people=2), policy("drill", "failover"), True),
        (policy("drill"), policy("drill", people=2), False),
    ],
)
def test_a_policy_is_weaker_that_asks_fewer(before: Any, after: Any, weaker: bool) -> None:
    assert approving.is_weaker(before, after) is weaker


def test_a_run_that_was_not_approved_in_time_has_failed_and_done_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "records.db")
    store.migrate()
    with store.write() as tx:
        plan = shop_records.plan(tx, approval=policy("failover"))
        run = ledger.create(tx, "failover", plan, "me", {"mode": "planned"}, workflow=True)
        assert run.state == ledger.WAITING_APPROVAL
        run_id = run.run_id
    sealed: list[str] = []
    monkeypatch.setattr(story.reports, "seal", lambda _tx, _ctx, run: sealed.append(run.run_id))
    ctx = cast("Any", SimpleNamespace(store=store))
    assert story.advance(ctx, failover.PLANNED, run_id, "sync") == "sync"
    late = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: late)
    with store.write() as tx, pytest.raises(Conflict) as refused:
        orders.approve(tx, tx.get_one(Run, run_id), "another")
    assert refused.value.code == "approval-expired"
    assert story.advance(ctx, failover.PLANNED, run_id, "sync") is None
    with store.read() as session:
        run = session.get_one(Run, run_id)
        assert (run.state, (run.error or {})["code"]) == ("failed", "approval-expired")
    assert sealed == [run_id]


def test_a_plan_that_asks_for_approval_is_not_deleted_and_made_anew(tmp_path: Path) -> None:
    store = Store(tmp_path / "records.db")
    store.migrate()
    with store.write() as tx:
        shop_records.plan(tx, approval=policy("failover", people=2), activity="inactive")
    with store.write() as tx, pytest.raises(Conflict) as refused:
        protect.remove(tx, "shop")
    assert (refused.value.code, refused.value.field) == ("approval-asked", "approval")
    with store.write() as tx:
        tx.get_one(Plan, "shop").approval = None
        protect.remove(tx, "shop")
    with store.read() as session:
        assert session.get(Plan, "shop") is None
