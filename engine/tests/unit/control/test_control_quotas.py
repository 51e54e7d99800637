"""Which recovery tasks a node gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from farshore.control.scheduling import quotas
from farshore.control.store.database import Store
from farshore.control.store.records import Node, Site, Task
from sqlalchemy import select

NOW = 1000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Records with one site, whose provider takes two creations at once, and one node."""
    store = Store(tmp_path / "records.db")
    store.migrate()
    with store.write() as tx:
        limits = {"limits": {"creates": 2, "starts": 1}}
        tx.add(Site(name="beta", platform="simulated", description="", created_at=0.0, inventory=limits))
        tx.flush()
        tx.add(Node(name="beta-1", site="beta", roles=["recovery"], data_address="x:1", created_at=0.0))
    yield store
    store.close()


def _queue(store: Store, run: str, *kinds: str, state: str = "queued") -> None:
    with store.write() as tx:
        for number, kind in enumerate(kinds):
            name = f"{run}-{number:03d}-{kind}-{state}"
            tx.add(
                Task(
                    task_id=name,
                    key=name,
                    kind=kind,
                    site="beta",
                    role=quotas.ROLE,
                    run_id=run,
                    state=state,
                    params={},
                    created_at=float(number),
                )
            )


def _chosen(store: Store, room: int) -> list[str]:
    with store.read() as session:
        node = session.scalars(select(Node)).one()
        return [f"{task.run_id} {task.kind}" for task in quotas.choose(session, node, room, NOW)]


def test_what_may_not_begin_yet_keeps_nothing_behind_it_from_its_turn(store: Store) -> None:
    _queue(store, "one", *["machine-create"] * 50, "machine-probe")
    assert _chosen(store, 3) == ["one machine-create", "one machine-create", "one machine-probe"]
    _queue(store, "one", "machine-create", "machine-create", state="assigned")
    assert _chosen(store, 3) == ["one machine-probe"]


def test_runs_take_turns_and_share_what_the_provider_takes(store: Store) -> None:
    _queue(store, "one", *["machine-probe"] * 5)
    _queue(store, "two", "machine-power-on", "machine-power-on", "machine-probe")
    assert _chosen(store, 3) == ["one machine-probe", "two machine-power-on", "one machine-probe"]
    assert _chosen(store, 9) == [
        "one machine-probe",
        "two machine-power-on",
        "one machine-probe",
        "one machine-probe",
        "two machine-probe",
        "one machine-probe",
        "one machine-probe",
    ]
    assert _chosen(store, 0) == []


def test_disks_that_are_written_count_over_all_sites_of_an_account(store: Store) -> None:
    with store.write() as tx:
        told = {"limits": {"account": "1.eu", "drafts": 10}}
        tx.get_one(Site, "beta").inventory = told
        tx.add(Site(name="gamma", platform="simulated", description="", created_at=0.0, inventory=told))
        tx.add(Site(name="delta", platform="simulated", description="", created_at=0.0))
    with store.read() as session:
        assert quotas.takes_drafts(session, "beta", lambda: 4, [("beta", 3), ("gamma", 3), ("delta", 50)])
        assert not quotas.takes_drafts(session, "beta", lambda: 5, [("beta", 3), ("gamma", 3)])
        assert quotas.takes_drafts(session, "beta", lambda: 50, [("delta", 50)]), "it begins alone"
        assert quotas.takes_drafts(session, "delta", lambda: 50, [("delta", 50)])
