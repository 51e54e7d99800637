"""Cycles that this control plane cannot take further: they end, and are seen to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from farshore.control import clock
from farshore.control.bus import Bus
from farshore.control.scheduling.loop import STUCK_AFTER, Scheduler
from farshore.control.store import Store
from farshore.control.store.records import Cycle, Group, Plan
from farshore.model.plan import Plan as Definition

DEFINITION = Definition.model_validate(
    {"name": "shop", "source_site": "alpha", "target_site": "beta", "machines": [{"name": "db"}]}
).model_dump(mode="json")


class Silent:
    """Tells no story."""

    def tend(self) -> None:
        pass

    def check(self) -> None:
        pass

    def forget(self, older_than_s: float) -> None:
        pass


def test_a_cycle_that_cannot_go_on_ends_and_says_why(tmp_path: Path) -> None:
    store = Store(tmp_path / "records.db")
    store.migrate()
    with store.write() as tx:
        tx.add(
            Plan(
                name="shop",
                revision=1,
                source="",
                definition=DEFINITION,
                activity="paused",
                state="protected",
                active_site="alpha",
                created_at=1.0,
                changed_at=1.0,
            )
        )
        tx.flush()
        tx.add(Group(group_id="g", plan="shop", failures=0, not_before=0.0))
        tx.add(
            Cycle(
                cycle_id="cyc-1",
                plan="shop",
                group_id="g",
                plan_revision=1,
                epoch=1,
                purpose="schedule",
                state="replicate",
                task_id="task-that-nobody-has",
                created_at=1.0,
            )
        )
    ctx = SimpleNamespace(store=store, started=clock.now(), bus=Bus())
    scheduler = Scheduler(cast("Any", ctx), Silent())
    for _ in range(STUCK_AFTER - 1):
        scheduler.round()
    with store.read() as session:
        assert session.get_one(Cycle, "cyc-1").ended_at is None
    scheduler.round()
    with store.read() as session:
        cycle, plan = session.get_one(Cycle, "cyc-1"), session.get_one(Plan, "shop")
        assert (cycle.state, cycle.error["code"]) == ("failed", "cycle-stuck")
        assert plan.last_error is not None
        assert plan.last_error["code"] == "cycle-stuck"
