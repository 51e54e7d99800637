"""Takes every trace of ours from machines that are not protected any more.

An order waits while a cycle still reads the machine, or may begin with what an old primary's disks hold; it is tried
again when its failure may pass, and is taken back when the machine is protected again: then the traces are needed.
"""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import audit, tasks
from farshore.control.store.database import Transaction
from farshore.control.store.records import Cycle, PlanMachine, Task
from farshore.errors import Reconnect, Retry
from farshore.model.task import MachineParams, UntrackResult

#: ``not_before`` of an order that waits for something else than the time.
HELD: Final = 1e12
LONGEST_PAUSE_S: Final = 60.0
_READING: Final = ("point", "replicate", "release")


def order(tx: Transaction, plan: str, site: str, machine: str, machine_id: str, epoch: int) -> None:
    """Order the removal of our traces from a machine, as soon as nothing reads it."""
    params = MachineParams(machine_id=machine_id, epoch=epoch)
    _ensure(tx, f"untrack/{plan}/{machine_id}/{time.time_ns()}", 0, site, params, plan, machine).not_before = HELD


def advance(tx: Transaction) -> None:
    """Hand out what waits and may go on, order again what failed in passing, take back what is not wanted any more."""
    orders = tx.scalars(select(Task).where(Task.kind == "machine-untrack", Task.state != "succeeded")).all()
    if not orders:
        return
    keys = {task.key for task in orders} | set(tx.scalars(select(Task.key).where(Task.key.startswith("untrack/"))))
    for task in orders:
        params = MachineParams.model_validate(task.params)
        if _is_protected(tx, task.site, params.machine_id):
            tasks.cancel(tx, task)
        elif task.state == "queued" and task.not_before == HELD and not _is_read(tx, task, params.machine_id):
            task.not_before = 0.0
            tx.wake(task.site)
        elif task.state == "failed" and isinstance(tasks.failure(task), (Retry, Reconnect)):
            begin, _, attempt = task.key.rpartition("/")
            number = int(attempt) + 1
            if f"{begin}/{number}" not in keys:
                again = _ensure(tx, begin, number, task.site, params, task.plan, task.machine)
                again.not_before = time.time() + min(2.0**number, LONGEST_PAUSE_S)


def tell(tx: Transaction, task: Task, node: str) -> None:
    """Write down what was taken from a machine, and what was left on it on purpose."""
    found = UntrackResult.model_validate(task.result or {})
    audit.record(
        tx,
        f"node {node}",
        "untrack_machine",
        task.machine or found.machine_id,
        plan=task.plan,
        site=task.site,
        removed=list(found.removed),
        remaining=list(found.remaining),
    )


def _ensure(
    tx: Transaction, begin: str, number: int, site: str, params: MachineParams, plan: str | None, machine: str | None
) -> Task:
    return tasks.ensure(tx, f"{begin}/{number}", "machine-untrack", site, params, plan=plan, machine=machine)


def _is_protected(session: Session, site: str, machine_id: str) -> bool:
    wanted = select(PlanMachine.name).where(
        PlanMachine.site == site, PlanMachine.machine_id == machine_id, PlanMachine.activity != "inactive"
    )
    return session.scalars(wanted).first() is not None


def _is_read(session: Session, task: Task, machine_id: str) -> bool:
    turning = select(PlanMachine.name).where(
        PlanMachine.plan == task.plan, PlanMachine.name == task.machine, PlanMachine.state == "reprotecting"
    )
    if session.scalars(turning).first() is not None:
        return True
    reading = select(Cycle).where(Cycle.plan == task.plan, Cycle.ended_at.is_(None), Cycle.state.in_(_READING))
    return any(machine_id in (cycle.machines or ()) for cycle in session.scalars(reading))
