"""What is made of addenda: which checkpoints are offered, and what people are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doubles import shop_records
from doubles.manifests import a_manifest
from farshore.control import catalog, clock, integrity, views
from farshore.control.clock import iso
from farshore.control.runs import selection
from farshore.control.scheduling import retention
from farshore.control.store import Store, settings
from farshore.control.store.database import Transaction
from farshore.control.store.records import Audit, Checkpoint
from farshore.control.views.points import newest
from farshore.control.views.protection import members, rpo_s
from farshore.errors import Conflict
from farshore.model.checkpoint import DiskPoint
from farshore.model.integrity import Addendum, Damage
from farshore.model.machine import MachineFacts
from sqlalchemy import select


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "records.db")
    opened.migrate()
    return opened


def addendum(sequence: int, **changes: Any) -> Addendum:
    values: dict[str, Any] = {
        "checkpoint_id": f"cp-{sequence}",
        "group_id": shop_records.GROUP,
        "epoch": 1,
        "sequence": sequence,
        "verdict": "suspect",
        "by": "audit",
        "origin": "cp-9",
        "at": 5.0,
        "reason": "change tracking missed a change of disk id-db/vda at offset 65536",
        "damages": (Damage(disk_key="id-db/vda", kind="missed-change", offset=65536, length=65536),),
    }
    return Addendum.model_validate({**values, **changes})


def chosen(tx: Transaction, selector: str, **options: bool) -> str:
    plan = tx.get_one(shop_records.Plan, "shop")
    return selection.choose(tx, plan, selector, **options)["db"].checkpoint_id


def test_a_suspect_checkpoint_is_passed_over_and_refused_unless_asked_for(store: Store) -> None:
    with store.write() as tx:
        shop_records.plan(tx)
        now = clock.now().wall_s
        for sequence in (1, 2, 3):
            shop_records.checkpoint(tx, sequence, taken_at=now - 10 + sequence)
        integrity.learn(tx, [addendum(3)])
        assert chosen(tx, "latest") == "cp-2"
        assert chosen(tx, str(iso(now))) == "cp-2"
        assert chosen(tx, "cp-1") == "cp-1"
        with pytest.raises(Conflict) as caught:
            chosen(tx, "cp-3")
        assert caught.value.code == "checkpoint-suspect"
        assert "offset 65536" in caught.value.message
        assert "--allow-suspect" in caught.value.hint
        for selector in ("latest", "cp-3", str(iso(now))):
            assert chosen(tx, selector, allow_suspect=True) == "cp-3"
        integrity.learn(tx, [addendum(1), addendum(2)])
        with pytest.raises(Conflict) as caught:
            chosen(tx, "latest")
        assert caught.value.code == "checkpoint-suspect"
        assert caught.value.field == "checkpoint"


def test_what_is_learned_is_shown_told_once_and_audited(store: Store) -> None:
    with store.write() as tx:
        shop_records.plan(tx)
        shop_records.checkpoint(tx, 1)
        assert views.checkpoint(tx, "cp-1")["integrity"] == "audited"
        for _ in range(2):
            integrity.learn(tx, [addendum(1), addendum(7)])
        shown = views.checkpoint(tx, "cp-1")
        assert (shown["integrity"], len(shown["addenda"])) == ("suspect", 1)
        assert shown["addenda"][0]["damages"][0]["offset"] == 65536
        assert "suspect" in views.plan(tx, "shop")["conditions"]
        entries = tx.scalars(select(Audit)).all()
        assert [(entry.action, entry.subject) for entry in entries] == [("checkpoint_suspect", "cp-1")]
        assert entries[0].detail["origin"] == "cp-9"


def test_a_suspect_copy_is_no_copy_for_the_rpo_but_a_base_all_the_same(store: Store) -> None:
    with store.write() as tx:
        plan = shop_records.plan(tx)
        now = clock.now().wall_s
        shop_records.checkpoint(tx, 1, ordered_at=now - 500)
        shop_records.checkpoint(tx, 2, ordered_at=now - 5)
        integrity.learn(tx, [addendum(2)])
        age = rpo_s(tx, plan, members(tx, "shop")[0])
        assert age is not None
        assert age >= 500
        base = newest(tx, plan, shop_records.GROUP)
        assert base is not None
        assert base.checkpoint_id == "cp-2"


def test_a_scrub_that_finds_all_in_order_makes_it_verified(store: Store) -> None:
    with store.write() as tx:
        shop_records.plan(tx)
        shop_records.checkpoint(tx, 1)
        integrity.learn(tx, [addendum(1, by="scrub", origin="run-1", at=1.0)])
        assert tx.get_one(Checkpoint, "cp-1").integrity == "suspect"
        integrity.learn(tx, [addendum(1, by="scrub", origin="run-2", at=2.0, verdict="verified", damages=())])
        assert tx.get_one(Checkpoint, "cp-1").integrity == "verified"
        assert "suspect" not in views.plan(tx, "shop")["conditions"]


def test_a_scan_gives_back_what_the_records_have_lost(store: Store) -> None:
    with store.write() as tx:
        shop_records.plan(tx)
        settings.ensure_identity(tx)
        tx.flush()
        manifest = a_manifest(
            group_id=shop_records.GROUP,
            catalog_id=settings.catalog_id(tx),
            sequence=4,
            machines=(MachineFacts(machine_id="id-db", name="db"),),
            disks=(DiskPoint(disk_key="id-db/vda", size_bytes=1, point="p", tree_root="0" * 64, source_point="s"),),
        )
        result = {"manifests": [manifest.model_dump(mode="json")], "addenda": [addendum(4).model_dump(mode="json")]}
        for _ in range(2):
            catalog.reconcile(tx, "beta", result)
        assert tx.get_one(Checkpoint, "cp-4").integrity == "suspect"
        assert len(tx.get_one(Checkpoint, "cp-4").addenda) == 1


def test_retention_leaves_the_newest_sound_copy(store: Store) -> None:
    with store.write() as tx:
        plan = shop_records.plan(tx, definition={"retention": {"count": 1}})
        for sequence in (1, 2, 3, 4):
            shop_records.checkpoint(tx, sequence)
        integrity.learn(tx, [addendum(3), addendum(4)])
        retention.thin(tx, plan, shop_records.GROUP)
        gone = tx.scalars(select(Checkpoint.checkpoint_id).where(Checkpoint.state == "dropping")).all()
        assert sorted(gone) == ["cp-1", "cp-3"]
