"""The records of a run: its steps, machines and end."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session, defer

from farshore.control import ids
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Lease, Plan, PlanMachine, Run, RunMachine, RunStep, Task
from farshore.control.views.history import OPEN, PAUSED, WAITING_APPROVAL
from farshore.control.views.protection import direction
from farshore.errors import Conflict, FarshoreError

__all__ = ["OPEN", "PAUSED", "WAITING_APPROVAL"]

LONGEST_DETAIL: Final = 2000
#: How long a run waits for approval by a policy from before there was a limit.
APPROVED_WITHIN_S: Final = 86400.0


#: What a transaction knows: the steps of the machines that were gathered, and the last positions of runs' steps.
_STEPS: Final = "steps"
_POSITIONS: Final = "positions"

#: Kinds of runs of which a plan has one at a time.
RECOVERIES: Final = ("drill", "failover", "migrate", "reprotect", "rollback", "cleanup")


def create(
    tx: Transaction,
    kind: str,
    plan: Plan,
    actor: str,
    params: dict[str, Any],
    *,
    workflow: bool = False,
    verb: str | None = None,
    approved: bool = False,
    asked: dict[str, Any] | None = None,
) -> Run:
    """Insert a run. One with a workflow is begun by the conductor once this is durable.

    ``verb`` is what the plan's policy calls it, where that is not its kind. It waits for approval where the plan asks
    for that, unless it goes on with what was ``approved``; by the policy ``asked`` whatever the verb.
    """
    policy = plan.approval if workflow and not approved else None
    if asked is None and policy is not None and (verb or kind) in policy["verbs"]:
        asked = policy
    run = Run(
        run_id=ids.new("run"),
        from_site=direction(plan)[0],
        to_site=direction(plan)[1],
        kind=kind,
        plan=plan.name,
        plan_revision=plan.revision,
        state=WAITING_APPROVAL if asked is not None else "pending",
        approval={"people": asked["people"], "by": []} if asked is not None else None,
        actor=actor,
        params=params,
        created_at=time.time(),
        cancel=False,
        workflow=workflow,
        pokes=0,
        pause=False,
        phase="",
        facts={"approve_by": time.time() + asked.get("within", APPROVED_WITHIN_S)} if asked is not None else {},
    )
    tx.add(run)
    tx.flush()
    tx.changed("run", run.run_id)
    tx.changed("plan", plan.name)
    return run


def open_run(session: Session, plan: str, kinds: Iterable[str]) -> Run | None:
    """Return a run of one of ``kinds`` of the plan that has not ended."""
    return session.scalars(
        select(Run).where(Run.plan == plan, Run.kind.in_(tuple(kinds)), Run.state.in_(OPEN)).limit(1)
    ).first()


def kept_drill(session: Session, plan: str) -> Run | None:
    """Return the plan's newest drill of which something is left at the target, on purpose or not; None if none is."""
    drills = select(Run).where(Run.plan == plan, Run.kind == "drill").order_by(Run.created_at.desc())
    return next((run for run in session.scalars(drills) if run.facts.get("kept")), None)


def refuse_kept_drill(session: Session, plan: str) -> None:
    """Raise ``Conflict`` while something of a drill of the plan is left: nobody could end it without the plan."""
    left = kept_drill(session, plan)
    if left is not None:
        raise Conflict(
            f"drill {left.run_id} of plan {plan!r} was left running",
            code="drill-running",
            hint=f"End it first: `farshore drill end {plan}`.",
            run=left.run_id,
        )


def start(tx: Transaction, run: Run) -> None:
    """Mark a run as running."""
    if run.state == "pending":
        run.state, run.started_at = "running", time.time()
        tx.changed("run", run.run_id)


def note(tx: Transaction, run: Run, **facts: Any) -> None:
    """Add to what is known about a run."""
    run.facts = {**run.facts, **facts}
    tx.changed("run", run.run_id)


def add_machines(tx: Transaction, run: Run, names: Iterable[str]) -> None:
    """Give the run its machines, in order; those that it has stay as they are."""
    present = states(tx, run.run_id)
    for position, name in enumerate(names):
        if name not in present:
            tx.add(RunMachine(run_id=run.run_id, name=name, position=position, state="pending", probes=[]))
    tx.flush()


def machine(session: Session, run_id: str, name: str) -> RunMachine:
    """Return one machine's record in a run."""
    return session.get_one(RunMachine, (run_id, name))


def machines(session: Session, run_id: str, names: Collection[str] | None = None) -> list[RunMachine]:
    """Return a run's machines in order, or those called so."""
    query = select(RunMachine).where(RunMachine.run_id == run_id).order_by(RunMachine.position)
    return list(session.scalars(query if names is None else query.where(RunMachine.name.in_(names))))


def states(session: Session, run_id: str) -> dict[str, str]:
    """Return the states of a run's machines, in order."""
    query = select(RunMachine.name, RunMachine.state).where(RunMachine.run_id == run_id).order_by(RunMachine.position)
    return {row.name: row.state for row in session.execute(query)}


def gather(tx: Transaction, run: Run, names: Collection[str]) -> None:
    """Read at once what a look at these machines of a run asks for one by one; the transaction keeps it."""
    if not names:
        return
    members = machines(tx, run.run_id, names)
    steps = tx.scalars(select(RunStep).where(RunStep.run_id == run.run_id, RunStep.machine.in_(names))).all()
    known = tx.info.setdefault(_STEPS, {})
    known.update({(run.run_id, name): {} for name in names})
    for row in steps:
        known[run.run_id, row.machine][row.name] = row
    tx.scalars(select(Task).where(Task.task_id.in_({row.task_id for row in steps if row.task_id}))).all()
    tx.scalars(select(PlanMachine).where(PlanMachine.plan == run.plan, PlanMachine.name.in_(names))).all()
    points = select(Checkpoint).where(Checkpoint.checkpoint_id.in_({row.checkpoint_id for row in members}))
    tx.scalars(points.options(defer(Checkpoint.manifest))).all()


def forget(tx: Transaction) -> None:
    """Let go of the steps that were gathered: a part of the transaction was taken back."""
    tx.info.pop(_STEPS, None)


def step(session: Session, run_id: str, name: str, machine_name: str = "") -> RunStep | None:
    """Return a step's record, None before it began."""
    gathered: dict[str, RunStep] | None = session.info.get(_STEPS, {}).get((run_id, machine_name))
    return gathered.get(name) if gathered is not None else session.get(RunStep, (run_id, name, machine_name))


def begin(tx: Transaction, run_id: str, name: str, machine_name: str = "", detail: str = "") -> RunStep:
    """Record that a step has begun; again: nothing."""
    row = step(tx, run_id, name, machine_name)
    return row if row is not None else add(tx, run_id, name, machine_name, detail)


def add(tx: Transaction, run_id: str, name: str, machine_name: str = "", detail: str = "") -> RunStep:
    """Record that a step has begun of which there is no record."""
    # The transaction is the only one that writes: the next positions are known from the first on.
    last = tx.info.setdefault(_POSITIONS, {})
    if run_id not in last:
        last[run_id] = tx.scalar(select(func.max(RunStep.position)).where(RunStep.run_id == run_id)) or 0
    last[run_id] += 1
    row = RunStep(
        run_id=run_id,
        name=name,
        machine=machine_name,
        position=last[run_id],
        attempt=0,
        state="running",
        started_at=time.time(),
        detail=detail[:LONGEST_DETAIL],
    )
    tx.add(row)
    gathered = tx.info.get(_STEPS, {}).get((run_id, machine_name))
    if gathered is not None:
        gathered[name] = row
    tx.changed("run", run_id)
    return row


def end(tx: Transaction, row: RunStep, state: str, detail: str = "", error: FarshoreError | None = None) -> None:
    """Record how a step ended; a step that has ended stays as it is."""
    if row.ended_at is not None:
        return
    row.state, row.ended_at = state, time.time()
    row.detail = (detail or (str(error) if error else "") or row.detail)[:LONGEST_DETAIL]
    row.error = error.to_dict() if error else None
    tx.changed("run", row.run_id)


def done(tx: Transaction, run_id: str, name: str, detail: str = "", machine_name: str = "") -> None:
    """Record a step that took no time of its own."""
    end(tx, begin(tx, run_id, name, machine_name), "succeeded", detail)


def finish(tx: Transaction, run: Run, state: str, error: FarshoreError | None = None) -> None:
    """Give a run its last state; steps that still run are closed.

    Its leases end, but for those of a drill that was left running and of a failover that has to be gone on with.
    """
    if run.state not in OPEN:
        return
    run.state, run.ended_at = state, time.time()
    run.pause, run.wake_at = False, None
    run.started_at = run.started_at or run.ended_at
    run.error = error.to_dict() if error else None
    for row in tx.scalars(select(RunStep).where(RunStep.run_id == run.run_id, RunStep.ended_at.is_(None))):
        end(tx, row, "cancelled" if state == "cancelled" else "failed" if error else "succeeded")
    past_epoch = run.facts.get("raised") or run.facts.get("resumed")
    if not run.facts.get("kept") and not (past_epoch and state in {"failed", "partial"}):
        release(tx, run.run_id)
    tx.changed("run", run.run_id)
    tx.changed("plan", run.plan)


def lease(tx: Transaction, run_id: str, *checkpoint_ids: str) -> None:
    """Keep checkpoints for as long as the run needs them."""
    held = set(tx.scalars(select(Lease.checkpoint_id).where(Lease.run_id == run_id)))
    for checkpoint_id in dict.fromkeys(checkpoint_ids):
        if checkpoint_id not in held:
            tx.add(Lease(checkpoint_id=checkpoint_id, run_id=run_id))
            tx.changed("checkpoint", checkpoint_id)
    tx.flush()


def release(tx: Transaction, run_id: str) -> None:
    """End all leases of a run."""
    for row in tx.scalars(select(Lease).where(Lease.run_id == run_id)):
        tx.changed("checkpoint", row.checkpoint_id)
        tx.delete(row)
