"""The scheduler while nothing is at work: it sleeps until something happens or falls due."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from doubles import shop_records
from farshore.control import clock
from farshore.control.bus import Bus
from farshore.control.scheduling import cycles, loop
from farshore.control.store import Store, settings
from farshore.control.store.database import Effects, Transaction


class Conductor:
    """Tells no story, or pretends to."""

    telling = False

    def tend(self) -> bool:
        return self.telling

    def check(self) -> None:
        pass

    def forget(self, older_than_s: float) -> None:
        pass


class Looks:
    """Counts how often plans are looked at, and says how long nothing is due."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.plans: list[str] = []
        self.wait_s = 1000.0
        patch.setattr(cycles, "begin_due", self._look)

    def _look(self, _tx: Transaction, plan: str) -> float:
        self.plans.append(plan)
        return self.wait_s


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "records.db")
    opened.migrate()
    with opened.write() as tx:
        settings.ensure_identity(tx)
        shop_records.plan(tx)
    return opened


def scheduler(store: Store, conductor: Conductor | None = None) -> loop.Scheduler:
    ctx = SimpleNamespace(store=store, started=clock.now(), bus=Bus())
    return loop.Scheduler(cast("Any", ctx), conductor or Conductor())


def test_a_plan_of_which_nothing_is_due_is_looked_at_when_something_happens(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(monkeypatch)
    one = scheduler(store)
    one.round(happened=False)  # nobody knows of it yet
    one.round(happened=False)
    assert looks.plans == ["shop"]
    one.round()
    assert looks.plans == ["shop"] * 2
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + loop.QUIET_S)
    one.round(happened=False)  # nothing is trusted for longer
    assert looks.plans == ["shop"] * 3


def test_a_round_comes_when_the_next_cycle_is_due_and_sooner_while_something_is_at_work(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, conductor = Looks(monkeypatch), Conductor()
    one = scheduler(store, conductor)
    one.round()
    assert one.pause_s == loop.IDLE_ROUND_S
    looks.wait_s = 2.0
    one.round()
    assert loop.ROUND_S < one.pause_s <= 2.0
    looks.wait_s = 0.0  # nobody knows: a site is silent, points are being removed
    one.round()
    assert one.pause_s == loop.ROUND_S
    looks.wait_s, conductor.telling = 1000.0, True
    one.round()
    assert one.pause_s == loop.ROUND_S
    conductor.telling = False
    with store.write() as tx:
        shop_records.cycle(tx)
    one.round()
    assert one.pause_s == loop.ROUND_S


def test_until_the_next_cycle_is_known_from_the_newest_checkpoint(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycles, "site_state", lambda _session, _site: "online")
    now = clock.now()
    with store.write() as tx:
        plan = tx.get_one(shop_records.Plan, "shop")
        rpo_s = float(cycles.definitions.of_plan(plan).rpo)
        shop_records.cycle(tx, state="published", machines=["id-db"], ended_at=1.0)
        shop_records.checkpoint(
            tx, 1, cycle_id="cyc-1", ordered_at=now.wall_s, ordered_boot_s=now.boot_s, ordered_boot_id=now.boot_id
        )
        assert rpo_s / 2 - 1.0 < cycles.begin_due(tx, "shop") <= rpo_s / 2
        assert cycles.open_cycles(tx) == []
        tx.get_one(shop_records.Group, shop_records.GROUP).not_before = now.wall_s + 60.0
        assert cycles.begin_due(tx, "shop") == 0.0  # its pause ends by itself


def test_a_transaction_that_changed_nothing_wakes_nobody() -> None:
    bus = Bus()
    bus.publish(Effects())
    assert not bus.scheduler.is_set()
    bus.publish(Effects(sites={"alpha"}))
    assert bus.scheduler.is_set()
