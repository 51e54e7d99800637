"""A detach: machines that a committed failover has brought up leave the chain of checkpoints, in the background.

Their disks grew on layers of checkpoints, which therefore had to stay. The platform copies what the disks lack while
the machines run; here it is asked again and again how far it is, so that a control plane or node that is killed leaves
nothing undone. Nobody waits for it: points, drills, a reprotect and the next failover go on beside it, and it ends when
the plan's machines run somewhere else. What is protected no more, after a migration too, leaves the chain all the same.
"""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import tasks
from farshore.control.runs import ledger, story
from farshore.control.runs.story import Phase, Scene, Story
from farshore.control.store.database import Transaction
from farshore.control.store.records import Machine, Plan, PlanMachine, Run, RunMachine, RunStep, Task
from farshore.control.views.protection import members
from farshore.errors import Conflict, NotFound, Permanent, Reconnect, Retry
from farshore.model.task import DetachResult, Empty, MachineParams

KIND: Final = "detach"
#: Who ordered what nobody did: it belongs to a commit.
ACTOR: Final = "control plane"
#: Machines of a plan that are copied at once, so that the storage has something left for those who work.
TOGETHER: Final = 2
#: Pauses between two questions: short at first, for small disks.
PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
#: How long after a detach has ended another one may follow; an inventory may be that old.
REST_S: Final = 300.0
_STEP: Final = "leave chain"
#: States of machines that run where the last failover has brought them.
_SETTLED: Final = frozenset({"failed-over", "reprotecting", "seeding", "protected", "unprotected"})


def wanted(session: Session, plan: Plan) -> dict[str, str]:
    """Return the sites of a plan's machines that run on checkpoints for good, as the last inventory says, by name."""
    if not plan.committed:
        return {}
    found = {}
    for row in members(session, plan.name):
        known = session.scalars(select(Machine).where(Machine.machine_id == _primary(row))).all()
        site = next((machine.site for machine in known if machine.facts.get("on_points")), None)
        if row.state in _SETTLED and site is not None:
            found[row.name] = site
    return found


def request(tx: Transaction, plan: Plan) -> Run | None:
    """Insert a detach where one is wanted; None where nothing is to do, or somebody has cancelled it."""
    sites = wanted(tx, plan)
    if not sites:
        return None
    last = tx.scalars(
        select(Run).where(Run.plan == plan.name, Run.kind == KIND).order_by(Run.created_at.desc()).limit(1)
    ).first()
    if last is not None and last.facts.get("epoch") == plan.epoch:
        if last.state in ledger.OPEN or last.state == "cancelled":
            return None
        if time.time() - (last.ended_at or 0.0) < REST_S:
            return None
    run = ledger.create(tx, KIND, plan, ACTOR, {}, workflow=True)
    run.to_site = plan.active_site
    ledger.note(tx, run, definition=plan.definition, epoch=plan.epoch, sites=sites)
    ledger.add_machines(tx, run, sites)
    return run


def _primary(row: PlanMachine) -> str | None:
    """Return the id of a machine where it runs now: after a failover not yet where it is taken from."""
    return row.target_machine_id or row.machine_id


def _copy(scene: Scene) -> bool:
    tx, run, plan = scene.tx, scene.run, scene.plan
    if plan.epoch != run.facts["epoch"]:
        run.cancel = True
        raise Conflict(f"plan {plan.name!r} has moved on: epoch {plan.epoch}", code="cancelled")
    rows = [machine for machine in ledger.machines(tx, run.run_id) if machine.state in {"pending", "running"}]
    for machine in rows[:TOGETHER]:
        if machine.state == "pending" and run.pause:
            continue
        machine.state = "running"
        _ask(scene, machine)
    return all(machine.state not in {"pending", "running"} for machine in rows)


def _ask(scene: Scene, machine: RunMachine) -> None:
    """Ask how far a machine is, unless that was asked and not answered yet."""
    tx = scene.tx
    member = tx.get(PlanMachine, (scene.run.plan, machine.name))
    machine.machine_id = _primary(member) if member is not None else None
    row = ledger.begin(tx, scene.run.run_id, _STEP, machine.name)
    task = tx.get(Task, row.task_id) if row.task_id else None
    if machine.machine_id is None:
        _settle(scene, row, machine, "it is not there any more")
    elif task is None:
        _order(scene, row, machine.machine_id, 0.0)
    elif task.state not in tasks.ENDED:
        return
    elif task.state == "succeeded":
        found = DetachResult.model_validate(task.result)
        row.detail = found.detail
        tx.changed("run", scene.run.run_id)
        if found.state == "done":
            _settle(scene, row, machine, found.detail)
        elif not scene.run.pause:
            row.attempt += 1
            _order(scene, row, machine.machine_id, min(PAUSE_S * 1.5 ** (row.attempt - 1), LONGEST_PAUSE_S))
    else:
        error = tasks.failure(task)
        if isinstance(error, NotFound):
            _settle(scene, row, machine, "it is not there any more")
        elif isinstance(error, (Retry, Reconnect)) and task.state == "failed":
            row.attempt += 1
            row.detail = error.message
            _order(scene, row, machine.machine_id, LONGEST_PAUSE_S)
        else:
            machine.state = "failed"
            ledger.end(tx, row, "failed", error=error)


def _order(scene: Scene, row: RunStep, machine_id: str, pause_s: float) -> None:
    task = tasks.ensure(
        scene.tx,
        f"{row.run_id}/{row.name}/{row.machine}/{row.attempt}",
        "machine-detach",
        scene.run.facts["sites"][row.machine],
        MachineParams(machine_id=machine_id, epoch=scene.plan.epoch),
        plan=scene.plan.name,
        run_id=row.run_id,
        step=row.name,
        machine=row.machine,
    )
    task.not_before = time.time() + pause_s if pause_s else 0.0
    row.task_id = task.task_id


def _settle(scene: Scene, row: RunStep, machine: RunMachine, detail: str) -> None:
    machine.state = "succeeded"
    ledger.end(scene.tx, row, "succeeded", detail)


def _finish(scene: Scene) -> bool:
    """End the run. What a platform copies at the moment ends by itself, and so does a question that is under way."""
    if not story.quiet(scene):
        return False
    failed = [machine.name for machine in ledger.machines(scene.tx, scene.run.run_id) if machine.state == "failed"]
    if failed and story.error_of(scene.run) is None:
        story.fail(
            scene,
            Permanent(
                f"{', '.join(failed)} still needs checkpoints, which are kept",
                code="not-detached",
                hint="The steps say why. It is tried again by itself after a while.",
            ),
        )
    story.conclude(scene)
    for site in set(scene.run.facts["sites"].values()):  # so that what has changed is shown
        tasks.ensure(scene.tx, f"inventory/{site}/{scene.run.run_id}", "inventory", site, Empty())
    return True


STORY: Final[Story] = (
    Phase("copy", _copy, "finish", cancellable=True),
    Phase("finish", _finish),
)
