"""The scheduler: one thread, a round as soon as something has changed, else each second; less often if it is idle."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import bundle, catalog, tasks
from farshore.control.context import Context
from farshore.control.scheduling import (
    cycles,
    detaches,
    drills,
    fences,
    rates,
    retention,
    retirements,
    untracks,
    upkeep,
)
from farshore.control.store.database import Transaction
from farshore.control.store.records import Node, Plan, Site, Task
from farshore.control.views.places import is_online
from farshore.model.task import Empty

log = logging.getLogger(__name__)

ROUND_S: Final = 1.0
#: A round while no cycle and no run is open: what is left to see then are silent nodes, limits by the hour, schedules.
IDLE_ROUND_S: Final = 3.0
#: What happens within this time is looked at together: a round costs the same for one event and for a hundred.
GATHER_S: Final = 0.05
#: How often is looked for what nobody has told of, or what may wait a moment.
CHORES_EVERY_S: Final = 0.25
#: How long a plan of which nothing is due is not looked at unless something happens.
QUIET_S: Final = 5.0
#: How old a site's inventory becomes.
INVENTORY_EVERY_S: Final = 60.0
#: How often the orchestrator looks for stories that have died.
CHECK_EVERY_S: Final = 10.0
#: Rounds in a row that fail with a cycle before it is given up.
STUCK_AFTER: Final = 20
#: How often the schedules of drills are looked at, and whether machines can leave the chain of checkpoints.
DRILLS_EVERY_S: Final = 5.0
#: How often records that nobody needs any more are removed.
TIDY_EVERY_S: Final = 600.0


class Conductor(Protocol):
    """Tells the stories of drills and failovers so that they survive a restart."""

    def tend(self) -> bool:
        """Begin the stories of new runs, wake those to whose run something has happened; say whether there are any."""

    def check(self) -> None:
        """Begin anew the stories that have died."""

    def forget(self, older_than_s: float) -> None:
        """Remove what is remembered of stories that ended long ago."""


class Scheduler:
    """Drives whatever is due."""

    def __init__(self, ctx: Context, conductor: Conductor) -> None:
        self.ctx = ctx
        self._conductor = conductor
        self._bundles = bundle.Keeper(ctx)
        self._checked = time.monotonic()
        self._tidied = self._chored = float("-inf")
        self._drilled = float("-inf")
        #: Plan → until when nothing of it is due, unless something happens.
        self._quiet: dict[str, float] = {}
        #: How long until the next round, if nothing happens.
        self.pause_s = ROUND_S
        #: Cycle → rounds in a row that could not take it further.
        self._stuck: dict[str, int] = {}
        #: The limits that held at the last round, by the names of their resources.
        self._limits: dict[str, float | None] = {}
        self._stopping = threading.Event()

    def run(self) -> None:
        """Work until :meth:`stop`. A round that fails is logged and tried again: all state is in rows."""
        while not self._stopping.is_set():
            happened = self.ctx.bus.scheduler.wait(self.pause_s)
            self._stopping.wait(GATHER_S)
            happened = happened or self.ctx.bus.scheduler.is_set()
            self.ctx.bus.scheduler.clear()
            if self._stopping.is_set():
                return
            try:
                self.round(happened=happened)
            except Exception:
                log.exception("a round of the scheduler failed; the next one tries again")

    def stop(self) -> None:
        """End :meth:`run` after its round."""
        self._stopping.set()
        self.ctx.bus.scheduler.set()

    def _chores(self) -> None:
        """Look after nodes, limits, fences and what waits for its time."""
        with self.ctx.store.write() as tx:
            tasks.take_back(tx, self.ctx.started.wall_s)
            self._limits = rates.watch(tx, self._limits)
            wake_paused(tx)
            _inventories(tx)
            retention.remove(tx)
            fences.advance(tx)
            untracks.advance(tx)
            catalog.rebuild(tx)

    def round(self, *, happened: bool = True) -> None:
        """Do all that is due now. ``happened``: a record has changed since the last round, not time alone."""
        if time.monotonic() - self._chored >= CHORES_EVERY_S:
            self._chored = time.monotonic()
            self._chores()
        with self.ctx.store.read() as session:
            active = select(Plan.name).where(Plan.activity == "active", Plan.state.in_(cycles.PROTECTING))
            plans = [plan for plan in session.scalars(active).all() if not catalog.is_unread(session, plan)]
        for plan in plans:
            if happened or time.monotonic() >= self._quiet.get(plan, 0.0):
                self._each(self._begin_due, plan)
        with self.ctx.store.read() as session:
            open_cycles = cycles.open_cycles(session)
        for cycle_id in open_cycles:
            self._advance(cycle_id)
        self._stuck = {cycle_id: number for cycle_id, number in self._stuck.items() if cycle_id in set(open_cycles)}
        if time.monotonic() - self._drilled > DRILLS_EVERY_S:
            self._drilled = time.monotonic()
            with self.ctx.store.read() as session:
                scheduled = drills.plans(session)
                chained = detaches.plans(session)
                left = retirements.plans(session)
            for plan in scheduled:
                self._each(drills.advance, plan)
            for plan in chained:
                self._each(detaches.advance, plan)
            for plan in left:
                self._each(retirements.advance, plan)
        telling = self._conductor.tend()
        self.pause_s = ROUND_S if open_cycles or telling else self._idle_s(plans)
        self._keep_bundles()
        if time.monotonic() - self._checked > CHECK_EVERY_S:
            self._checked = time.monotonic()
            self._conductor.check()
        if time.monotonic() - self._tidied > TIDY_EVERY_S:
            self._tidied = time.monotonic()
            with self.ctx.store.write() as tx:
                upkeep.tidy(tx)
                retention.thin_all(tx)
            self._conductor.forget(upkeep.KEPT_S)

    def _begin_due(self, tx: Transaction, plan: str) -> None:
        """Begin what is due of a plan, and remember how long nothing will be."""
        self._quiet.pop(plan, None)
        self._quiet[plan] = time.monotonic() + min(cycles.begin_due(tx, plan), QUIET_S)

    def _idle_s(self, plans: Iterable[str]) -> float:
        """Return how long nothing has to be looked at while nothing is at work."""
        due = min((self._quiet.get(plan, 0.0) for plan in plans), default=float("inf"))
        return min(max(due - time.monotonic(), ROUND_S), IDLE_ROUND_S)

    def _keep_bundles(self) -> None:
        """Renew the sites' bundles; what is wrong with one keeps nothing else from its turn."""
        try:
            self._bundles.tend()
        except Exception:
            log.exception("the bundles of the sites could not be renewed; the next round tries again")

    def _advance(self, cycle_id: str) -> None:
        """Take a cycle further; one that cannot be is ended, so that people see it and its group goes on."""
        error = self._each(cycles.advance, cycle_id)
        if error is None:
            self._stuck.pop(cycle_id, None)
            return
        self._stuck[cycle_id] = self._stuck.get(cycle_id, 0) + 1
        if self._stuck[cycle_id] >= STUCK_AFTER:
            del self._stuck[cycle_id]
            self._each(lambda tx, name: cycles.give_up(tx, name, f"{type(error).__name__}: {error}"[:300]), cycle_id)

    def _each(self, act: Callable[[Transaction, str], None], name: str) -> Exception | None:
        """Do one thing in a transaction of its own; its failure is logged, stays its own, and is returned."""
        try:
            with self.ctx.store.write() as tx:
                act(tx, name)
        except Exception as error:
            log.exception("%s of %s failed; the next round tries again", getattr(act, "__name__", "a step"), name)
            return error
        return None


def _inventories(tx: Transaction) -> None:
    """Ask each site whose inventory is old for a new one."""
    now = time.time()
    for site in tx.scalars(select(Site)):
        if site.inventory_at is not None and now - site.inventory_at < INVENTORY_EVERY_S:
            continue
        if _asked(tx, site.name) or not _online(tx, site.name):
            continue
        tasks.ensure(tx, f"inventory/{site.name}/{int(now * 1000)}", "inventory", site.name, Empty())


def wake_paused(tx: Transaction) -> None:
    """Hand out the tasks whose pause is over."""
    now = time.time()
    paused = select(Task).where(Task.state == "queued", Task.not_before > 0, Task.not_before <= now)
    for task in tx.scalars(paused):
        task.not_before = 0.0
        tx.wake(task.site)


def _asked(session: Session, site: str) -> bool:
    return (
        session.scalars(
            select(Task.task_id).where(
                Task.site == site, Task.kind == "inventory", Task.state.in_(("queued", "assigned"))
            )
        ).first()
        is not None
    )


def _online(session: Session, site: str) -> bool:
    return any(is_online(node) for node in session.scalars(select(Node).where(Node.site == site)))
