"""The change of sites: which machines a run moves, what may happen to them, and the one transaction that moves them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

from sqlalchemy import update
from sqlalchemy.orm import Session

from farshore.control import audit, tasks
from farshore.control.runs import ledger
from farshore.control.runs.story import Scene
from farshore.control.scheduling import fences
from farshore.control.store.database import Transaction
from farshore.control.store.records import Fence, Machine, OldPrimary, Plan, PlanMachine, Run, Task
from farshore.control.views.protection import members
from farshore.model.task import MachineFenceParams, MachineResult
from farshore.recovery import states
from farshore.recovery.states import Event


def rows(session: Session, run: Run) -> list[PlanMachine]:
    """Return the plan's records of the machines of a run, in the plan's order."""
    names = ledger.states(session, run.run_id)
    return [row for row in members(session, run.plan) if row.name in names]


def happen(plan: Plan, row: PlanMachine, event: Event) -> None:
    """Let something happen to a machine if the rules allow it.

    Raises:
        Conflict: they do not; the caller does not go on.
    """
    before = states.Machine(row.state, plan.epoch, row.source_state, row.target_state, row.raised)  # type: ignore[arg-type]
    after = states.apply(before, event)
    row.state, row.source_state, row.target_state = after.state, after.source, after.target
    row.raised = after.raised


def is_raised(session: Session, plan: Plan) -> bool:
    """Say whether a failover of the plan is past its epoch and not at its end."""
    return bool(unfinished(session, plan))


def moves_all(session: Session, run: Run) -> bool:
    """Say whether a run takes along all machines of the plan that are where it begins; else the rest is replicated."""
    names = ledger.states(session, run.run_id)
    return all(row.raised or row.activity == "inactive" or row.name in names for row in members(session, run.plan))


def leaves_some(session: Session, plan: Plan) -> bool:
    """Say whether some of the plan's protected machines were not moved: the plan is active where they are."""
    return any(row.activity != "inactive" and not row.raised for row in members(session, plan.name))


def unfinished(session: Session, plan: Plan) -> list[str]:
    """Return the machines of the plan that a change of sites has taken past its epoch, and not to its end."""
    return [row.name for row in members(session, plan.name) if row.raised and row.state == "failing-over"]


def commit(tx: Transaction, plan: Plan, moved: Iterable[PlanMachine], *, committed: bool = True) -> None:
    """Say of machines whether they may still be rolled back; the plan is committed when that holds of all."""
    names = []
    for row in moved:
        row.committed = committed
        names.append(row.name)
    if committed:
        left = (OldPrimary.plan == plan.name, OldPrimary.machine.in_(names), OldPrimary.committed_at.is_(None))
        tx.execute(update(OldPrimary).where(*left).values(committed_at=time.time()))
    plan.committed = all(row.committed for row in members(tx, plan.name))


def to_come(session: Session, plan: Plan) -> int:
    """Return the epoch that a failover brings: the next one, or the one that a failover is in already."""
    return plan.epoch + (not is_raised(session, plan))


def power(session: Session, site: str, machine_id: str | None) -> str:
    """Return whether a machine was on when its site was last looked at."""
    machine = session.get(Machine, (site, machine_id)) if machine_id else None
    return str(machine.facts["power"]) if machine is not None else "unknown"


def result(task: Task) -> MachineResult:
    """Return where a machine stands; raises the error of the task if it failed."""
    if task.state != "succeeded":
        raise tasks.failure(task)
    return MachineResult.model_validate(task.result)


def remember_home(session: Session, plan: Plan, row: PlanMachine) -> None:
    """Note what a machine is like at the plan's source site, while it still runs there."""
    machine = session.get(Machine, (row.site, row.machine_id)) if row.machine_id else None
    if machine is not None and row.site == plan.definition["source_site"]:
        row.home = {"site": row.site, "facts": machine.facts}


def change_primary(scene: Scene, event: Literal["raise-epoch", "force-epoch"]) -> bool:
    """Make the target's machines the primaries: the one transaction after which there is no way back."""
    tx, run, plan = scene.tx, scene.run, scene.plan
    if run.facts.get("raised"):
        return True
    row = ledger.begin(tx, run.run_id, "raise epoch")
    chosen = {machine.name: machine.checkpoint_id for machine in ledger.machines(tx, run.run_id)}
    moved = rows(tx, run)
    for member in moved:
        happen(plan, member, event)
        member.recovered_from = chosen[member.name]
        member.committed = False
    before, plan.epoch = plan.epoch, plan.epoch + 1
    tx.flush()
    plan.committed = False
    if not leaves_some(tx, plan):
        plan.active_site = scene.site()
    forced = event == "force-epoch"
    for member in moved:
        _record_old(scene, member, divergent=forced)
        if forced:
            order_fence(scene, member, member.site, str(member.machine_id))
    audit.record(
        tx,
        run.actor,
        event,
        plan.name,
        run=run.run_id,
        epoch_seen=run.facts["epoch_seen"],
        epoch=plan.epoch,
        to_site=scene.site(),
        machines=list(chosen),
        force=forced or bool(run.params.get("force")),
        checkpoints=chosen,
    )
    ledger.note(tx, run, raised=True, epoch=plan.epoch)
    ledger.end(tx, row, "succeeded", f"{before} to {plan.epoch}; active at {scene.site()}")
    tx.changed("plan", plan.name)
    return True


def _record_old(scene: Scene, member: PlanMachine, *, divergent: bool) -> None:
    """Record an old primary: its disks are kept until somebody says that they may go."""
    if member.machine_id is None:
        return
    scene.tx.merge(
        OldPrimary(
            plan=scene.plan.name,
            machine=member.name,
            epoch=scene.plan.epoch,
            site=member.site,
            machine_id=member.machine_id,
            divergent=divergent,
            created_at=time.time(),
        )
    )


def order_fence(scene: Scene, member: PlanMachine, site: str, machine_id: str) -> None:
    """Have a machine fenced that nobody has stopped: the first thing that its node is told when it answers again."""
    fence = Fence(
        site=site,
        machine_id=machine_id,
        plan=scene.plan.name,
        machine=member.name,
        epoch=scene.plan.epoch,
        created_at=time.time(),
        attempts=0,
        not_before=0.0,
        done_at=None,
        error=None,
    )
    task = tasks.ensure(
        scene.tx,
        fences.key(fence),
        "machine-fence",
        site,
        # It may still run: nobody has stopped it.
        MachineFenceParams(machine_id=machine_id, epoch=scene.plan.epoch, power_off=True),
        plan=scene.plan.name,
        machine=member.name,
    )
    fence.task_id = task.task_id
    scene.tx.merge(fence)
