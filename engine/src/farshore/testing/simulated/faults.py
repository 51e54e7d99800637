"""Recoveries under drawn faults, in a made-up time: what decides and acts is real, processes and waiting are not.

A schedule draws a plan, a provider's limits and faults, and crashes of nodes and of the control plane, which may die in
the middle of any transaction or before it has noted how far a run is. Afterwards the faults are healed, the run is gone
on with, and an oracle looks at all that the provider was asked.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, cast
from unittest import mock

import greenlet  # type: ignore[import-untyped]
from sqlalchemy import select

from farshore.control import catalog, clock, inventory, tasks
from farshore.control import home as homes
from farshore.control.bus import Bus
from farshore.control.context import Context
from farshore.control.planning import apply, protect
from farshore.control.planning.apply import group_of
from farshore.control.runs import again, boot, drill, failover, stories, story
from farshore.control.scheduling import fences, loop
from farshore.control.store import settings
from farshore.control.store.database import Effects, Store, Transaction
from farshore.control.store.records import Node, Run, RunMachine, Site, Task
from farshore.control.views.history import OPEN
from farshore.errors import FarshoreError, Fenced, NotFound, Reconnect
from farshore.model.machine import Inventory, PoolFacts
from farshore.model.plan import Plan
from farshore.model.task import PollRequest, Room, TaskReport
from farshore.model.task import Task as WireTask
from farshore.node import tasks as handlers
from farshore.node.marks import Marks
from farshore.node.worker import Call
from farshore.platforms.contract import Platform
from farshore.platforms.directory import DirectoryManifests
from farshore.platforms.paced import Pace, paced
from farshore.platforms.simulated.account import Account, Faults, Limits
from farshore.platforms.simulated.api import result_of
from farshore.platforms.simulated.compute import SimulatedCompute
from farshore.testing.simulated import oracle
from farshore.testing.simulated.house import PLAN, SOURCE, TARGET, Fleet, manifest_of
from farshore.testing.simulated.virtual import Event, Hub, instead

#: The longest a run may take, and the whole of a schedule, in made-up time.
LONGEST_RUN_S: Final = 4 * 3600.0
_LOOK_AGAIN_S: Final = 30.0
#: Longer than from the beginning of a schedule to the return of the last node that died.
NODES_BACK_S: Final = 160.0
#: Times that a run is gone on with after all faults were healed.
MOST_RETRIES: Final = 3
_POOL: Final = PoolFacts(path="/pool", capacity_bytes=1 << 40, free_bytes=1 << 40)
_ENDED: Final = frozenset({"succeeded", "partial", "failed", "cancelled"})


class Killed(BaseException):
    """The control plane dies here. Nobody catches it but the world."""


@dataclass(slots=True)
class Outcome:
    """How a schedule went. ``states`` are those of its runs, in order; ``wrong`` is empty if all is well."""

    seed: int
    kind: str = ""
    states: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    kills: int = 0
    calls: int = 0
    throttled: int = 0
    lost: int = 0


class _Store(Store):
    """Records whose transactions may die before their commit."""

    def __init__(self, path: Path, on_commit: Callable[[Effects], None], dies: Callable[[], bool]) -> None:
        super().__init__(path, on_commit)
        self._dies = dies

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open a transaction."""
        with super().write() as tx:
            yield tx
            if self._dies():
                raise Killed


class _Points:
    """A pool in memory: every point is there."""

    def __init__(self) -> None:
        self.leases: set[tuple[str, str]] = set()

    def has(self, _point: str) -> bool:
        return True

    def lease(self, point: str, tag: str) -> None:
        self.leases.add((point, tag))

    def release(self, tag: str) -> None:
        self.leases = {pair for pair in self.leases if pair[1] != tag}


class _Locks:
    """``KeyedLocks`` in a hub's time."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._holders: dict[str, int] = {}

    @contextmanager
    def hold(self, call: Call, key: str, *, shared: bool = False) -> Iterator[None]:
        while self._holders.get(key, 0) < 0 or (not shared and self._holders.get(key, 0)):
            call.check()
            self._hub.sleep(0.1)
        call.check()
        self._holders[key] = self._holders.get(key, 0) + 1 if shared else -1
        try:
            yield
        finally:
            self._holders[key] = self._holders[key] - 1 if shared else 0


class _Api:
    """Calls of an account in a hub's time."""

    def __init__(self, world: World, caller: str) -> None:
        self._world, self._caller = world, caller

    def call(self, operation: str, **params: Any) -> Any:
        hub, account = self._world.hub, self._world.account
        pending = account.begin(operation, params, hub.now, self._caller)
        replies: list[dict[str, Any]] = []
        hub.at(pending.ends_at, lambda: replies.append(account.finish(pending, hub.now)))
        hub.sleep(pending.ends_at - hub.now)
        if pending.lost:
            raise Reconnect("the reply did not come", code="reply-lost")
        return result_of(replies[0])


class _VirtualNode:
    """A node: polls, executes by the real handlers, reports until it is heard."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self._numbers = itertools.count()
        self._pieces: list[greenlet.greenlet] = []
        self.start()

    def start(self) -> None:
        """Begin, with nothing in hand; nothing to do for one that lives."""
        if self._pieces:
            return
        world = self.world
        self._incarnation = f"{self.name}-{next(self._numbers)}"
        self._held: dict[str, Call] = {}
        self._generation = 0
        self._standing = ""
        self._pace = Pace(lambda: world.hub.now, world.hub.sleep)
        compute = SimulatedCompute(_Api(world, self.name), lambda: world.pool)
        platform = Platform(
            type="simulated",
            source=cast("Any", None),
            target=cast("Any", world.points),
            manifests=DirectoryManifests(world.folder / "manifests"),
            inventory=compute.inventory,
            compute=paced(compute, self._pace),
        )
        none = cast("Any", None)
        self._site = handlers.Site(
            platform,
            none,
            none,
            world.folder,
            Marks(world.folder / f"{self.name}.json"),
            cast("Any", _Locks(world.hub)),
            lambda: None,
        )
        self._pieces = [world.hub.spawn(self._poll)]

    def crash(self) -> None:
        """Die with all that it does."""
        for piece in self._pieces:
            self.world.hub.kill(piece)
        self._pieces = []

    def _poll(self) -> None:
        while True:
            request = PollRequest(
                node=self.name,
                incarnation=self._incarnation,
                version="virtual",
                platform="simulated",
                data_port=0,
                running=tuple(sorted(self._held)),
                recoveries=self.world.slots,
                generation=self._generation,
                standing=self._standing,
            )
            try:
                with self.world.ctx.store.write() as tx:
                    reply = tasks.poll(tx, self.world.ctx, tx.get_one(Node, self.name), request, first=True)
            except Killed:
                self.world.killed()
                self.world.hub.sleep(1.0)
                continue
            self._standing = reply.standing
            shares = {share.resource: share.bytes_per_s for share in reply.limits}
            self._pace.set(shares.get(f"calls:{TARGET}"))
            self._begin(reply.tasks)
            for task_id in reply.cancel:
                if task_id in self._held:
                    self._held[task_id].cancel.set()
            self.world.hub.await_change("work", 10.0)

    def _begin(self, given: Iterable[WireTask]) -> None:
        for task in given:
            if task.task_id not in self._held:
                call = Call(task, cancel=cast("Any", Event(self.world.hub)))
                self._held[task.task_id] = call
                self._pieces.append(self.world.hub.spawn(lambda call=call: self._run(call)))  # type: ignore[misc]

    def _run(self, call: Call) -> None:
        term = call.task.term
        try:
            report = TaskReport(state="succeeded", term=term, result=handlers.execute(self._site, call))
        except FarshoreError as error:
            report = TaskReport(state="failed", term=term, error=error.to_dict())
        given: tuple[WireTask, ...] = ()
        while True:
            room = Room(incarnation=self._incarnation, generation=self._generation, recoveries=self.world.slots)
            try:
                with self.world.ctx.store.write() as tx:
                    tasks.report(tx, call.task.task_id, self.name, report, refills=True)
                    given = tasks.more(tx, self.world.ctx, tx.get_one(Node, self.name), room)
            except Killed:
                self.world.killed()
            except (Fenced, NotFound):
                break
            else:
                if self.world.draw.random() >= self.world.lose_reports:
                    break
            self.world.hub.sleep(1.0)
        self._held.pop(call.task.task_id, None)
        self._begin(given)
        self.world.hub.changed("work")


class World:
    """One schedule's control plane, nodes and provider."""

    def __init__(self, folder: Path, home: homes.Home, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.draw = draw = random.Random(seed)  # noqa: S311 - a schedule, no secret
        self.hub = Hub()
        machines = draw.randint(2, 7)
        self.fleet = Fleet(
            machines,
            draw.randint(1, min(3, machines)),
            depends_every=draw.choice((2, 3, 9)),
            probe_timeout_s=20.0,
            critical=draw.random() < 0.5,
        )
        self.limits = Limits(
            creates=draw.randint(1, 4),
            starts=draw.randint(1, 4),
            calls_per_s=float(draw.choice((5, 20, 100))),
            burst=draw.choice((10, 40)),
            machines=machines if draw.random() < 0.85 else draw.randint(1, machines),
        )
        self.account = Account(
            limits=self.limits,
            faults=Faults(
                throttle=draw.choice((0.0, 0.05, 0.2)),
                lose=draw.choice((0.0, 0.05, 0.15)),
                slow=draw.choice((0.0, 0.1)),
                stuck=draw.choice((0.0, 0.0, 0.1)),
                red=draw.choice((0.0, 0.0, 0.1)),
            ),
            seed=seed,
        )
        self.calls: list[dict[str, Any]] = []
        self.account.record = self.calls.append
        self.account.networks["lan"] = {"name": "lan"}
        self.kill_rate = draw.choice((0.0, 0.01, 0.05))
        self.lose_reports = draw.choice((0.0, 0.1))
        self.slots = draw.randint(1, 6)
        self.points = _Points()
        self.pool = _POOL
        self.kills = 0
        self.phases: dict[str, tuple[str, str]] = {}
        self._told: dict[str, tuple[int, float]] = {}
        self._dirty = True
        database = folder / "records.db"
        shutil.copy(home.database, database)
        store = _Store(database, self._committed, self._dies)
        self.ctx = Context(home, store, Bus(), clock.now())
        self.nodes: list[_VirtualNode] = []

    def _committed(self, effects: Effects) -> None:
        self._dirty = self._dirty or any(kind == "run" for kind, _ in effects.changes)
        if self._dirty:
            self.hub.changed("run")
        if TARGET in effects.sites | effects.offers:
            self.hub.changed("work")

    def _dies(self) -> bool:
        return self.draw.random() < self.kill_rate

    def killed(self) -> None:
        """Count a death of the control plane; what it knew of its runs and had not written down is gone."""
        self.kills += 1
        self._told.clear()
        if self.draw.random() < 0.5:
            self.phases.clear()

    # --- the beginning ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make sites, nodes, the plan and its checkpoints; begin."""
        rate, self.kill_rate = self.kill_rate, 0.0
        names = [f"beta-{number}" for number in range(self.draw.randint(1, 3))]
        with self.ctx.store.write() as tx:
            for site in (SOURCE, TARGET):
                tx.add(Site(name=site, platform="simulated", description="", data_listen="source", created_at=0.0))
            tx.flush()
            for name in names:
                tx.add(Node(name=name, site=TARGET, roles=["recovery"], data_address="x:1", created_at=0.0))
            found = tuple(self.fleet.facts(name) for name in self.fleet.names())
            inventory.apply(tx, SOURCE, Inventory(platform="simulated", machines=found))
            shown = SimulatedCompute(_Now(self.account, self.hub), lambda: self.pool).inventory()
            inventory.apply(tx, TARGET, shown)
        definition = Plan.model_validate(self.fleet.definition())
        with self.ctx.store.write() as tx:
            wanted = apply.Wanted(definition, apply.source_text(self.fleet.definition()))
            apply.apply(tx, PLAN, wanted, "test")
            protect.apply(tx, PLAN, protect.ProtectWish(state="protected"))
            catalog_id, generation = settings.catalog_id(tx), settings.generation(tx)
            for facts in found:
                group = group_of(definition, facts.name)
                catalog.project(tx, manifest_of(definition, group, [facts], catalog_id, generation), None)
        self.nodes = [_VirtualNode(self, name) for name in names]
        self.hub.run(self._all_seen, 60.0)
        self.hub.spawn(self._chores)
        self.hub.spawn(self._conduct)
        self.kill_rate = rate
        for _ in range(self.draw.choice((0, 0, 1, 3))):
            node = self.draw.choice(self.nodes)
            moment = self.hub.now + self.draw.uniform(0.0, 60.0)
            self.hub.at(moment, node.crash)
            self.hub.at(moment + self.draw.uniform(0.1, 90.0), node.start)

    def _all_seen(self) -> bool:
        with self.ctx.store.read() as session:
            return all(node.last_seen is not None for node in session.scalars(select(Node)))

    # --- the control plane's own work --------------------------------------------------------------------------------

    def _chores(self) -> None:
        while True:
            try:
                with self.ctx.store.write() as tx:
                    tasks.take_back(tx, 0.0)
                    loop.wake_paused(tx)
                    fences.advance(tx)
            except Killed:
                self.killed()
            self.hub.sleep(2.0)

    def _conduct(self) -> None:
        """Tell the stories, as the orchestrator does: a phase again and again until it is through."""
        while True:
            with self.ctx.store.read() as session:
                runs = session.scalars(select(Run).where(Run.workflow, Run.state.in_(OPEN))).all()
                begins = {
                    run.run_id: stories.begin(run) for run in runs if self._is_due(run.run_id, run.pokes, run.wake_at)
                }
            for run_id, begin in begins.items():
                self._tell(run_id, begin)
            self.hub.await_change("run", 5.0)

    def _is_due(self, run_id: str, pokes: int, wake_at: float | None) -> bool:
        """Say whether something has happened to a run, or nobody has looked at it for long."""
        told, looked_at = self._told.get(run_id, (-1, 0.0))
        if pokes == told and self.hub.now - looked_at < _LOOK_AGAIN_S and (wake_at or 1e18) > self.hub.now:
            return False
        self._told[run_id] = (pokes, self.hub.now)
        return True

    def _tell(self, run_id: str, begin: tuple[str, str]) -> None:
        name, phase = self.phases.get(run_id, begin)
        while True:
            try:
                after = story.advance(self.ctx, stories.STORIES[name], run_id, phase)
            except Killed:
                self.killed()
                return
            if after is None:
                return
            if self._dies():  # it was done, but not noted: the same phase again
                self.killed()
                return
            self.phases[run_id] = (name, after)
            if after == phase:
                return
            phase = after

    # --- runs ------------------------------------------------------------------------------------------------------

    def order(self, kind: str) -> str:
        """Order a drill or a failover."""
        with self.ctx.store.write() as tx:
            if kind == "drill":
                return drill.request(tx, PLAN, drill.DrillWish(), "test").run_id
            wish = failover.FailoverWish(to_site=TARGET, mode="unplanned", force=True)
            run = failover.request(tx, PLAN, wish, "test")
            assert run is not None  # noqa: S101 - the plan is active at the source
            return run.run_id

    def again(self, run_id: str) -> str:
        """Go on with a run that did not end well."""
        with self.ctx.store.write() as tx:
            return again.order(tx, tx.get_one(Run, run_id), again.RetryWish(), "test")[0].run_id

    def state(self, run_id: str) -> str:
        """Return a run's state."""
        with self.ctx.store.read() as session:
            return session.get_one(Run, run_id).state

    def has_ended(self, run_id: str) -> bool:
        """Say whether a run has ended; the records are read only where something has happened to one."""
        if not self._dirty:
            return False
        self._dirty = False
        return self.state(run_id) not in OPEN

    def heal(self) -> None:
        """End all faults."""
        self.kill_rate = self.lose_reports = 0.0
        self.account.faults = Faults()
        self.account.limits = Limits(
            self.limits.creates, self.limits.starts, self.limits.calls_per_s, self.limits.burst
        )
        for machine in self.account.machines.values():
            machine.red = False
            machine.ready_at = self.hub.now if machine.power == "on" else None


class _Now:
    """Calls that take no time."""

    def __init__(self, account: Account, hub: Hub) -> None:
        self._account, self._hub = account, hub

    def call(self, operation: str, **params: Any) -> Any:
        pending = self._account.begin(operation, params, self._hub.now, "experiment")
        return result_of(self._account.finish(pending, self._hub.now))


def run(folder: Path, home: homes.Home, seed: int) -> Outcome:
    """Run one schedule in ``folder``, which is empty; ``home`` is one that was just made."""
    found = Outcome(seed)
    world = World(folder, home, seed)
    try:
        # Plans are small here, and so is what is ordered ahead of the nodes.
        with instead(world.hub), mock.patch.object(boot, "MOST_QUEUED", 1 + seed % 4):
            world.open()
            _play(world, found)
    finally:
        world.ctx.store.close()
    return found


def run_seeds(folder: Path, seeds: Sequence[int]) -> list[Outcome]:
    """Run schedules one after the other, each below ``folder``, which a process of its own may share."""
    home = homes.initialise(folder / f"home-{seeds[0]}", port=1, node_port=2)
    outcomes = []
    for seed in seeds:
        place = folder / f"schedule-{seed}"
        place.mkdir()
        outcomes.append(run(place, home, seed))
        shutil.rmtree(place)
    return outcomes


def _play(world: World, found: Outcome) -> None:
    found.kind = world.draw.choice(("failover", "failover", "drill"))
    cancelled = found.kind == "drill" and world.draw.random() < 0.2
    rate, world.kill_rate = world.kill_rate, 0.0
    run_id = world.order(found.kind)
    if cancelled:
        world.hub.at(world.hub.now + world.draw.uniform(0.5, 30.0), lambda: _cancel(world, run_id))
    world.kill_rate = rate
    for attempt in range(1 + MOST_RETRIES):
        if not world.hub.run(partial(world.has_ended, run_id), LONGEST_RUN_S):
            found.wrong.append(f"run {attempt} did not end: {_where(world, run_id)}")
            return
        found.states.append(world.state(run_id))
        found.wrong += _named(world, run_id)
        if found.states[-1] == "succeeded":
            break
        world.heal()
        world.hub.run(lambda: False, NODES_BACK_S)
        try:
            run_id = world.again(run_id)
        except FarshoreError as error:
            found.wrong.append(f"a run that ended {found.states[-1]} cannot be gone on with: {error.code}")
            return
    else:
        found.wrong.append(f"it never succeeded: {found.states}")
    world.hub.run(lambda: False, 20.0)
    _judge(world, found)


def _cancel(world: World, run_id: str) -> None:
    rate, world.kill_rate = world.kill_rate, 0.0
    with world.ctx.store.write() as tx:
        row = tx.get_one(Run, run_id)
        if row.state in OPEN:
            row.cancel = True
            row.pokes += 1
            tx.changed("run", run_id)
    world.kill_rate = rate


def _named(world: World, run_id: str) -> list[str]:
    """Return what a run that has ended does not say."""
    with world.ctx.store.read() as session:
        row = session.get_one(Run, run_id)
        wrong = [] if row.state in _ENDED else [f"a run ended as {row.state!r}"]
        if row.state == "failed" and not (row.error and row.error.get("code") and row.error.get("message")):
            wrong.append(f"a failed run has no error: {row.error}")
        left = session.scalars(select(Task).where(Task.run_id == run_id, Task.state.in_(tasks.OPEN))).all()
        return wrong + [f"{task.kind} is still {task.state} after the run's end" for task in left]


def _where(world: World, run_id: str) -> str:
    with world.ctx.store.read() as session:
        machines = session.scalars(select(RunMachine).where(RunMachine.run_id == run_id)).all()
        left = session.scalars(select(Task).where(Task.run_id == run_id, Task.state.in_(tasks.OPEN))).all()
        return (
            f"{world.phases.get(run_id)}, {[machine.state for machine in machines]},"
            f" {[(task.kind, task.state) for task in left]}"
        )


def _judge(world: World, found: Outcome) -> None:
    calls = sorted((one for one in world.calls if one["caller"] != "experiment"), key=lambda one: one["began_at"])
    verdict = oracle.judge(
        calls,
        creates=world.limits.creates,
        starts=world.limits.starts,
        calls_per_s=world.limits.calls_per_s,
        burst=world.limits.burst,
    )
    found.kills, found.calls, found.lost = world.kills, verdict.calls, verdict.lost
    found.throttled = sum(one["error"] == "throttled" for one in calls)
    # A quota that is too small is a fault of the schedule, not of whoever meets it.
    found.wrong += [text for text in verdict.wrong if not text.endswith("limit quota")]
    with world.ctx.store.read() as session:
        rows = session.scalars(select(RunMachine).where(RunMachine.target_machine_id.is_not(None))).all()
        names = {str(row.target_machine_id): row.name for row in rows}
    shown: list[dict[str, Any]] = [
        {"machine_id": one.machine_id, "name": one.name, "tags": {"farshore": one.tag}}
        for one in world.account.machines.values()
    ]
    if found.kind == "drill":
        found.wrong += [f"{one['name']} is left of a drill" for one in shown]
    else:
        tag = next((one.tag for one in world.account.machines.values()), "")
        found.wrong += oracle.leftovers(shown, names, tag)
        found.wrong += [] if len(shown) == world.fleet.machines else [f"{len(shown)} of {world.fleet.machines} exist"]
    found.wrong += oracle.out_of_order(calls, names, [], world.fleet.depends_on())
