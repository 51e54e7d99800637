"""Which checkpoints count, and how dropped ones go."""

from __future__ import annotations

from pathlib import Path

import pytest
from doubles import shop_records
from farshore import errors
from farshore.control.planning import protect
from farshore.control.runs import selection
from farshore.control.scheduling import retention
from farshore.control.store import Store
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Plan, PlanMachine, Task
from farshore.control.views import protection
from farshore.control.views.points import newest
from farshore.control.views.protection import members, rpo_s
from farshore.errors import Conflict, FarshoreError, Permanent
from sqlalchemy import select


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "records.db")
    opened.migrate()
    return opened


def orders(tx: Transaction) -> list[Task]:
    return list(tx.scalars(select(Task).where(Task.kind == "drop-checkpoint").order_by(Task.created_at)))


def end(tx: Transaction, error: FarshoreError | None) -> None:
    """End the last order."""
    task = orders(tx)[-1]
    task.state, task.ended_at = ("failed" if error else "succeeded"), 1.0  # long ago: no pause is left
    task.error = error.to_dict() if error else None


@pytest.mark.parametrize("moved", ["source_site", "target_site"])
def test_checkpoints_between_other_sites_do_not_count(store: Store, moved: str) -> None:
    with store.write() as tx:
        plan = shop_records.plan(tx)
        shop_records.checkpoint(tx, 1)
        shop_records.checkpoint(tx, 2, **{moved: "gamma"})
        found = newest(tx, plan, shop_records.GROUP)
        assert found is not None
        assert found.checkpoint_id == "cp-1"
        tx.get_one(Checkpoint, "cp-1").state = "tombstoned"
        tx.flush()
        assert newest(tx, plan, shop_records.GROUP) is None
        assert rpo_s(tx, plan, members(tx, "shop")[0]) is None


def test_a_recovery_takes_no_checkpoint_of_another_site(store: Store) -> None:
    with store.write() as tx:
        plan = shop_records.plan(tx)
        shop_records.checkpoint(tx, 1, target_site="gamma")
        with pytest.raises(Conflict) as caught:
            selection.choose(tx, plan, selection.LATEST)
        assert caught.value.code == "no-checkpoint"
        with pytest.raises(Conflict) as caught:
            selection.choose(tx, plan, "cp-1")
        assert caught.value.code == "checkpoint-elsewhere"
        shop_records.checkpoint(tx, 2)
        assert selection.choose(tx, plan, selection.LATEST)["db"].checkpoint_id == "cp-2"


def test_retention_counts_only_what_is_at_the_target(store: Store) -> None:
    with store.write() as tx:
        plan = shop_records.plan(tx, definition={"retention": {"count": 2}})
        for sequence in (1, 2):
            shop_records.checkpoint(tx, sequence, target_site="gamma")
        for sequence in (3, 4, 5):
            shop_records.checkpoint(tx, sequence)
        retention.thin(tx, plan, shop_records.GROUP)
        gone = tx.scalars(select(Checkpoint.checkpoint_id).where(Checkpoint.state == "dropping")).all()
        assert gone == ["cp-3"]


def test_a_checkpoint_in_use_is_offered_again_and_a_later_drop_is_ordered_again(store: Store) -> None:
    with store.write() as tx:
        shop_records.plan(tx)
        row = shop_records.checkpoint(tx, 1)
        for number, code in enumerate(("in-use", "leased", "image-in-use"), 1):
            protect.drop(tx, row)
            retention.remove(tx)
            assert len(orders(tx)) == number
            end(tx, Conflict("a machine stands on it", code=code))
            retention.remove(tx)
            assert row.state == "published"
            retention.remove(tx)
            assert len(orders(tx)) == number
        protect.drop(tx, row)
        retention.remove(tx)
        end(tx, None)
        retention.remove(tx)
        assert row.state == "tombstoned"


@pytest.mark.parametrize("error", [Permanent("no", code="odd"), Conflict("begun, then stopped", code="point-leased")])
def test_a_drop_that_has_begun_is_never_offered_again_and_does_not_hold_up_its_group(
    store: Store, error: FarshoreError
) -> None:
    with store.write() as tx:
        assert tx.get(Plan, "shop") is None
        shop_records.plan(tx)
        row = shop_records.checkpoint(tx, 1)
        protect.drop(tx, row)
        assert retention.dropping(tx, shop_records.GROUP)
        for number in range(1, retention.HOLDS_CYCLES_FOR + 3):
            retention.remove(tx)
            assert len(orders(tx)) == number
            assert retention.dropping(tx, shop_records.GROUP)
            end(tx, errors.from_dict(error.to_dict()))
            assert row.state == "dropping"
            assert retention.dropping(tx, shop_records.GROUP) is (number < retention.HOLDS_CYCLES_FOR)
        retention.remove(tx)
        end(tx, None)
        retention.remove(tx)
        assert row.state == "tombstoned"


def test_a_plan_with_a_machine_that_was_never_copied_has_no_rpo(store: Store) -> None:
    with store.write() as tx:
        shop_records.plan(tx)
        shop_records.checkpoint(tx, 1)
        assert protection.plan(tx, "shop")["rpo_s"] is not None
        first = members(tx, "shop")[0]
        tx.add(
            PlanMachine(
                plan="shop",
                name="web",
                position=1,
                site="alpha",
                machine_id="id-web",
                group_id="group-2",
                activity=first.activity,
                state="seeding",
            )
        )
        tx.flush()
        assert protection.plan(tx, "shop")["rpo_s"] is None
