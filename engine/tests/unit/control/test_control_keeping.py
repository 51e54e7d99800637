"""Retention and legal holds over the records."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from doubles import shop_records
from farshore.control import keeping
from farshore.control.planning import protect
from farshore.control.planning.apply import Wanted, outcome
from farshore.control.planning.protect import ProtectWish
from farshore.control.scheduling import retention
from farshore.control.store import Store
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Group
from farshore.control.views.points import retention as preview
from farshore.model.plan import Plan as Definition
from farshore.model.plan import Retention
from sqlalchemy import select

DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "records.db")
    opened.migrate()
    return opened


def dropping(tx: Transaction) -> list[str]:
    rows = tx.scalars(select(Checkpoint.checkpoint_id).where(Checkpoint.state == "dropping"))
    return sorted(rows, key=lambda name: int(name.removeprefix("cp-")))


def test_what_is_under_a_legal_hold_stays_whatever_is_asked(store: Store) -> None:
    with store.write() as tx:
        plan = shop_records.plan(tx, definition={"retention": {"count": 2}})
        for number in range(1, 7):
            shop_records.checkpoint(tx, number)
        tx.get_one(Checkpoint, "cp-2").hold = "case 4711"
        retention.thin(tx, plan, shop_records.GROUP)
        assert dropping(tx) == ["cp-1", "cp-3", "cp-4"]
        wish = ProtectWish(state="unprotected", keep_copies=False)
        found = protect.outcome(tx, "shop", wish)
        assert found.dropped == ["cp-5", "cp-6"]
        assert "cp-2 stays: it is under a legal hold" in found.warnings[0]


def test_old_points_go_by_their_age_also_without_a_cycle(store: Store) -> None:
    now = time.time()
    with store.write() as tx:
        shop_records.plan(tx, definition={"retention": {"max_age": "3d"}})
        for number in range(1, 6):
            shop_records.checkpoint(tx, number, taken_at=now - (6 - number) * DAY)
        retention.thin_all(tx)
        assert dropping(tx) == ["cp-1", "cp-2", "cp-3"]
        retention.thin_all(tx)
        assert dropping(tx) == ["cp-1", "cp-2", "cp-3"]


def test_points_at_a_site_that_was_left_go_by_the_same_rules_once_the_plan_is_protected_again(store: Store) -> None:
    with store.write() as tx:
        plan = shop_records.plan(tx, definition={"retention": {"count": 2}})
        for number in range(1, 6):
            shop_records.checkpoint(tx, number)
        tx.get_one(Checkpoint, "cp-1").pinned = True
        plan.active_site, plan.state = "beta", "failed-over"
        retention.thin(tx, plan, shop_records.GROUP)
        assert dropping(tx) == [], "it may still be rolled back"
        plan.state = "protected"
        retention.thin(tx, plan, shop_records.GROUP)
        assert dropping(tx) == ["cp-2", "cp-3"]
        assert not tx.get_one(Group, shop_records.GROUP).crowded


def test_a_full_chain_of_pinned_points_is_told_until_one_may_go(store: Store) -> None:
    with store.write() as tx:
        plan = shop_records.plan(tx, definition={"retention": {"count": 2, "max_chain": 4}})
        for number in range(1, 5):
            shop_records.checkpoint(tx, number, pinned=True)
        retention.thin(tx, plan, shop_records.GROUP)
        assert dropping(tx) == []
        assert tx.get_one(Group, shop_records.GROUP).crowded
        assert preview(tx, "shop")["crowded"] == [shop_records.GROUP]
        tx.get_one(Checkpoint, "cp-1").pinned = False
        retention.thin(tx, plan, shop_records.GROUP)
        assert not tx.get_one(Group, shop_records.GROUP).crowded


def test_other_rules_can_be_tried_and_are_foreseen_when_the_plan_changes(store: Store) -> None:
    with store.write() as tx:
        plan = shop_records.plan(tx)
        for number in range(1, 7):
            shop_records.checkpoint(tx, number)
        tried = preview(tx, "shop", Retention(count=3))
        assert tried["changed"]
        assert tried["after"]["checkpoints"] == ["cp-4", "cp-5", "cp-6"]
        assert {one["checkpoint_id"]: one["reasons"] for one in tried["checkpoints"] if not one["stays"]} == {
            f"cp-{number}": ["no rule keeps it"] for number in (1, 2, 3)
        }
        assert not preview(tx, "shop")["changed"]
        assert keeping.decision(tx, plan, shop_records.GROUP).goes == []
        fewer = Definition.model_validate({**plan.definition, "retention": {"count": 3}})
        warnings = outcome(tx, "shop", Wanted(fewer, "")).warnings
        assert any("retention would take 3 checkpoints" in text and "cp-1, cp-2, cp-3" in text for text in warnings)
        assert dropping(tx) == []
