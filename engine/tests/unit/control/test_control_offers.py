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
from farshore.control.auth.ca import PeerIdentity
from farshore.control.bus import Bus
from farshore.control.store import settings
from farshore.control.store.database import Effects, Store
from farshore.control.store.records import Fence, Node, Site, Task
from farshore.model.task import Empty, LookParams, MachineParams, PollReply, PollRequest, Room, TaskReport

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

    def look(ctx: Any, peer: PeerIdentity, _body: PollRequest, turn: int | None) -> tuple[PollReply, int]:
        looks.append(turn is None)
        return PollReply(), turn if turn is not None else ctx.bus.begin_poll(peer.node)

    monkeypatch.setattr(api, "_poll_once", look)

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
        peer = PeerIdentity("beta", "beta-1", "", 0.0, 0.0)
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


def _ctx() -> Any:
    return SimpleNamespace(grant_key_pem="", started=SimpleNamespace(wall_s=0.0))


def _order(store: Store, *keys: str) -> None:
    with store.write() as tx:
        for key in keys:
            tasks.ensure(tx, key, "machine-power-on", "beta", MachineParams(machine_id=key, epoch=1))


def _poll(store: Store, *running: str, incarnation: str = "one", first: bool = True) -> PollReply:
    with store.write() as tx:
        request = POLL.model_copy(update={"running": running, "incarnation": incarnation})
        return tasks.poll(tx, _ctx(), tx.get_one(Node, "beta-1"), request, first=first)


def _report(store: Store, task_id: str, *, generation: int = 1, incarnation: str = "one") -> list[str]:
    """Report a task's end with room for one; return the keys of what comes for it."""
    room = Room(incarnation=incarnation, generation=generation, recoveries=1)
    with store.write() as tx:
        done = TaskReport(state="succeeded", term=1)
        tasks.report(tx, task_id, "beta-1", done, refills=True)
        return [task.key for task in tasks.more(tx, _ctx(), tx.get_one(Node, "beta-1"), room)]


@pytest.fixture
def ruled(store: Store) -> Store:
    """Give the control plane what a poll looks at."""
    with store.write() as tx:
        settings.ensure_identity(tx)
    return store


def test_a_node_that_reports_is_given_the_next_task_in_the_answer(ruled: Store) -> None:
    _order(ruled, "a", "b", "c")
    (first,) = _poll(ruled).tasks
    assert _report(ruled, first.task_id) == ["b"]
    assert _report(ruled, first.task_id) == []  # said once more: its hands are full
    assert _poll(ruled, first=False).tasks == ()


@pytest.mark.parametrize(
    "told", [{"generation": 2}, {"incarnation": "two"}], ids=["newer generation", "another process"]
)
def test_nothing_is_handed_to_a_node_that_obeys_another_or_is_another(ruled: Store, told: dict[str, Any]) -> None:
    _order(ruled, "a", "b")
    (first,) = _poll(ruled).tasks
    assert _report(ruled, first.task_id, **told) == []


def test_nothing_is_handed_out_before_an_old_primary_was_tried_to_be_fenced(ruled: Store) -> None:
    _order(ruled, "a", "b")
    (first,) = _poll(ruled).tasks
    with ruled.write() as tx:
        tx.add(Fence(site="beta", machine_id="m", plan="shop", machine="web", epoch=1, created_at=0.0, attempts=0))
    assert _report(ruled, first.task_id) == []


def test_what_was_lost_on_its_way_comes_with_the_next_poll(ruled: Store) -> None:
    _order(ruled, "a", "b")
    (first,) = _poll(ruled).tasks
    assert _report(ruled, first.task_id) == ["b"]
    (again,) = _poll(ruled).tasks
    assert (again.key, again.term) == ("b", 1)


def test_a_cancel_reaches_a_task_that_came_with_a_report_while_a_poll_waits(ruled: Store) -> None:
    _order(ruled, "a", "b")
    (first,) = _poll(ruled).tasks
    _report(ruled, first.task_id)
    with ruled.write() as tx:
        second = tx.query(Task).filter_by(key="b").one()
        tasks.cancel(tx, second)
    told = _poll(ruled, first_id := first.task_id, first=False)
    assert (told.tasks, set(told.cancel)) == ((), {first_id, second.task_id})
    with ruled.read() as session:
        assert session.get_one(Task, second.task_id).state == "assigned"  # it may be at work: its node has to say


def test_room_at_a_node_that_refills_itself_wakes_nobody_but_room_at_the_provider_does(ruled: Store) -> None:
    _order(ruled, "a")
    with ruled.write() as tx:
        look = LookParams(machine_id="m")
        tasks.ensure(tx, "look", "machine-look", "beta", look).not_before = 1e12
        tasks.ensure(tx, "next", "machine-look", "beta", look)
    (first,) = _poll(ruled).tasks
    told: list[Effects] = []
    ruled.on_commit = told.append
    assert _report(ruled, first.task_id) == ["next"]
    assert told[-1].offers == {"beta"}  # another machine may be powered on now, by whomever
    with ruled.read() as session:
        second = session.query(Task).filter_by(key="next").one().task_id
    _order(ruled, "b")
    assert _report(ruled, second) == ["b"]
    assert told[-1].offers == set()
