"""Cycles that this control plane cannot take further, or must not: they end, and are seen to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from doubles import shop_records
from farshore.control import clock
from farshore.control.bus import Bus
from farshore.control.scheduling import cycles
from farshore.control.scheduling.loop import STUCK_AFTER, Scheduler
from farshore.control.store import Store, settings
from farshore.control.store.records import Cycle, Plan


class Silent:
    """Tells no story."""

    def tend(self) -> None:
        return False

    def check(self) -> None:
        pass

    def forget(self, older_than_s: float) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "records.db")
    opened.migrate()
    return opened


def test_a_cycle_that_cannot_go_on_ends_and_says_why(store: Store) -> None:
    with store.write() as tx:
        settings.ensure_identity(tx)
        shop_records.plan(tx)
        shop_records.cycle(tx, state="replicate", task_id="task-that-nobody-has")
    ctx = SimpleNamespace(store=store, started=clock.now(), bus=Bus())
    scheduler = Scheduler(cast("Any", ctx), Silent())
    for _ in range(STUCK_AFTER - 1):
        scheduler.round()
    with store.read() as session:
        assert session.get_one(Cycle, "cyc-1").ended_at is None
    scheduler.round()
    with store.read() as session:
        cycle, plan = session.get_one(Cycle, "cyc-1"), session.get_one(Plan, "shop")
        assert cycle.error is not None
        assert (cycle.state, cycle.error["code"]) == ("failed", "cycle-stuck")
        assert plan.last_error is not None
        assert plan.last_error["code"] == "cycle-stuck"


def test_a_plan_that_is_active_elsewhere_is_not_copied_from_its_old_primary(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycles, "site_state", lambda _session, _site: "online")
    with store.write() as tx:
        shop_records.plan(tx, active_site="beta", epoch=2)
        cycles.begin_due(tx, "shop")
        assert cycles.open_cycles(tx) == []
        cycle = shop_records.cycle(tx)
        cycles.advance(tx, "cyc-1")
        assert (cycle.state, cycle.task_id) == ("cancelled", None)
        assert cycle.error is not None
        assert cycle.error["code"] == "plan-failed-over"


def test_what_is_wrong_with_a_bundle_keeps_nothing_else_from_its_turn(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    tidied: list[float] = []

    class Noted(Silent):
        def forget(self, older_than_s: float) -> None:
            tidied.append(older_than_s)

    ctx = SimpleNamespace(store=store, started=clock.now(), bus=Bus())  # without an identity: no bundle can be written
    Scheduler(cast("Any", ctx), Noted()).round()
    assert len(tidied) == 1
    assert "the bundles of the sites could not be renewed" in caplog.text
