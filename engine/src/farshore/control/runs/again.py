"""Going on with a run that did not end well.

A run that has ended stays as it is, with its evidence. Its successor is ordered by the same wish and takes over what
succeeded: machines that are up stay up, steps that were done are not done again. Where nothing was left behind (a drill
was cleaned up, a failover was taken back before its epoch) the successor begins from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control.nearby import suggestion
from farshore.control.runs import boot, copies, drill, failover, ledger, reprotect, rollback, scrub
from farshore.control.store.database import Transaction
from farshore.control.store.records import Run, RunStep
from farshore.errors import Conflict, Invalid
from farshore.model.base import Model

#: States of runs that can be gone on with.
RETRIED: Final = ("failed", "partial", "cancelled")


class RetryWish(Model):
    """Where to go on.

    ``step`` is done again, with those after it, for the machines that are not up; default: the first one that did not
    succeed. ``machine`` is done again although it is up.
    """

    step: Literal["create", "prepare", "power on", "validate"] | None = None
    machine: str | None = None


def _drill(tx: Transaction, run: Run, actor: str) -> Run | None:
    return drill.request(tx, run.plan, drill.DrillWish.model_validate(run.params), actor)


def _failover(tx: Transaction, run: Run, actor: str) -> Run | None:
    return failover.request(tx, run.plan, failover.FailoverWish.model_validate(run.params), actor, run.kind)


def _reprotect(tx: Transaction, run: Run, actor: str) -> Run | None:
    return reprotect.request(tx, run.plan, reprotect.ReprotectWish.model_validate(run.params), actor)


def _rollback(tx: Transaction, run: Run, actor: str) -> Run | None:
    return rollback.request(tx, run.plan, rollback.RollbackWish.model_validate(run.params), actor)


def _scrub(tx: Transaction, run: Run, actor: str) -> Run | None:
    return scrub.request(tx, str(run.params["checkpoint_id"]), actor)[0]


def _replicate(tx: Transaction, run: Run, actor: str) -> Run | None:
    return copies.replicate(tx, run.plan, copies.ReplicateWish.model_validate(run.params), actor)


#: Who orders a run of a kind again.
ORDERS: Final[dict[str, Callable[[Transaction, Run, str], Run | None]]] = {
    "drill": _drill,
    "failover": _failover,
    "migrate": _failover,
    "reprotect": _reprotect,
    "rollback": _rollback,
    "scrub": _scrub,
    "replicate": _replicate,
}


def order(tx: Transaction, run: Run, wish: RetryWish, actor: str) -> tuple[Run, bool]:
    """Order a run's successor; returns it and whether it is new. Errors: as ``orders.retry``."""
    successor = tx.scalars(select(Run).where(Run.retry_of == run.run_id).order_by(Run.created_at.desc())).first()
    if successor is not None:
        if successor.state in ledger.OPEN or successor.state == "succeeded":
            return successor, False
        raise Conflict(
            f"run {run.run_id} was gone on with by {successor.run_id}, which ended {successor.state}",
            code="retried-already",
            hint=f"Go on with that one: `farshore run retry {successor.run_id}`.",
            run=successor.run_id,
        )
    if run.state not in RETRIED:
        raise Conflict(
            f"{run.kind} {run.run_id} is {run.state}; only a run that failed or ended partial is gone on with",
            code="not-retryable",
            hint=f"Look at it: `farshore run show {run.run_id}`.",
        )
    ordered = ORDERS.get(run.kind)
    if ordered is None:
        raise Conflict(
            f"a {run.kind} run is not gone on with", code="not-retryable", hint="Order what is wanted once more."
        )
    _refuse_superseded(tx, run)
    _check(tx, run, wish)
    made = ordered(tx, run, actor)
    if made is None:
        raise Conflict(
            f"nothing is left of {run.kind} {run.run_id} to go on with: all of its machines are up",
            code="nothing-left",
            hint=f"Look at the plan: `farshore plan show {run.plan}`.",
        )
    made.retry_of = run.run_id
    if made.facts.get("resumed"):
        _take_over(tx, run, made, wish)
    elif wish.step is not None or wish.machine is not None:
        raise Conflict(
            f"nothing was left of {run.kind} {run.run_id}: it begins from the start",
            code="nothing-left",
            field="step" if wish.step is not None else "machine",
            hint="Leave step and machine out.",
        )
    tx.changed("run", made.run_id)
    return made, True


def _refuse_superseded(session: Session, run: Run) -> None:
    later = session.scalars(
        select(Run)
        .where(Run.plan == run.plan, Run.kind == run.kind, Run.created_at > run.created_at, Run.state == "succeeded")
        .limit(1)
    ).first()
    if later is not None and run.kind not in {"drill", "scrub", "replicate"}:
        raise Conflict(
            f"{later.kind} {later.run_id} of plan {run.plan!r} came later and succeeded",
            code="superseded",
            hint=f"Look at it: `farshore run show {later.run_id}`.",
            run=later.run_id,
        )


def _check(session: Session, run: Run, wish: RetryWish) -> None:
    names = list(ledger.states(session, run.run_id))
    if wish.machine is not None and wish.machine not in names:
        raise Invalid(
            f"run {run.run_id} has no machine {wish.machine!r}",
            code="machine-unknown",
            field="machine",
            hint=suggestion(wish.machine, names, " in the run"),
        )


def _take_over(tx: Transaction, old: Run, new: Run, wish: RetryWish) -> None:
    """Give a run what succeeded in the one before: machines that are up, and steps of the others."""
    kept = boot.STEPS[: boot.STEPS.index(wish.step)] if wish.step is not None else boot.STEPS
    steps = tx.scalars(
        select(RunStep).where(RunStep.run_id == old.run_id, RunStep.state == "succeeded").order_by(RunStep.position)
    ).all()
    of: dict[str, list[RunStep]] = {}
    for step in steps:
        of.setdefault(step.machine, []).append(step)
    for step in of.get("", ()):
        # What is done at the end of each run, however it went, is done at the end of this one too.
        if step.name.startswith("hook ") and not step.name.startswith("hook always_"):
            _copy(tx, step, new)
    former = ledger.machines(tx, old.run_id)
    ledger.add_machines(tx, new, [before.name for before in former])
    needed = []
    for before in former:
        machine = ledger.machine(tx, new.run_id, before.name)
        up = before.state == "green" and before.name != wish.machine
        if not up and before.checkpoint_id is not None:
            needed.append(before.checkpoint_id)
        for name in _CARRIED:
            setattr(machine, name, getattr(before, name))
        if up:
            machine.state, machine.settled_at = "green", before.settled_at
            machine.rto_s, machine.probes = before.rto_s, before.probes
        anew = before.name == wish.machine and wish.step is None
        for step in () if anew else of.get(before.name, ()):
            wanted = step.name in (boot.STEPS if up else kept)
            if wanted or step.name.startswith("hook "):
                _copy(tx, step, new)
    ledger.lease(tx, new.run_id, *needed)


def _copy(tx: Transaction, step: RunStep, new: Run) -> None:
    row = ledger.begin(tx, new.run_id, step.name, step.machine)
    row.detail = step.detail if "(in run-" in step.detail else f"{step.detail} (in {step.run_id})".lstrip()
    for name in ("attempt", "state", "started_at", "ended_at", "task_id", "evidence"):
        setattr(row, name, getattr(step, name))


#: What is known of a machine that was made.
_CARRIED: Final = (
    "position",
    "target_machine_id",
    "target_name",
    "address",
    "checkpoint_id",
    "rpo_s",
    "stop_ordered_at",
)
