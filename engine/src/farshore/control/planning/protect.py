"""Begins, pauses and ends the protection of machines."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import views
from farshore.control.nearby import suggestion
from farshore.control.planning.apply import untrack
from farshore.control.runs import ledger
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Fence, Group, Lease, Plan, PlanMachine, Run
from farshore.control.views.points import newest
from farshore.control.views.protection import direction, is_turned, members, record
from farshore.errors import Conflict, Invalid, Unavailable
from farshore.model.base import Model, Name
from farshore.model.plan import Plan as Definition

_ACTIVITY = {"protected": "active", "paused": "paused", "unprotected": "inactive"}


class ProtectWish(Model):
    """What should be. ``machines`` None: all of the plan."""

    state: Literal["protected", "paused", "unprotected"]
    machines: tuple[Name, ...] | None = None
    keep_copies: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a wish changes: the activity of machines, and checkpoints that go."""

    changed: bool
    before: dict[str, Any]
    after: dict[str, Any]
    dropped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def outcome(session: Session, name: str, wish: ProtectWish) -> Outcome:
    """Return what :func:`apply` would change, without changing anything.

    Raises:
        NotFound: no such plan.
        Invalid: a machine that the plan does not have.
        Conflict: the plan's state does not allow it; the error says why.
    """
    plan = record(session, name)
    definition = Definition.model_validate(plan.definition)
    rows = members(session, name)
    chosen = _chosen(rows, wish)
    activity = _ACTIVITY[wish.state]
    before = {row.name: row.activity for row in rows}
    after = {row.name: activity if row.name in chosen else row.activity for row in rows}
    changing = [row for row in rows if before[row.name] != after[row.name]]
    if any(plan.state == "failing-over" or row.state in {"failing-over", "rolling-back"} for row in changing):
        raise Conflict(
            f"plan {name!r} is failing over", code="plan-failing-over", hint="Wait for its end, or order it again."
        )
    moved = next((row for row in changing if row.raised and row.activity == "inactive"), None)
    if moved is not None and is_turned(session, plan):
        raise Conflict(
            f"machine {moved.name!r} of plan {name!r} was moved to the other site for good",
            code="machine-moved",
            field="machines",
            hint="To protect it where it is now, give it a plan of its own.",
        )
    if not is_turned(session, plan) and wish.state != "unprotected" and before != after:
        raise Conflict(
            f"plan {name!r} is active at site {plan.active_site!r}, and nothing replicates from there yet",
            code="plan-failed-over",
            hint=f"Have them replicated back: `farshore reprotect {name}`."
            if plan.state == "failed-over"
            else f"To protect the machines where they are now, write a plan whose source_site is {plan.active_site}.",
        )
    if definition.consistency != "machine" and len(set(after.values())) > 1:
        raise Conflict(
            f"plan {name!r} keeps its machines consistent as one group; they are protected together",
            code="group-is-one",
            field="machines",
            hint="Leave out `machines`, or take the machine out of the plan.",
        )
    dropped: list[str] = []
    warnings = []
    if wish.state == "unprotected" and not wish.keep_copies:
        dropped, under_hold = _droppable(session, name, rows, chosen)
        warnings += [f"checkpoint {checkpoint_id} stays: it is under a legal hold" for checkpoint_id in under_hold]
    open_run = session.scalars(
        select(Run.run_id).where(
            Run.plan == name,
            Run.state.in_(ledger.OPEN),
            Run.kind.in_(("drill", "failover", "migrate", "reprotect")),
        )
    ).first()
    if open_run and wish.state == "unprotected" and (before != after or dropped):
        raise Conflict(
            f"run {open_run} of plan {name!r} has not ended",
            code="run-open",
            hint=f"Wait for it, or stop it: `farshore run cancel {open_run}`.",
        )
    if wish.state == "protected":
        warnings += [
            f"no node of site {site!r} answers; copying begins when one does"
            for site in direction(plan)
            if views.site(session, site)["state"] != "online"
        ]
    ending = [row for row in rows if before[row.name] != after[row.name] == "inactive"]
    tracked = {row.name: _tracked(session, plan, row) for row in ending}
    return Outcome(
        before != after or bool(dropped),
        {"machines": before, "checkpoints": len(dropped), **({"at_source": tracked} if ending else {})},
        {"machines": after, "checkpoints": 0, **({"at_source": {row.name: [] for row in ending}} if ending else {})},
        dropped,
        warnings,
    )


def apply(tx: Transaction, name: str, wish: ProtectWish) -> Outcome:
    """Make ``wish`` true. Errors: as :func:`outcome`."""
    result = outcome(tx, name, wish)
    if not result.changed:
        return result
    plan = record(tx, name)
    for row in members(tx, name):
        activity = result.after["machines"][row.name]
        if activity == row.activity:
            continue
        row.activity = activity
        if activity == "inactive":
            row.state = "unprotected"
            untrack(tx, plan, row)
        elif row.state == "unprotected":
            row.state = "seeding"
        group = tx.get(Group, row.group_id)
        if group is not None and activity == "active":
            group.failures, group.not_before = 0, 0.0
        if activity != "active":
            stop_cycles(tx, name, [row.group_id])
    for checkpoint_id in result.dropped:
        drop(tx, tx.get_one(Checkpoint, checkpoint_id))
    settle(tx, plan)
    return result


def settle(tx: Transaction, plan: Plan) -> None:
    """Derive a plan's activity and state from its machines' (but for the states of a failover)."""
    # Not machine by machine: this is asked after each checkpoint of each of them.
    query = select(PlanMachine.activity, PlanMachine.state).where(PlanMachine.plan == plan.name).distinct()
    rows = tx.execute(query).all()
    activities = {row.activity for row in rows}
    plan.activity = "active" if "active" in activities else "paused" if "paused" in activities else "inactive"
    if plan.state not in {"failing-over", "failed-over", "rolling-back", "migrated"}:
        states = {row.state for row in rows if row.activity != "inactive"}
        plan.state = next((state for state in ("reprotecting", "seeding") if state in states), "protected")
        plan.state = plan.state if states else "unprotected"
        if states == {"failed-over"}:  # what had not been moved is protected no more
            plan.state, plan.active_site = "failed-over", direction(plan).target
    if plan.activity == "inactive":
        plan.last_error = None
        if plan.state == "failed-over":
            plan.state = "unprotected"
    plan.changed_at = time.time()
    tx.changed("plan", plan.name)


def stop_cycles(tx: Transaction, plan: str, groups: Collection[str], *, abandon: bool = False) -> None:
    """Ask the cycles of some of a plan's groups to end; ``abandon``: without a word to the source site."""
    query = select(Cycle).where(Cycle.plan == plan, Cycle.group_id.in_(groups), Cycle.ended_at.is_(None))
    for cycle in tx.scalars(query):
        cycle.cancel = True
        cycle.abandon = cycle.abandon or abandon
    tx.changed("plan", plan)


def drop(tx: Transaction, checkpoint: Checkpoint) -> None:
    """Take a checkpoint out of what is offered; its points go when no cycle of its group grows on them."""
    if checkpoint.state == "dropping":
        return
    checkpoint.state = "dropping"
    checkpoint.drops += 1
    tx.changed("checkpoint", checkpoint.checkpoint_id)


def remove(tx: Transaction, name: str) -> None:
    """Remove a plan's records; checkpoints stay.

    Raises:
        Conflict: it protects machines, a drill or failover of it has not ended, or it asks for approval.
        Unavailable: a cycle of it is ending, which it does by itself.
    """
    plan = record(tx, name)
    stories = select(Run.run_id).where(Run.plan == name, Run.state.in_(ledger.OPEN), Run.workflow)
    busy = tx.scalars(stories).first()
    if plan.activity != "inactive":
        raise Conflict(
            f"plan {name!r} is {plan.activity}",
            code="plan-active",
            hint=f"End its protection first: `farshore plan unprotect {name}`.",
        )
    if busy:
        raise Conflict(f"run {busy} of plan {name!r} has not ended", code="run-open", hint="Wait for its end.")
    if tx.scalars(select(Cycle.cycle_id).where(Cycle.plan == name, Cycle.ended_at.is_(None))).first():
        raise Unavailable(f"a cycle of plan {name!r} is ending", code="cycle-open", hint="Try again in a moment.")
    ledger.refuse_kept_drill(tx, name)
    if plan.approval is not None:  # made anew without it, the plan would ask nobody
        raise Conflict(
            f"plan {name!r} asks for approval by others; it is deleted once they have agreed that it asks no more",
            code="approval-asked",
            field="approval",
            hint="Apply it without `approval` and let others approve that: `farshore run list --kind approval`.",
        )
    for fence in tx.scalars(select(Fence).where(Fence.plan == name, Fence.done_at.is_(None))):
        raise Conflict(
            f"machine {fence.machine!r} of plan {name!r} waits to be fenced at site {fence.site!r}",
            code="fence-open",
            hint="Start the node of that site once.",
        )
    tx.delete(plan)
    tx.changed("plan", name)


def _tracked(session: Session, plan: Plan, row: PlanMachine) -> list[str]:
    """Return what is ours on a machine, as far as is known here: the points since which its changes are tracked.

    What is really there, the node finds when it takes it away, reads back, and writes into the audit trail.
    """
    point = newest(session, plan, row.group_id)
    disks = point.manifest["disks"] if point is not None else []
    ours = [disk for disk in disks if str(disk["disk_key"]).startswith(f"{row.machine_id}/")]
    return sorted({f"change tracking since {disk['source_point']}" for disk in ours})


def _chosen(rows: list[PlanMachine], wish: ProtectWish) -> set[str]:
    names = {row.name for row in rows}
    if wish.machines is None:
        return names
    for index, machine in enumerate(wish.machines):
        if machine not in names:
            raise Invalid(
                f"the plan has no machine {machine!r}",
                code="machine-unknown",
                field=f"machines[{index}]",
                hint=suggestion(machine, names, " in the plan"),
            )
    return set(wish.machines)


def _droppable(session: Session, name: str, rows: list[PlanMachine], chosen: set[str]) -> tuple[list[str], list[str]]:
    """Return the checkpoints of machines that go, and those that stay because they are under a legal hold."""
    groups = {row.group_id for row in rows if row.name in chosen}
    found = session.scalars(
        select(Checkpoint)
        .where(Checkpoint.plan == name, Checkpoint.group_id.in_(groups), Checkpoint.state == "published")
        .order_by(Checkpoint.sequence)
    ).all()
    for checkpoint in found:
        used = session.scalars(select(Lease.run_id).where(Lease.checkpoint_id == checkpoint.checkpoint_id)).first()
        if used or (checkpoint.pinned and not checkpoint.hold):
            raise Conflict(
                f"checkpoint {checkpoint.checkpoint_id} is {f'in use by {used}' if used else 'pinned'}",
                code="checkpoint-in-use" if used else "checkpoint-pinned",
                field="keep_copies",
                hint="Wait for that run." if used else "Take the pin away, or keep the copies.",
            )
    held = [checkpoint.checkpoint_id for checkpoint in found if checkpoint.hold]
    return [checkpoint.checkpoint_id for checkpoint in found if checkpoint.checkpoint_id not in held], held
