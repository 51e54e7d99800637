"""Recoveries before a simulated provider: real processes that are killed, and drawn faults in a made-up time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest
from farshore.control import home as homes
from farshore.control.runs import boot
from farshore.control.store.records import Task
from farshore.platforms.simulated.account import Limits
from farshore.testing.simulated import oracle
from farshore.testing.simulated.faults import LONGEST_RUN_S, World, run_seeds
from farshore.testing.simulated.house import Fleet
from farshore.testing.simulated.kills import kill_through
from farshore.testing.simulated.virtual import instead

#: Schedules of faults in each run of the tests; ``make figures ONLY=rec-faults`` runs a thousand.
SEEDS = range(1, 31)
#: Schedules that have found something once.
FOUND = (33, 57, 172)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="fs-") as name:
        yield Path(name)


@pytest.mark.timeout(600)
def test_a_control_plane_that_is_killed_five_times_ends_its_failover_right(place: Path) -> None:
    found = kill_through(place, machines=10, groups=3, kills=5, seed=1)
    assert found.wrong == [], found
    assert (found.state, len(found.points)) == ("succeeded", 5), found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", [*(SEEDS[at : at + 10] for at in range(0, len(SEEDS), 10)), FOUND], ids=str)
def test_under_drawn_faults_every_run_ends_and_can_be_gone_on_with(seeds: Sequence[int], place: Path) -> None:
    outcomes = run_seeds(place, seeds)
    bad = [one for one in outcomes if one.wrong]
    assert bad == []
    assert {one.states[-1] for one in outcomes} == {"succeeded"}


@pytest.mark.timeout(600)
def test_a_machine_goes_on_once_it_is_made_and_does_not_wait_for_all_others(place: Path) -> None:
    ahead, machines, slots = 8, 60, 4
    world = World(place, homes.initialise(place / "home", port=1, node_port=2), seed=1)
    world.fleet, world.slots, world.kill_rate = Fleet(machines, 2, depends_every=machines), slots, 0.0
    world.limits = Limits(creates=500, starts=500, calls_per_s=5000.0, burst=5000)
    world.heal()
    most_queued = 0

    def ended(run_id: str) -> bool:
        nonlocal most_queued
        with world.ctx.store.read() as session:
            waiting = session.query(Task).where(Task.kind == "machine-create", Task.state == "queued").count()
        most_queued = max(most_queued, waiting)
        return world.has_ended(run_id)

    with instead(world.hub), mock.patch.object(boot, "MOST_QUEUED", ahead):
        world.open()
        run_id = world.order("failover")
        assert world.hub.run(lambda: ended(run_id), LONGEST_RUN_S)
    assert world.state(run_id) == "succeeded"
    world.ctx.store.close()
    assert most_queued == ahead
    calls = [call["operation"] for call in world.calls if call["caller"] != "experiment"]
    before = calls[: calls.index("start")].count("create")
    # It is made, prepared and started, and before each of that so many others are handed out.
    assert before <= 3 * ahead + slots * len(world.nodes) < machines
    assert len(world.account.machines) == machines


def _call(operation: str, began: float, ended: float, **more: object) -> dict[str, object]:
    return {
        "number": began,
        "operation": operation,
        "of": "m",
        "key": "k",
        "caller": "n",
        "began_at": began,
        "ended_at": ended,
        "error": None,
        "limit": None,
        "lost": False,
        "joined": False,
        "result": None,
        **more,
    }


def test_the_oracle_sees_what_is_too_much() -> None:
    limits = {"creates": 1, "starts": 1, "calls_per_s": 1.0, "burst": 2}
    good = [_call("create", 0.0, 1.0, result="a"), _call("create", 1.0, 2.0, result="b", key="other")]
    assert oracle.judge(good, **limits).wrong == []
    together = [_call("start", 0.0, 1.0), _call("start", 0.5, 1.5)]
    assert "2 calls of start at once" in oracle.judge(together, **limits).wrong[0]
    twice = [_call("create", 0.0, 1.0, result="a"), _call("create", 5.0, 6.0, result="b")]
    assert "made 2 times" in oracle.judge(twice, **limits).wrong[0]
    burst = [_call("power", 0.1 * number, 0.1 * number + 0.01) for number in range(6)]
    assert "6 calls in a second" in oracle.judge(burst, **limits).wrong[0]
    refused = [_call("create", 0.0, 0.0, error="throttled", limit="create")]
    assert "refused by the limit create" in oracle.judge(refused, **limits).wrong[0]


def test_the_oracle_sees_orphans_and_a_wrong_order() -> None:
    machines = [{"machine_id": "1", "name": "db", "tags": {"farshore": "t"}}]
    assert oracle.leftovers(machines, {"1": "db"}, "t") == []
    assert oracle.leftovers(machines, {}, "t") == ["orphan db (1)"]
    assert oracle.leftovers([], {"1": "db"}, "t") == ["db (1) is gone"]
    calls = [
        _call("start", 0.0, 1.0, of="1"),
        _call("console", 2.0, 2.1, of="1", result="ready\n"),
        _call("start", 1.5, 2.5, of="2"),
    ]
    names = {"1": "db", "2": "web"}
    assert oracle.out_of_order(calls, names, [["db", "web"]], {"web": ["db"]}) == ["web was started before db was up"]
    assert oracle.out_of_order(calls, names, [["db"], ["web"]], {}) != []
