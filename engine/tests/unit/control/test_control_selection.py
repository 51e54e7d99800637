"""Which checkpoint is meant: by id, label, time or state; and what people are told where none can be."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from doubles import shop_records
from farshore.control import suspicion
from farshore.control.clock import iso
from farshore.control.runs import selection
from farshore.control.store import Store
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Group, Plan
from farshore.errors import Conflict, FarshoreError, Invalid, NotFound

NOW = time.time()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "records.db")
    opened.migrate()
    return opened


def four(tx: Transaction, **changes: dict[str, Any]) -> Plan:
    """Insert the plan with four checkpoints, an hour apart; ``changes`` by their names."""
    plan = shop_records.plan(tx)
    for number in (1, 2, 3, 4):
        name = f"cp-0000{number}aa"
        values = {"checkpoint_id": name, "taken_at": NOW - 3600.0 * (5 - number)}
        shop_records.checkpoint(tx, number, **(values | changes.get(f"n{number}", {})))
    return plan


def chosen(tx: Transaction, plan: Plan, selector: str | float) -> str:
    """Return what a word names, or a time, as hours from now."""
    words = selector if isinstance(selector, str) else str(iso(NOW + selector * 3600))
    return selection.choose(tx, plan, words)["db"].checkpoint_id


FLAGGED = {"score": {"value": 90, "flagged": True, "scored": True, "reasons": ["db/vda: noise"]}}
TAINTED = {"score": {"value": 0, "scored": True, "tainted_by": "cp-00003aa"}}


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("latest", "cp-00004aa"),
        ("latest_clean", "cp-00002aa"),
        ("cp-00003aa", "cp-00003aa"),
        ("cp-00003", "cp-00003aa"),
        ("golden", "cp-00002aa"),
        (-2.5, "cp-00002aa"),
    ],
)
def test_a_checkpoint_is_found_by_what_names_it(store: Store, selector: str | float, found: str) -> None:
    with store.write() as tx:
        plan = four(tx, n2={"label": "golden"}, n3=FLAGGED, n4=TAINTED)
        assert chosen(tx, plan, selector) == found


@pytest.mark.parametrize(
    ("selector", "kind", "code", "says"),
    [
        ("cp-0000", Invalid, "checkpoint-ambiguous", "Say which: cp-00004aa"),
        ("twice", Invalid, "checkpoint-ambiguous", "Say which: cp-00003aa"),
        ("cp-00009zz", NotFound, "checkpoint-unknown", "Did you mean"),
        ("nonsense", NotFound, "checkpoint-unknown", "farshore checkpoint list"),
        (1.0, Invalid, "checkpoint-in-future", "in the past"),
        (-9.0, NotFound, "checkpoint-unknown", "The oldest that retention has kept is cp-00002aa"),
        ("cp-00001aa", NotFound, "checkpoint-removed", "The oldest that is kept is cp-00002aa"),
    ],
)
def test_what_names_none_or_several_is_told_with_what_there_is(
    store: Store, selector: str | float, kind: type[FarshoreError], code: str, says: str
) -> None:
    with store.write() as tx:
        plan = four(tx, n1={"state": "tombstoned"}, n2={"label": "twice"}, n3={"label": "twice"})
        with pytest.raises(kind) as caught:
            chosen(tx, plan, selector)
        assert (caught.value.code, caught.value.field) == (code, "checkpoint")
        assert says in caught.value.hint


def test_a_machine_without_any_checkpoint_is_told_so(store: Store) -> None:
    with store.write() as tx:
        plan = shop_records.plan(tx)
        with pytest.raises(Conflict) as caught:
            chosen(tx, plan, "latest_clean")
        assert caught.value.code == "no-checkpoint"


def test_where_all_are_encrypted_that_is_said_and_one_can_be_cleared(store: Store) -> None:
    with store.write() as tx:
        plan = four(tx, n1=FLAGGED, n2=TAINTED, n3=TAINTED, n4=TAINTED)
        for name in ("cp-00002aa", "cp-00003aa", "cp-00004aa"):
            row = tx.get_one(Checkpoint, name)
            row.score = {**(row.score or {}), "tainted_by": "cp-00001aa"}
        tx.get_one(Group, shop_records.GROUP).tainted_by = "cp-00001aa"
        with pytest.raises(Conflict) as caught:
            chosen(tx, plan, "latest_clean")
        assert caught.value.code == "no-clean-checkpoint"
        assert suspicion.clear(tx, tx.get_one(Checkpoint, "cp-00003aa"), "ann", "restored")
        assert chosen(tx, plan, "latest_clean") == "cp-00004aa"
        assert tx.get_one(Group, shop_records.GROUP).tainted_by is None
        assert not suspicion.is_clean(tx.get_one(Checkpoint, "cp-00002aa"))
        assert not suspicion.clear(tx, tx.get_one(Checkpoint, "cp-00004aa"), "ann", "again")
