"""The stories of drills and failovers: phases, each a transaction that can be repeated at any time.

A phase looks at the rows, orders the tasks that are missing, and says whether it is through. Tasks are keyed by run,
step, machine and attempt, so that a phase that runs twice orders nothing twice. The orchestrator only remembers which
phase a run is in and waits for something to happen; all effects are here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Select, select
from sqlalchemy.orm import defer

from farshore import errors
from farshore.control import tasks
from farshore.control.context import Context
from farshore.control.planning import definitions
from farshore.control.runs import gates, ledger, reports
from farshore.control.store.database import Transaction
from farshore.control.store.records import Cycle, Plan, Run, RunMachine, RunStep, Task
from farshore.errors import Conflict, FarshoreError, Reconnect, Retry
from farshore.model.base import Report
from farshore.model.plan import Plan as Definition
from farshore.model.task import Empty

log = logging.getLogger(__name__)

#: Tries of one task of a step; the pauses between them double from one second.
MOST_TRIES: Final = 6

#: Does what is possible now; True: the phase is through. Raises what makes the story take its other way.
Act = Callable[["Scene"], bool]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a phase works with."""

    tx: Transaction
    ctx: Context
    run: Run
    plan: Plan
    definition: Definition

    def site(self, purpose: str = "target") -> str:
        """Return the run's ``source`` or ``target`` site: as the plan ran when it was ordered."""
        if purpose == "source":
            return self.run.from_site or self.definition.source_site
        return self.run.to_site or self.definition.target_site


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a story.

    ``on_failure`` names the phase where the story goes on after an error or a cancel; None: the next one, and the phase
    belongs to the end of the story, which is not paused. ``atomic``: an error takes back all that the phase did.
    """

    name: str
    act: Act
    on_failure: str | None = None
    cancellable: bool = False
    atomic: bool = False

    @property
    def pausable(self) -> bool:
        """Whether a run may rest here; on its way to its end it does not."""
        return self.on_failure is not None


Story = tuple[Phase, ...]


def advance(ctx: Context, story: Story, run_id: str, phase_name: str) -> str | None:
    """Take a run as far as its phase goes now; return the phase to go on with (the same: wait), None at the end."""
    with ctx.store.write() as tx:
        # What is large is read where it is needed: a phase looks again each time that something has ended.
        run = tx.get_one(Run, run_id, options=[defer(Run.facts)])
        if run.state not in ledger.OPEN:
            reports.seal(tx, ctx, run)  # one that was ended from outside, by another that took its place
            return None
        plan = tx.get_one(Plan, run.plan, options=[defer(Plan.definition), defer(Plan.source)])
        scene = Scene(tx, ctx, run, plan, definitions.of_plan(plan))
        if run.state == ledger.WAITING_APPROVAL:
            if _ends_unapproved(scene):
                return None
            return phase_name
        ledger.start(tx, run)
        names = [phase.name for phase in story]
        index = names.index(phase_name)
        phase = story[index]
        after = names[index + 1] if index + 1 < len(names) else None
        if not phase.pausable:
            run.pause = False
        gates.tend(tx, run)
        if run.pause and run.phase != phase_name:
            _rest(scene)
            return phase_name
        run.phase, run.wake_at = phase_name, None
        here = _act(scene, phase, after)
        gates.tend(tx, run)
        if run.state not in ledger.OPEN:
            reports.seal(tx, ctx, run)
        _rest(scene)
        return here


def _act(scene: Scene, phase: Phase, after: str | None) -> str | None:
    """Do what a phase can do now; return the phase to go on with."""
    if scene.run.cancel and phase.cancellable:
        fail(scene, Conflict("the run was cancelled", code="cancelled"))
        return phase.on_failure or after
    try:
        with scene.tx.begin_nested() if phase.atomic else nullcontext():
            through = phase.act(scene)
    except FarshoreError as error:
        # What was found out before the error stays recorded, but for a phase that is all or nothing.
        ledger.forget(scene.tx)
        fail(scene, error)
        return phase.on_failure or after
    return after if through else phase.name


def _ends_unapproved(scene: Scene) -> bool:
    """End a run that was cancelled before it was approved, or not approved in time: nothing of it has begun."""
    if scene.run.cancel:
        error = Conflict("the run was cancelled before it was approved", code="cancelled")
        ledger.finish(scene.tx, scene.run, "cancelled", error)
    elif is_too_late(scene.run):
        error = Conflict(
            "the run was not approved in time",
            code="approval-expired",
            hint="Order it again. How long it waits stands in the plan: `approval: {within: 24h}`.",
        )
        ledger.finish(scene.tx, scene.run, "failed", error)
    else:
        return False
    reports.seal(scene.tx, scene.ctx, scene.run)
    return True


def is_too_late(run: Run) -> bool:
    """Say whether a run has waited for approval for as long as its plan gives it."""
    until = run.facts.get("approve_by")
    return until is not None and time.time() >= float(until)


def _rest(scene: Scene) -> None:
    """Show a paused run as such once nothing of it is at work."""
    tx, run = scene.tx, scene.run
    if run.state not in {"running", ledger.PAUSED}:
        return
    state = "running"
    if run.pause:
        at_work = tx.scalars(
            select(Task.task_id).where(Task.run_id == run.run_id, Task.state.in_(tasks.OPEN)).limit(1)
        ).first()
        copies = tx.scalars(
            select(Cycle.cycle_id).where(Cycle.run_id == run.run_id, Cycle.ended_at.is_(None)).limit(1)
        ).first()
        state = ledger.PAUSED if at_work is None and copies is None else "running"
    if run.state != state:
        run.state = state
        tx.changed("run", run.run_id)


def fail(scene: Scene, error: FarshoreError) -> None:
    """Remember the first error of a run."""
    if "error" not in scene.run.facts:
        ledger.note(scene.tx, scene.run, error=error.to_dict())


def error_of(run: Run) -> FarshoreError | None:
    """Return the error that a run remembers."""
    found = run.facts.get("error")
    return errors.from_dict(found) if found else None


def outcome(scene: Scene) -> str:
    """Return how a run that is about to end has gone so far: ``succeeded partial failed`` or ``cancelled``."""
    error = error_of(scene.run)
    if scene.run.cancel and (error is None or error.code == "cancelled"):
        return "cancelled"
    if error is not None:
        return "failed"
    return "partial" if scene.run.facts.get("failures") else "succeeded"


def conclude(scene: Scene, state: str = "succeeded") -> None:
    """End a run whose story is over: as it went; ``state`` says it where it met no error itself."""
    came = outcome(scene)
    told = state != "succeeded" and came in {"succeeded", "partial"}
    ledger.finish(scene.tx, scene.run, state if told else came, error_of(scene.run))


def order(
    scene: Scene,
    step: str,
    kind: str,
    site: str,
    params: Report | Callable[[], Report],
    *,
    machine: str = "",
    patient: bool = False,
    pause_s: float = 0.0,
) -> Task | None:
    """Order a step's task, once; return it when it has ended for good, None before.

    ``params`` may be a function, which is called only where the task is ordered now.
    A failure that may pass is tried again after a pause; ``patient``: without limit, for what has to happen.
    ``pause_s`` comes before the first try. A run that is to pause orders nothing new.
    """
    tx, run = scene.tx, scene.run
    known = ledger.step(tx, run.run_id, step, machine)
    task = tx.get(Task, known.task_id) if known is not None and known.task_id else None
    if task is None and run.pause:
        return None
    row = known or ledger.add(tx, run.run_id, step, machine)
    if task is None:
        task = _insert(scene, row, kind, site, params)
        task.not_before = time.time() + pause_s if pause_s else 0.0
    if task.state not in tasks.ENDED:
        return None
    if task.state == "succeeded":
        ledger.end(tx, row, "succeeded", row.detail)
        return task
    if row.ended_at is not None:
        return task
    error = tasks.failure(task)
    passes = isinstance(error, (Retry, Reconnect)) and task.state == "failed"
    if passes and (patient or row.attempt + 1 < MOST_TRIES):
        if run.pause:
            return None
        row.attempt += 1
        row.detail = f"try {row.attempt + 1}: {error.message}"
        again = _insert(scene, row, kind, site, params)
        again.not_before = time.time() + min(2.0 ** (row.attempt - 1), 30.0)
        return None
    ledger.end(tx, row, "cancelled" if task.state == "cancelled" else "failed", error=error)
    return task


def idle(scene: Scene, *states: str) -> list[str]:
    """Return, in order, the run's machines in one of ``states`` for which nothing is at work: those to look at.

    The rest waits for its tasks, and a look at each of a thousand machines would cost more than the step itself.
    """
    query = select(RunMachine.name).where(
        RunMachine.run_id == scene.run.run_id,
        RunMachine.state.in_(states),
        RunMachine.name.not_in(_at_work(scene.run.run_id)),
    )
    return list(scene.tx.scalars(query.order_by(RunMachine.position)))


def progress(scene: Scene, step: str) -> tuple[set[str], set[str]]:
    """Return the machines of which a step is at work, and those of which it has ended."""
    run_id = scene.run.run_id
    ended = select(RunStep.machine).where(RunStep.run_id == run_id, RunStep.name == step, RunStep.ended_at.is_not(None))
    return set(scene.tx.scalars(_at_work(run_id).where(RunStep.name == step))), set(scene.tx.scalars(ended))


def _at_work(run_id: str) -> Select[str]:
    return (
        select(RunStep.machine)
        .join(Task, Task.task_id == RunStep.task_id)
        .where(RunStep.run_id == run_id, RunStep.ended_at.is_(None), Task.state.in_(tasks.OPEN))
    )


def _insert(scene: Scene, row: RunStep, kind: str, site: str, params: Report | Callable[[], Report]) -> Task:
    params = params() if callable(params) else params
    task = tasks.add(
        scene.tx,
        f"{row.run_id}/{row.name}/{row.machine}/{row.attempt}",
        kind,
        site,
        params,
        plan=scene.plan.name,
        run_id=row.run_id,
        step=row.name,
        machine=row.machine or None,
    )
    row.task_id = task.task_id
    return task


def detail(scene: Scene, step: str, text: str, machine: str = "") -> None:
    """Say what a step has found."""
    row = ledger.step(scene.tx, scene.run.run_id, step, machine)
    if row is not None and not taken_over(scene, row):
        row.detail = text


def taken_over(scene: Scene, row: RunStep) -> bool:
    """Say whether a step was done by the run that this one goes on with; its record stays as it is."""
    return row.ended_at is not None and row.ended_at < scene.run.created_at


def look_around(scene: Scene, *purposes: str) -> None:
    """Have the inventories of the ``source`` or ``target`` read anew, so that what the run has changed is shown."""
    for purpose in purposes:
        site = scene.site(purpose)
        tasks.ensure(scene.tx, f"inventory/{site}/{scene.run.run_id}", "inventory", site, Empty())


def quiet(scene: Scene) -> bool:
    """Stop whatever the run still has at work, and wait until it has stopped.

    Once only: what is at work later belongs to the phases that follow, also where this one is told anew.
    """
    if scene.run.facts.get("halted"):
        return True
    open_tasks = scene.tx.scalars(
        select(Task).where(Task.run_id == scene.run.run_id, Task.state.not_in(tasks.ENDED))
    ).all()
    for task in open_tasks:
        tasks.cancel(scene.tx, task)
    if any(task.state not in tasks.ENDED for task in open_tasks):
        return False
    ledger.note(scene.tx, scene.run, halted=True)
    return True
