"""Fences the old primaries of forced failovers: first contact, then again until it holds."""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import and_, or_, select

from farshore.control import audit, tasks
from farshore.control.store.database import Transaction
from farshore.control.store.records import Fence, PlanMachine, Task
from farshore.errors import NotFound, Permanent
from farshore.model.task import MachineFenceParams, MachineResult

LONGEST_PAUSE_S: Final = 60.0


def advance(tx: Transaction) -> None:
    """Take over how fences ended, order those that did not hold again."""
    now = time.time()
    # Those whose order has not ended are passed over by the query: a lost site may have thousands.
    query = (
        select(Fence, Task)
        .outerjoin(Task, Task.task_id == Fence.task_id)
        .where(
            Fence.done_at.is_(None),
            or_(Task.state.in_(tasks.ENDED), and_(Task.task_id.is_(None), Fence.not_before <= now)),
        )
    )
    for fence, found in tx.execute(query).all():
        task: Task | None = found
        if task is None:
            _order(tx, fence)
            continue
        fence.attempts += 1
        held = task.state == "succeeded" and _holds(MachineResult.model_validate(task.result))
        error = None if task.state == "succeeded" else tasks.failure(task)
        if held or isinstance(error, NotFound):
            _held(tx, fence, "fenced and off" if held else "it is not there any more")
            continue
        error = error or Permanent("the machine is not fenced and off", code="fence-not-kept")
        fence.error = error.to_dict()
        fence.task_id, fence.not_before = None, now + min(2.0**fence.attempts, LONGEST_PAUSE_S)
        tx.wake(fence.site)
        tx.changed("plan", fence.plan)


def key(fence: Fence) -> str:
    """Return the key of a fence's next order; that of a removed plan of the same name is another one."""
    return f"fence/{fence.plan}/{fence.epoch}/{fence.machine_id}/{fence.created_at:.6f}.{fence.attempts}"


def _order(tx: Transaction, fence: Fence) -> None:
    task = tasks.ensure(
        tx,
        key(fence),
        "machine-fence",
        fence.site,
        MachineFenceParams(machine_id=fence.machine_id, epoch=fence.epoch, power_off=True),
        plan=fence.plan,
        machine=fence.machine,
    )
    fence.task_id = task.task_id


def _holds(result: MachineResult) -> bool:
    """Say whether a machine can neither run nor start: a fence alone leaves one on that was never stopped."""
    return result.fenced and result.power == "off"


def _held(tx: Transaction, fence: Fence, how: str) -> None:
    fence.done_at, fence.error = time.time(), None
    row = tx.get(PlanMachine, (fence.plan, fence.machine))
    if row is not None and row.machine_id == fence.machine_id and row.source_state == "stale":
        row.source_state = "fenced"
    audit.record(
        tx,
        "control plane",
        "fence_old_primary",
        fence.plan,
        machine=fence.machine,
        site=fence.site,
        epoch=fence.epoch,
        result=how,
    )
    tx.wake(fence.site)
    tx.changed("plan", fence.plan)
