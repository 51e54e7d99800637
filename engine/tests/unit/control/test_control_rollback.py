"""A rollback while one of the two sites is away: what is refused, and what force does."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from doubles import shop_records
from farshore.control.runs import rollback, story
from farshore.control.runs.rollback import RollbackWish
from farshore.control.store import Store
from farshore.control.store.database import Transaction
from farshore.control.store.records import Fence, Node, OldPrimary, Plan, PlanMachine, Run, Task
from farshore.errors import Conflict, Unavailable
from sqlalchemy import select


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with plan ``shop`` failed over to beta, not committed; the nodes of both sites answer."""
    opened = Store(tmp_path / "records.db")
    opened.migrate()
    with opened.write() as tx:
        shop_records.plan(tx, state="failed-over", active_site="beta", epoch=2, committed=False)
        row = tx.get_one(PlanMachine, ("shop", "db"))
        row.state, row.source_state, row.target_state = "failed-over", "fenced", "running"
        row.raised, row.committed, row.target_machine_id = True, False, "made-db"
        for site in ("alpha", "beta"):
            node = Node(name=f"{site}-1", site=site, roles=["recovery"], data_address="", created_at=1.0)
            node.last_seen = time.time()
            tx.add(node)
    return opened


def lose(tx: Transaction, site: str) -> None:
    tx.get_one(Node, f"{site}-1").last_seen = 1.0
    tx.flush()


def test_nothing_goes_back_to_a_site_that_does_not_answer(store: Store) -> None:
    with store.write() as tx:
        lose(tx, "alpha")
    with store.write() as tx, pytest.raises(Unavailable) as refused:
        rollback.request(tx, "shop", RollbackWish(force=True), "me")
    assert (refused.value.code, refused.value.evidence["site"]) == ("site-offline", "alpha")
    assert "farshore commit shop" in refused.value.hint


def test_what_was_given_up_by_force_is_fenced_before_it_is_wanted_again(store: Store) -> None:
    with store.write() as tx:
        tx.get_one(PlanMachine, ("shop", "db")).source_state = "stale"
    with store.write() as tx, pytest.raises(Conflict) as refused:
        rollback.request(tx, "shop", RollbackWish(), "me")
    assert refused.value.code == "old-primary-not-fenced"


def test_what_runs_at_a_lost_site_is_given_up_by_force_only_and_fenced_at_first_contact(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.write() as tx:
        lose(tx, "beta")
        with pytest.raises(Unavailable) as refused:
            rollback.request(tx, "shop", RollbackWish(), "me")
        assert refused.value.field == "force"
        seen = rollback.preview_of(tx, "shop", RollbackWish(force=True))
        assert seen["after"]["stop"] == []
        run_id = rollback.request(tx, "shop", RollbackWish(force=True), "me").run_id
    monkeypatch.setattr(story.reports, "seal", lambda *_: None)
    ctx = cast("Any", SimpleNamespace(store=store))
    here: str | None = "stop"
    for _ in range(20):
        if here is None:
            break
        here = story.advance(ctx, rollback.STORY, run_id, here)
        with store.write() as tx:  # the node of alpha does what it is told
            for task in tx.scalars(select(Task).where(Task.site == "alpha", Task.state == "queued")):
                assert tx.get_one(Plan, "shop").epoch == 3
                task.state, task.ended_at = "succeeded", time.time()
                power = "on" if task.kind == "machine-start" else "off"
                task.result = {"machine_id": "id-db", "power": power, "fenced": False, "detail": ""}
    with store.read() as session:
        run, plan = session.get_one(Run, run_id), session.get_one(Plan, "shop")
        assert (run.state, run.error) == ("succeeded", None)
        assert (plan.active_site, plan.epoch, plan.committed) == ("alpha", 3, True)
        assert [(one.site, one.machine_id, one.epoch) for one in session.scalars(select(Fence))] == [
            ("beta", "made-db", 3)
        ]
        assert {task.kind for task in session.scalars(select(Task).where(Task.site == "beta"))} == {"machine-fence"}
        assert [(one.site, one.divergent) for one in session.scalars(select(OldPrimary))] == [("beta", True)]
