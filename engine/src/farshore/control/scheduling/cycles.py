"""Drives the cycles of groups: point at the source, replicate at the target, release at the source.

All state is in the rows of cycle and task, so that any process can go on with it. One cycle of a group at a time; what
falls due meanwhile is not queued.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, cast

from sqlalchemy import ColumnElement, Select, bindparam, func, or_, select
from sqlalchemy.orm import Session, aliased, defer

from farshore import errors
from farshore.control import catalog, clock, ids, integrity, tasks
from farshore.control.clock import Stamp, iso
from farshore.control.direction import turned
from farshore.control.planning import definitions
from farshore.control.runs import closing
from farshore.control.scheduling import due, quotas, retention
from farshore.control.store import settings
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Group, Machine, Plan, PlanMachine, Task
from farshore.control.views.places import site_state
from farshore.control.views.points import newest, newest_of
from farshore.control.views.protection import direction, is_turned, members
from farshore.errors import Conflict, Corruption, FarshoreError, Permanent, Reconnect, RestartFromCheckpoint, Retry
from farshore.model.checkpoint import Manifest
from farshore.model.machine import MachineFacts, disk_key, same_disks
from farshore.model.plan import Consistency, Quiesce
from farshore.model.plan import Plan as Definition
from farshore.model.task import (
    PARAMS,
    PointParams,
    PointResult,
    ReleaseParams,
    ReplicateDisk,
    ReplicateParams,
    ReplicateResult,
)

#: Tries of one task of a cycle before the cycle is given up (the pauses add up to about three minutes).
MOST_TRIES: Final = 6
#: Fresh points that one cycle takes when its source point vanishes.
MOST_RESTARTS: Final = 3
#: Cycles at work at once per target site; disks within them share the node's byte budget.
MOST_AT_WORK: Final = 8
#: Waiting cycles of a plan that are looked at: twice as many as could begin, for some may have to wait.
MOST_LOOKED_AT: Final = 2 * MOST_AT_WORK
LONGEST_PAUSE_S: Final = 60.0

AT_WORK: Final = ("point", "replicate", "release")
#: States of a plan in which cycles fall due.
PROTECTING: Final = ("seeding", "protected", "reprotecting")
#: ``RestartFromCheckpoint`` codes that keep the drafts: the same point is read on under a fresh grant.
_SAME_POINT: Final = frozenset({"session-gone", "grant-expired"})


def create(
    tx: Transaction,
    plan: Plan,
    group_id: str,
    purpose: str,
    *,
    run_id: str | None = None,
    label: str = "",
    pin: bool = False,
    hold: tuple[str, str] = ("", ""),
    consistency: Consistency | None = None,
) -> Cycle:
    """Insert a cycle that begins as soon as its group is free.

    ``hold``: why its checkpoint is to be under a legal hold, and who said so. ``consistency``: the level that it must
    reach, where that is more than the plan asks for.
    """
    cycle = Cycle(
        cycle_id=ids.new("cyc"),
        plan=plan.name,
        group_id=group_id,
        plan_revision=plan.revision,
        epoch=plan.epoch,
        purpose=purpose,
        run_id=run_id,
        state="waiting",
        attempt=0,
        not_before=0.0,
        cancel=False,
        abandon=False,
        restarts=0,
        label=label,
        pin=pin,
        hold=hold[0],
        held_by=hold[1],
        consistency=consistency,
        created_at=time.time(),
    )
    tx.add(cycle)
    tx.flush()
    tx.changed("cycle", cycle.cycle_id)
    return cycle


def open_cycles(session: Session) -> Sequence[str]:
    """Return the ids of the cycles to look at, oldest first: of those of a plan that wait, the first few will do."""
    return session.scalars(_TO_LOOK_AT, {"now": time.time()}).all()


def _to_look_at() -> Select[str]:
    """Return the query of :func:`open_cycles`, whose making takes longer than its answer."""
    other = aliased(Cycle)
    at_work = select(other.group_id).where(other.ended_at.is_(None), other.state.in_(AT_WORK))
    dropping = select(Checkpoint.group_id).where(Checkpoint.state == "dropping")
    place = func.row_number().over(partition_by=Cycle.plan, order_by=(Cycle.created_at, Cycle.cycle_id))
    heads = (
        select(Cycle.cycle_id, place.label("place"))
        .where(
            Cycle.ended_at.is_(None),
            Cycle.state == "waiting",
            Cycle.not_before <= bindparam("now"),
            Cycle.group_id.not_in(at_work),
            Cycle.group_id.not_in(dropping),
        )
        .subquery()
    )
    query = select(Cycle.cycle_id).where(
        Cycle.ended_at.is_(None),
        or_(
            Cycle.state != "waiting",
            Cycle.cancel,
            Cycle.group_id.in_(dropping),
            Cycle.cycle_id.in_(select(heads.c.cycle_id).where(heads.c.place <= MOST_LOOKED_AT)),
        ),
    )
    return query.order_by(Cycle.created_at)


_TO_LOOK_AT: Final = _to_look_at()


def begin_due(tx: Transaction, plan_name: str) -> float:
    """Create cycles for the groups of a plan that are due now; return the seconds until one is, if nothing happens.

    Its groups are looked at together, for there may be thousands. 0: nobody knows, it has to be looked at again soon.
    """
    plan = tx.get(Plan, plan_name, options=[defer(Plan.definition), defer(Plan.source)])
    if plan is None or plan.activity != "active" or plan.state not in PROTECTING:
        return 0.0
    definition = definitions.of_plan(plan)
    source, target = turned(definition.source_site, definition.target_site, plan.active_site)
    if any(site_state(tx, site) != "online" for site in (source, target)):
        return 0.0
    if not is_turned(tx, plan):
        return 0.0  # the machines that were replicated are no primaries any more
    now = clock.now()
    chosen: dict[str, set[str]] = {}
    for group_id, machine_id in tx.execute(select(PlanMachine.group_id, PlanMachine.machine_id).where(*_copied(plan))):
        chosen.setdefault(group_id, set()).add(str(machine_id))
    other = aliased(Cycle)
    busy = select(other.group_id).where(other.plan == plan_name, other.ended_at.is_(None))
    point = newest_of(plan, Group.group_id, source, target, sound=True).scalar_subquery()
    query = (
        select(
            Group.group_id,
            Group.last_seconds,
            Group.not_before,
            Checkpoint.ordered_at,
            Checkpoint.ordered_boot_s,
            Checkpoint.ordered_boot_id,
            Cycle.machines,
        )
        .outerjoin(Checkpoint, Checkpoint.checkpoint_id == point)
        .outerjoin(Cycle, Cycle.cycle_id == Checkpoint.cycle_id)
        .where(Group.plan == plan_name, Group.group_id.not_in(busy), Group.not_before <= now.wall_s)
    )
    waits = {}
    for row in tx.execute(query).all():
        if row.group_id not in chosen:
            continue
        # A machine that joined is without any copy: the group is due at once.
        whole = row.ordered_at is not None and set(row.machines or ()) == chosen[row.group_id]
        state = due.GroupState(
            rpo_s=definition.rpo,
            active=True,
            busy=False,
            newest_age_s=now.age_s(Stamp(row.ordered_at, row.ordered_boot_s, row.ordered_boot_id)) if whole else None,
            last_cycle_s=row.last_seconds,
        )
        waits[row.group_id] = due.wait_s(state.rpo_s, state.newest_age_s, state.last_cycle_s)
        if due.is_due(state) and not retention.dropping(tx, row.group_id):
            create(tx, plan, row.group_id, "schedule")
    return min(waits.values(), default=0.0) if waits.keys() == chosen.keys() else 0.0


def _copied(plan: Plan, purpose: str = "schedule") -> tuple[ColumnElement[bool], ...]:
    """Return which machines of a plan a cycle copies now; a failover takes paused ones along."""
    moving = purpose in {"sync", "final"}
    return (
        PlanMachine.plan == plan.name,
        PlanMachine.activity.in_(("active", "paused") if moving else ("active",)),
        PlanMachine.state.in_(("failing-over",) if moving else PROTECTING),
        ~PlanMachine.raised,
        PlanMachine.machine_id.is_not(None),
    )


def _chosen(session: Session, plan: Plan, group_id: str, purpose: str) -> list[PlanMachine]:
    """Return the machines that a cycle of the group copies now."""
    query = select(PlanMachine).where(PlanMachine.group_id == group_id, *_copied(plan, purpose))
    return list(session.scalars(query.order_by(PlanMachine.position)))


def advance(tx: Transaction, cycle_id: str) -> None:
    """Take a cycle as far as it goes now."""
    cycle = tx.get_one(Cycle, cycle_id)
    if cycle.ended_at is not None:
        return
    if cycle.state == "waiting":
        _waiting(tx, cycle)
        return
    task = tx.get_one(Task, cycle.task_id)
    if cycle.cancel and task.state not in tasks.ENDED:
        if cycle.abandon and task.kind != "replicate":
            task.cancel, task.state, task.ended_at = True, "cancelled", time.time()
        elif task.kind != "release" or cycle.abandon:
            tasks.cancel(tx, task)
    if task.state not in tasks.ENDED:
        return
    {"point": _pointed, "replicate": _replicated, "release": _released}[cycle.state](tx, cycle, task)


def give_up(tx: Transaction, cycle_id: str, why: str) -> None:
    """End a cycle that this control plane cannot take any further; the source is told to let go if that can be said."""
    cycle = tx.get_one(Cycle, cycle_id)
    if cycle.ended_at is not None:
        return
    error = Permanent(
        f"the cycle cannot go on: {why}",
        code="cycle-stuck",
        hint="Look at the control plane's log. The next cycle begins anew.",
    )
    cycle.error = error.to_dict()
    task = tx.get(Task, cycle.task_id) if cycle.task_id else None
    if task is not None:
        tasks.cancel(tx, task)
    if cycle.state in {"point", "replicate"}:
        _release(tx, cycle, applied=False)
    else:
        _finish(tx, cycle, "failed", error)


def _waiting(tx: Transaction, cycle: Cycle) -> None:
    plan = tx.get_one(Plan, cycle.plan, options=[defer(Plan.definition), defer(Plan.source)])
    definition = definitions.of_plan(plan)
    now = clock.now()
    if cycle.cancel:
        _finish(tx, cycle, "cancelled", Conflict("the cycle was cancelled", code="cancelled"))
        return
    source, target = turned(definition.source_site, definition.target_site, plan.active_site)
    if not is_turned(tx, plan):
        error = Conflict(f"plan {plan.name!r} is active at {plan.active_site!r}", code="plan-failed-over")
        _finish(tx, cycle, "cancelled", error)
        return
    at_work = tx.scalars(select(Cycle).where(Cycle.ended_at.is_(None), Cycle.state.in_(AT_WORK))).all()
    if (
        cycle.not_before > now.wall_s
        or any(other.group_id == cycle.group_id for other in at_work)
        or _copying(tx, at_work, target) >= MOST_AT_WORK
        or retention.dropping(tx, cycle.group_id)
        # Ordered while nobody is there to take the point, it would only look older than it is.
        or site_state(tx, source) != "online"
        or _first_waiting(tx, cycle.group_id) != cycle.cycle_id
    ):
        return
    chosen = _chosen(tx, plan, cycle.group_id, cycle.purpose)
    if not chosen:
        _finish(tx, cycle, "cancelled", Conflict("no machine of the group is protected", code="nothing-protected"))
        return
    machine_ids = tuple(str(row.machine_id) for row in chosen)
    writing = (_writing(tx, other.plan, other.machines or ()) for other in at_work)
    if not quotas.takes_drafts(tx, target, lambda: _writing(tx, cycle.plan, machine_ids)[1], writing):
        return
    base = newest(tx, plan, cycle.group_id)
    bases = {disk["disk_key"]: disk["source_point"] for disk in (base.manifest["disks"] if base else [])}
    bases = {key: point for key, point in bases.items() if key.rpartition("/")[0] in machine_ids}
    cycle.state, cycle.attempt, cycle.started_at = "point", 0, cycle.started_at or now.wall_s
    cycle.plan_revision, cycle.epoch = plan.revision, plan.epoch
    cycle.point_id, cycle.checkpoint_id = ids.new("pt"), ids.new("cp")
    cycle.base_checkpoint_id = base.checkpoint_id if base else None
    cycle.sequence = _next_sequence(tx, cycle.group_id, plan.epoch)
    cycle.machines = list(machine_ids)
    cycle.ordered_at, cycle.ordered_boot_s, cycle.ordered_boot_id = now.wall_s, now.boot_s, now.boot_id
    cycle.point = {"asked": [{"disk_key": key, "base": point} for key, point in bases.items()]}
    wanted = cast("Consistency", cycle.consistency or definition.consistency)
    _order(
        tx,
        cycle,
        "point",
        source,
        PointParams(
            group_id=cycle.group_id,
            point_id=cycle.point_id,
            machine_ids=machine_ids,
            consistency=wanted,
            demanded=cycle.consistency is not None,
            quiesce=_quiesce(definition, chosen) if wanted == "application" else {},
            bases=dict(bases),
            epoch=plan.epoch,
        ),
    )
    closing.begun(tx, cycle)
    tx.changed("plan", plan.name)


def _quiesce(definition: Definition, rows: Sequence[PlanMachine]) -> dict[str, Quiesce]:
    """Return what the plan has run in machines around a freeze, by their ids."""
    named = {machine.name: machine.quiesce for machine in definition.machines if machine.quiesce != Quiesce()}
    return {str(row.machine_id): named[row.name] for row in rows if row.name in named}


def _next_sequence(session: Session, group_id: str, epoch: int) -> int:
    """Return the number of the group's next checkpoint: above those of dropped ones too, which is never used again."""
    taken = select(func.max(Checkpoint.sequence)).where(Checkpoint.group_id == group_id, Checkpoint.epoch == epoch)
    return (session.scalar(taken) or 0) + 1


def _copying(session: Session, at_work: Sequence[Cycle], site: str) -> int:
    """Return how many cycles copy to ``site``; one that only waits for its source to let go does not count."""
    targets = {}
    for name in {cycle.plan for cycle in at_work if cycle.state != "release"}:
        plan = session.get_one(Plan, name, options=[defer(Plan.definition), defer(Plan.source)])
        definition = definitions.of_plan(plan)
        targets[name] = turned(definition.source_site, definition.target_site, plan.active_site).target
    return sum(cycle.state != "release" and targets[cycle.plan] == site for cycle in at_work)


def _first_waiting(session: Session, group_id: str) -> str | None:
    return session.scalars(
        select(Cycle.cycle_id)
        .where(Cycle.group_id == group_id, Cycle.state == "waiting", Cycle.ended_at.is_(None))
        .order_by(Cycle.created_at, Cycle.cycle_id)
        .limit(1)
    ).first()


def _order(tx: Transaction, cycle: Cycle, kind: str, site: str, params: Any, node: str | None = None) -> None:
    key = f"{cycle.cycle_id}/{kind}/{cycle.restarts}.{cycle.attempt}"
    # Terms of a cycle's replications grow over all tries and restarts, so that each passes the session before it.
    held = tx.scalar(select(func.max(Task.term)).where(Task.cycle_id == cycle.cycle_id, Task.kind == kind)) or 0
    of: tasks.Belongs = {"plan": cycle.plan, "cycle_id": cycle.cycle_id, "pinned_node": node, "term": held + 1}
    cycle.task_id = tasks.ensure(tx, key, kind, site, params, **of).task_id


def _pointed(tx: Transaction, cycle: Cycle, task: Task) -> None:
    if task.state != "succeeded" or cycle.cancel:
        _failed(tx, cycle, task)
        return
    plan = tx.get_one(Plan, cycle.plan)
    definition = definitions.of_plan(plan)
    found = PointResult.model_validate(task.result)
    base = tx.get(Checkpoint, cycle.base_checkpoint_id) if cycle.base_checkpoint_id else None
    held = {disk["disk_key"]: disk for disk in (base.manifest["disks"] if base else [])}
    seeds, old_disks = _seeds(tx, plan, definition), _old_disks(tx, plan, found.machines)
    source, target = direction(plan)
    disks = []
    for disk in found.disks:
        before = held.get(disk.disk_key)
        if before is not None and before["size_bytes"] != disk.size_bytes:
            before = None  # a resized disk is copied anew
        disks.append(
            ReplicateDisk(
                disk_key=disk.disk_key,
                size_bytes=disk.size_bytes,
                # Not incremental with a base: a verify pass against the base's tree.
                incremental=disk.incremental and before is not None,
                base_point=before["point"] if before else None,
                base_root=before["tree_root"] if before else None,
                reason=disk.reason,
                seed=seeds.get(disk.disk_key) if before is None else None,
                old_disk=old_disks.get(disk.disk_key) if before is None else None,
            )
        )
    cycle.source_node = task.node
    asked = (cycle.point or {}).get("asked", [])
    cycle.point = {
        "asked": [
            item for item in asked if any(disk.disk_key == item["disk_key"] and disk.base_point for disk in disks)
        ],
        "disks": [disk.disk_key for disk in disks],
    }
    manifest = Manifest(
        checkpoint_id=str(cycle.checkpoint_id),
        group_id=cycle.group_id,
        plan=cycle.plan,
        plan_revision=cycle.plan_revision,
        catalog_id=settings.catalog_id(tx),
        generation=settings.generation(tx),
        epoch=cycle.epoch,
        term=1,
        sequence=int(cycle.sequence or 1),
        parent=cycle.base_checkpoint_id,
        source_site=source,
        target_site=target,
        level=found.level,
        evidence=found.evidence,
        ordered_at=float(cycle.ordered_at or 0.0),
        taken_at=found.taken_at,
        machines=found.machines,
        disks=(),
        settings={"plan": plan.definition},
    )
    cycle.state, cycle.attempt = "replicate", 0
    _order_copy(
        tx,
        cycle,
        ReplicateParams(grant="", address="", manifest=manifest, disks=tuple(disks), transport=definition.transport),
    )


def _seeds(session: Session, plan: Plan, definition: Definition) -> dict[str, str]:
    """Return the images at the target that disks begin with, by disk key; they lie at the plan's target site only."""
    if direction(plan).target != definition.target_site:
        return {}
    return {
        disk_key(row.machine_id, disk_id): image
        for row in members(session, definition.name)
        if row.machine_id is not None
        for machine in definition.machines
        if machine.name == row.name
        for disk_id, image in machine.seed.items()
    }


def _writing(session: Session, plan: str, machine_ids: Sequence[str]) -> tuple[str, int]:
    """Return the site that machines are copied to, and how many disks they have."""
    row = session.get(Plan, plan)
    if row is None:
        return "", 0
    source, target = direction(row)
    rows = (session.get(Machine, (source, machine_id)) for machine_id in machine_ids)
    return target, sum(len(machine.facts["disks"]) for machine in rows if machine is not None)


def _old_disks(session: Session, plan: Plan, machines: Sequence[MachineFacts]) -> dict[str, str]:
    """Return the disks of old primaries that rest at the target, by the keys of those that grew from them."""
    found = {}
    facts = {machine.machine_id: machine for machine in machines}
    for row in members(session, plan.name):
        old = session.get(Machine, (direction(plan).target, row.old_machine_id)) if row.old_machine_id else None
        new = facts.get(str(row.machine_id))
        if old is None or new is None or old.gone_at is not None:
            continue
        before = MachineFacts.model_validate(old.facts)
        for disk_id, old_id in same_disks(new, before).items():
            found[disk_key(new.machine_id, disk_id)] = disk_key(before.machine_id, old_id)
    return found


def _order_copy(tx: Transaction, cycle: Cycle, params: ReplicateParams) -> None:
    """Order the copy. Grant and address are filled in when a node takes it: see ``sessions.compose``."""
    _order(tx, cycle, "replicate", params.manifest.target_site, params)


def _replicated(tx: Transaction, cycle: Cycle, task: Task) -> None:
    if task.state != "succeeded":
        _failed(tx, cycle, task)
        return
    result = ReplicateResult.model_validate(task.result)
    keys = [disk.disk_key for disk in result.manifest.disks]
    if result.manifest.checkpoint_id != cycle.checkpoint_id or sorted(keys) != sorted((cycle.point or {})["disks"]):
        cycle.error = Corruption(
            "the published manifest is not the one that was ordered",
            code="manifest-mismatch",
            checkpoint_id=result.manifest.checkpoint_id,
            disks=keys,
        ).to_dict()
        _release(tx, cycle, applied=False)
        return
    cycle.stats = result.stats.model_dump(mode="json")
    catalog.project(tx, result.manifest, cycle)
    integrity.learn(tx, result.addenda)
    _release(tx, cycle, applied=True)


def _failed(tx: Transaction, cycle: Cycle, task: Task) -> None:
    """Try a task of a cycle again, or give the cycle up, as its error's duty says."""
    if cycle.cancel:
        cycle.error = Conflict("the cycle was cancelled", code="cancelled").to_dict()
        _release(tx, cycle, applied=False)
        return
    error = tasks.failure(task)
    if _passes(error, task) and cycle.attempt + 1 < MOST_TRIES:
        cycle.attempt += 1
        _again(tx, cycle, task)
        return
    cycle.error = error.to_dict()
    _release(tx, cycle, applied=False)


def _passes(error: FarshoreError, task: Task) -> bool:
    """Say whether the same task may succeed later."""
    if isinstance(error, RestartFromCheckpoint):
        return task.kind == "replicate" and error.code in _SAME_POINT
    return isinstance(error, (Retry, Reconnect))


def _pause_s(attempt: int) -> float:
    return float(min(2.0**attempt, LONGEST_PAUSE_S))


def _again(tx: Transaction, cycle: Cycle, task: Task) -> None:
    """Order the same work as a new task after a pause; nodes find what the first try left by the names in it."""
    _order(tx, cycle, task.kind, task.site, PARAMS[task.kind].model_validate(task.params))
    again = tx.get_one(Task, cycle.task_id)
    again.not_before = time.time() + _pause_s(cycle.attempt)
    again.drafts = task.drafts


def _release(tx: Transaction, cycle: Cycle, *, applied: bool) -> None:
    if cycle.abandon or cycle.point_id is None:
        _close(tx, cycle)
        return
    # Whatever the plan is by now: where the point was taken.
    taken = tx.scalars(select(Task).where(Task.cycle_id == cycle.cycle_id, Task.kind == "point")).first()
    cycle.state, cycle.attempt = "release", 0
    _order(
        tx,
        cycle,
        "release",
        taken.site if taken is not None else direction(tx.get_one(Plan, cycle.plan)).source,
        ReleaseParams(
            group_id=cycle.group_id,
            point_id=cycle.point_id,
            machine_ids=tuple(cycle.machines or ()),
            applied=applied,
        ),
    )
    tx.changed("plan", cycle.plan)


def _released(tx: Transaction, cycle: Cycle, task: Task) -> None:
    """End the cycle once the source has heard. An applied point must become a base there, so that is tried for long."""
    if task.state == "failed" and not cycle.cancel:
        error = tasks.failure(task)
        if isinstance(error, (Retry, Reconnect)):
            cycle.attempt += 1
            _again(tx, cycle, task)
            return
    _close(tx, cycle)


def _close(tx: Transaction, cycle: Cycle) -> None:
    """Give a cycle its last state, or begin it anew if only its source point was lost."""
    if cycle.stats is not None:
        _finish(tx, cycle, "done", None)
        return
    error = errors.from_dict(cycle.error or {})
    if cycle.cancel:
        _finish(tx, cycle, "cancelled", error)
    elif isinstance(error, RestartFromCheckpoint) and cycle.restarts < MOST_RESTARTS:
        cycle.restarts += 1
        cycle.state, cycle.error = "waiting", None
        cycle.not_before = time.time() + _pause_s(cycle.restarts)
    else:
        _finish(tx, cycle, "failed", error)


def _finish(tx: Transaction, cycle: Cycle, state: str, error: FarshoreError | None) -> None:
    now = time.time()
    plan = tx.get_one(Plan, cycle.plan)
    group = tx.get(Group, cycle.group_id)
    cycle.state, cycle.ended_at = state, now
    cycle.error = error.to_dict() if error else None
    if group is not None and state != "cancelled":
        group.last_started_at = cycle.started_at
        if error is None:
            group.failures, group.not_before, group.last_error = 0, 0.0, None
            group.last_seconds = now - (cycle.started_at or now)
            if plan.last_error is not None and plan.last_error.get("group_id") in {None, cycle.group_id}:
                plan.last_error = None
        else:
            group.failures += 1
            rpo_s = definitions.of_plan(plan).rpo
            group.not_before = now + due.pause_after(group.failures, rpo_s)
            group.last_error = error.to_dict()
            plan.last_error = {**error.to_dict(), "group_id": cycle.group_id, "at": iso(now)}
    if cycle.stats is None and "disks" in (cycle.point or {}):
        # A node may have published and then been lost with its report.
        copied = tx.scalars(select(Task).where(Task.cycle_id == cycle.cycle_id, Task.kind == "replicate")).first()
        catalog.scan(tx, copied.site if copied is not None else direction(plan).target, cycle.cycle_id)
    retention.thin(tx, plan, cycle.group_id)
    tx.changed("cycle", cycle.cycle_id)
    tx.changed("plan", cycle.plan)
    if cycle.run_id is not None:
        closing.cycle_ended(tx, cycle)
    closing.poke(tx, cycle.plan)
