"""What nodes that wait for work are woken for: news is for all of a site, a recovery task for those with room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from farshore.control import tasks
from farshore.control.api import node as api
from farshore.control.bus import Bus
from farshore.control.store.database import Effects, Store
from farshore.control.store.records import Node, Site, Task
from farshore.model.task import Empty, MachineParams, PollReply, PollRequest

POLL = PollRequest(
    node="beta-1", incarnation="one", version="1", platform="file", data_port=0, running=(), recoveries=1, wait_s=10.0
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "records.db")
    store.migrate()
    with store.write() as tx:
        tx.add(Site(name="beta", platform="file", description="", created_at=0.0))
        tx.flush()
        tx.add(Node(name="beta-1", site="beta", roles=["recovery"], data_address="x:1", created_at=0.0))
    yield store
    store.close()


def _assign(store: Store, state: str) -> None:
    """Let the node have one recovery task, or have ended it."""
    with store.write() as tx:
        task = tasks.ensure(tx, "k", "machine-power-on", "beta", MachineParams(machine_id="m", epoch=1))
        task.state, task.node = state, "beta-1"


def test_a_recovery_task_is_offered_and_everything_else_is_news(store: Store) -> None:
    told: list[Effects] = []
    store.on_commit = told.append
    with store.write() as tx:
        tasks.ensure(tx, "one", "machine-power-on", "beta", MachineParams(machine_id="m", epoch=1))
    with store.write() as tx:
        tasks.ensure(tx, "two", "inventory", "beta", Empty())
    assert [(effects.sites, effects.offers) for effects in told] == [(set(), {"beta"}), ({"beta"}, set())]


def test_a_node_whose_hands_are_full_is_not_asked_to_look_at_what_it_cannot_take(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bool] = []

    def look(_ctx: Any, _node: str, _body: PollRequest, first: bool) -> PollReply:
        looks.append(first)
        return PollReply()

    monkeypatch.setattr(api, "_poll_once", look)
    monkeypatch.setattr(api, "_check_platform", lambda *_: None)

    async def connected() -> bool:
        return False

    async def looked(times: int) -> None:
        for _ in range(200):
            if len(looks) >= times:
                break
            await asyncio.sleep(0.01)
        assert len(looks) == times

    async def story() -> None:
        bus = Bus()
        bus.attach()
        ctx = SimpleNamespace(store=store, bus=bus)
        request = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(farshore=ctx)), is_disconnected=connected)
        with store.read() as session:
            peer = session.get_one(Node, "beta-1")
        waiting = asyncio.create_task(api.poll(cast("Any", request), POLL, peer))
        await looked(1)
        bus.publish(Effects(offers={"beta"}))
        await asyncio.sleep(0.3)
        await looked(1)
        bus.publish(Effects(sites={"beta"}))  # a cancel, a share: that it has to hear all the same
        await looked(2)
        await asyncio.to_thread(_assign, store, "succeeded")
        bus.publish(Effects(offers={"beta"}))
        await looked(3)
        bus.close()
        await waiting

    _assign(store, "assigned")
    asyncio.run(story())
    with store.read() as session:
        assert session.query(Task).count() == 1
