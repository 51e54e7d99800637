"""Plans and machines, with the RPO as it is now."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import clock, integrity
from farshore.control.clock import Stamp, iso
from farshore.control.direction import direction
from farshore.control.nearby import unknown
from farshore.control.scheduling import due
from farshore.control.store.records import (
    Checkpoint,
    Cycle,
    Fence,
    Group,
    Machine,
    OldPrimary,
    Plan,
    PlanMachine,
    Run,
    Task,
)
from farshore.control.views.history import OPEN, WAITING_APPROVAL
from farshore.control.views.places import site_state
from farshore.control.views.points import newest
from farshore.control.views.rehearsals import MISSED, newest_missed, rehearsals
from farshore.errors import Invalid
from farshore.model.plan import Plan as Definition
from farshore.units import format_duration

__all__ = ["direction"]

_PROTECTING = ("seeding", "protected", "reprotecting")


def plans(session: Session) -> list[dict[str, Any]]:
    """Return all plans by name."""
    return [_plan(session, row) for row in session.scalars(select(Plan).order_by(Plan.name))]


def plan(session: Session, name: str) -> dict[str, Any]:
    """Return one plan; ``NotFound`` with near matches."""
    return _plan(session, record(session, name))


def record(session: Session, name: str, field: str = "name") -> Plan:
    """Return a plan's record; ``NotFound`` with near matches."""
    row = session.get(Plan, name)
    if row is None:
        raise unknown("plan", name, session.scalars(select(Plan.name)), field=field)
    return row


def has_plan(session: Session, name: str) -> bool:
    """Say whether there is a plan of that name."""
    return session.get(Plan, name) is not None


def members(session: Session, name: str) -> list[PlanMachine]:
    """Return the machines of a plan in the plan's order."""
    return list(session.scalars(select(PlanMachine).where(PlanMachine.plan == name).order_by(PlanMachine.position)))


def is_turned(session: Session, row: Plan) -> bool:
    """Say whether the plan's machines are taken from where it is active: after a failover, once it was reprotected."""
    elsewhere = select(PlanMachine.name).where(PlanMachine.plan == row.name, PlanMachine.site != row.active_site)
    if row.activity != "inactive":  # what was migrated is done with; the others may go on
        elsewhere = elsewhere.where(~PlanMachine.raised | (PlanMachine.activity != "inactive"))
    return session.scalars(elsewhere.limit(1)).first() is None


def runs_at(row: Plan, member: PlanMachine) -> str:
    """Return the site where a machine of a plan is the primary."""
    if not member.raised:
        return member.site
    if row.active_site != member.site:  # all have moved; the site that they left may be none of the plan's any more
        return row.active_site
    return min({str(row.definition["source_site"]), str(row.definition["target_site"])} - {member.site})


def is_parted(session: Session, plan: str) -> bool:
    """Say whether some of the plan's machines were moved to the other site, and some not."""
    query = select(PlanMachine.raised).where(PlanMachine.plan == plan, PlanMachine.activity != "inactive")
    return len(session.scalars(query.distinct()).all()) > 1


def ordered(row: Checkpoint) -> Stamp:
    """Return when the source point of a checkpoint was ordered."""
    return Stamp(row.ordered_at, row.ordered_boot_s, row.ordered_boot_id)


def rpo_s(session: Session, row: Plan, member: PlanMachine) -> float | None:
    """Return how much data, as time, a disaster would cost a machine now. None if nothing is kept, or not protected."""
    if member.state not in _PROTECTING or row.state in {"failed-over", "failing-over"}:
        return None
    checkpoint = newest(session, row, member.group_id, sound=True)
    if checkpoint is None or all(item["machine_id"] != member.machine_id for item in checkpoint.manifest["machines"]):
        return None
    return round(clock.now().age_s(ordered(checkpoint)), 3)


def _plan(session: Session, row: Plan) -> dict[str, Any]:
    definition = Definition.model_validate(row.definition)
    machines_of = members(session, row.name)
    ages = {member.name: rpo_s(session, row, member) for member in machines_of}
    known = [age for age in ages.values() if age is not None]
    # Of a machine that has no copy yet a disaster would cost all: no number says that.
    whole = all(
        ages[member.name] is not None for member in machines_of if member.activity != "inactive" and not member.raised
    )
    points = {member.name: newest(session, row, member.group_id) for member in machines_of}
    groups = session.scalars(select(Group).where(Group.plan == row.name).order_by(Group.group_id)).all()
    here = {member.group_id for member in machines_of if not member.raised}
    nexts = [
        moment
        for group in groups
        if group.group_id in here and (moment := next_cycle_at(session, row, definition, group)) is not None
    ]
    return {
        "name": row.name,
        "revision": row.revision,
        "definition": row.definition,
        "source": row.source,
        "source_site": definition.source_site,
        "target_site": definition.target_site,
        "activity": row.activity,
        "active_site": row.active_site,
        "direction": direction(row)._asdict(),
        "turned": is_turned(session, row),
        "committed": row.committed,
        "old_primaries": _old_primaries(session, row.name),
        "state": row.state,
        "conditions": conditions(session, row, definition, known),
        "epoch": row.epoch,
        "rpo_s": max(known) if known and whole else None,
        "rpo_target_s": definition.rpo,
        "machines": [
            {
                "name": member.name,
                "machine_id": member.machine_id,
                "state": member.state,
                "activity": member.activity,
                "active_site": runs_at(row, member),
                "rpo_s": ages[member.name],
                "newest_checkpoint": point.checkpoint_id if (point := points[member.name]) else None,
            }
            for member in machines_of
        ],
        "groups": [group.group_id for group in groups],
        "next_cycle_at": iso(min(nexts)) if nexts else None,
        "cycles": [
            cycle_view(cycle)
            for cycle in session.scalars(
                select(Cycle).where(Cycle.plan == row.name).order_by(Cycle.created_at.desc()).limit(20)
            )
        ],
        "drill": rehearsals(session, row),
        "last_error": row.last_error,
        "created_at": iso(row.created_at),
        "changed_at": iso(row.changed_at),
    }


def _old_primaries(session: Session, plan: str) -> list[dict[str, Any]]:
    """Return the machines that were the primaries before, and rest with their disks."""
    gone = select(Machine.machine_id).where(
        Machine.site == OldPrimary.site, Machine.machine_id == OldPrimary.machine_id, Machine.gone_at.is_not(None)
    )
    query = (
        select(OldPrimary).where(OldPrimary.plan == plan, ~gone.exists()).order_by(OldPrimary.epoch, OldPrimary.machine)
    )
    return [
        {
            "machine": one.machine,
            "site": one.site,
            "machine_id": one.machine_id,
            "until_epoch": one.epoch,
            "divergent": one.divergent,
            "committed_at": iso(one.committed_at),
        }
        for one in session.scalars(query)
    ]


def cycle_view(row: Cycle) -> dict[str, Any]:
    """Return one cycle as a plan's page and a run show it."""
    return {
        "cycle_id": row.cycle_id,
        "group_id": row.group_id,
        "purpose": row.purpose,
        "state": row.state,
        "checkpoint_id": row.checkpoint_id if row.stats else None,
        "ordered_at": iso(row.ordered_at),
        "started_at": iso(row.started_at),
        "ended_at": iso(row.ended_at),
        "stats": row.stats,
        "error": row.error,
    }


def next_cycle_at(session: Session, row: Plan, definition: Definition, group: Group) -> float | None:
    """Return when the next cycle of a group begins; None if none will."""
    if row.activity != "active" or row.state not in _PROTECTING:
        return None
    now = clock.now()
    checkpoint = newest(session, row, group.group_id, sound=True)
    age_s = now.age_s(ordered(checkpoint)) if checkpoint else None
    wait_s = due.wait_s(definition.rpo, age_s, group.last_seconds)
    return max(now.wall_s + wait_s, group.not_before)


def conditions(session: Session, row: Plan, definition: Definition, ages: list[float]) -> list[str]:
    """Return what a person should know about a plan beside its state."""
    found = []
    if ages and max(ages) > definition.rpo:
        found.append("rpo-exceeded")
    if row.activity == "paused":
        found.append("paused")
    if row.last_error is not None:
        found.append("replication-failing")
    if not row.committed and row.state not in {"failing-over", "rolling-back"}:
        found.append("not-committed")
    if row.epoch > 1:
        if is_parted(session, row.name):
            found.append("partly-failed-over")
        if divergent(session, row.name):
            found.append("divergent")
    if row.approval != row.definition.get("approval"):
        found.append("approval-to-approve")
    if integrity.any_suspect(session, row.name):
        found.append("suspect")
    marks = session.execute(select(Group.tainted_by, Group.crowded).where(Group.plan == row.name)).all()
    if any(taint for taint, _ in marks):
        found.append("encryption-suspected")
    if any(crowded for _, crowded in marks):
        found.append("chain-at-limit")
    begun = select(Run.run_id).where(Run.state.in_(OPEN), Run.state != WAITING_APPROVAL)
    if session.scalars(begun.where(Run.plan == row.name, Run.kind == "drill")).first():
        found.append("drilling")
    if newest_missed(session, row.name):
        found.append(MISSED)
    if row.activity == "active" and row.state in _PROTECTING:
        states = {site: site_state(session, site) for site in direction(row)}
        found += [f"site-{state}:{site}" for site, state in states.items() if state != "online"]
    if session.scalars(select(Fence.machine_id).where(Fence.plan == row.name, Fence.done_at.is_(None))).first():
        found.append("old-primary-not-fenced")
    if session.scalars(
        select(Task.task_id).where(
            Task.plan == row.name, Task.kind == "machine-untrack", Task.state.in_(("queued", "assigned"))
        )
    ).first():
        found.append("untrack-pending")
    return found


def divergent(session: Session, plan: str) -> list[str]:
    """Return the machines of a plan that were moved by force: their old primaries may hold what nobody else has."""
    query = (
        select(PlanMachine.name)
        .join(OldPrimary, (OldPrimary.plan == PlanMachine.plan) & (OldPrimary.machine == PlanMachine.name))
        .where(
            PlanMachine.plan == plan,
            PlanMachine.raised,
            PlanMachine.activity != "inactive",
            OldPrimary.site == PlanMachine.site,
            OldPrimary.machine_id == PlanMachine.machine_id,
            OldPrimary.divergent,
        )
    )
    return list(dict.fromkeys(session.scalars(query.order_by(PlanMachine.position))))


def machines(
    session: Session, site: str | None = None, plan: str | None = None, name: str | None = None
) -> list[dict[str, Any]]:
    """Return the machines of all sites, by site and name; ``name`` may be an id."""
    query = select(Machine).where(Machine.gone_at.is_(None)).order_by(Machine.site, Machine.name, Machine.machine_id)
    if site is not None:
        query = query.where(Machine.site == site)
    found = [_machine(session, row) for row in session.scalars(query)]
    return [
        item
        for item in found
        if (plan is None or item["plan"] == plan) and (name is None or name in {item["name"], item["machine_id"]})
    ]


def machine(session: Session, machine_id: str, site: str | None = None) -> dict[str, Any]:
    """Return one machine by id (or by a name that only one has).

    Raises:
        NotFound: none, with near matches.
        Invalid: several sites have it; ``site`` has to say which.
    """
    rows = session.scalars(
        select(Machine).where((Machine.machine_id == machine_id) | (Machine.name == machine_id))
    ).all()
    rows = [row for row in rows if row.machine_id == machine_id] or rows
    rows = [row for row in rows if site in {None, row.site}]
    rows = [row for row in rows if row.gone_at is None] or rows
    if not rows:
        names = session.scalars(select(Machine.name).where(Machine.gone_at.is_(None)))
        raise unknown("machine", machine_id, names, field="machine_id")
    if len(rows) > 1:
        active = [row for row in rows if _machine(session, row)["active_site"] == row.site]
        if len(active) != 1:
            raise Invalid(
                f"{machine_id!r} is at {' and '.join(sorted(row.site for row in rows))}",
                code="machine-ambiguous",
                field="machine_id",
                hint="Add ?site=NAME, or ask by id.",
            )
        rows = active
    return _machine(session, rows[0])


def _machine(session: Session, row: Machine) -> dict[str, Any]:
    member = session.scalars(
        select(PlanMachine).where(PlanMachine.site == row.site, PlanMachine.machine_id == row.machine_id)
    ).first()
    if member is None:  # a machine that a failover made belongs to the plan too
        moved = session.scalars(
            select(PlanMachine).where(PlanMachine.raised, PlanMachine.target_machine_id == row.machine_id)
        )
        member = next((one for one in moved if runs_at(session.get_one(Plan, one.plan), one) == row.site), None)
    owner = session.get(Plan, member.plan) if member else None
    age = rpo_s(session, owner, member) if owner and member else None
    point = newest(session, owner, member.group_id) if owner and member else None
    facts = row.facts
    return {
        "machine_id": row.machine_id,
        "name": row.name,
        "site": row.site,
        "power": facts["power"],
        "cpus": facts["cpus"],
        "memory_bytes": facts["memory_bytes"],
        "firmware": facts["firmware"],
        "disks": facts["disks"],
        "nics": facts["nics"],
        "tags": facts["tags"],
        "on_points": bool(facts.get("on_points")),
        "plan": owner.name if owner else None,
        "state": member.state if member else "unprotected",
        "conditions": _machine_conditions(session, owner, member, age) if owner and member else [],
        "epoch": owner.epoch if owner else None,
        "active_site": runs_at(owner, member) if owner and member else None,
        "rpo_s": age,
        "newest_checkpoint": point.checkpoint_id if point else None,
        "findings": facts["findings"],
        "bottleneck": bottleneck(session, owner, member, age) if owner and member else None,
        "seen_at": iso(row.seen_at),
    }


def _machine_conditions(session: Session, owner: Plan, member: PlanMachine, age: float | None) -> list[str]:
    definition = Definition.model_validate(owner.definition)
    found = conditions(session, owner, definition, [age] if age is not None else [])
    if member.activity == "paused" and "paused" not in found:
        found.append("paused")
    return found


def bottleneck(session: Session, owner: Plan, member: PlanMachine, age: float | None) -> str | None:
    """Return a sentence that says why a machine is late; None if it is not."""
    definition = Definition.model_validate(owner.definition)
    late = age is not None and age > definition.rpo
    if owner.state not in _PROTECTING or member.activity == "inactive" or not late:
        return None
    if member.activity == "paused":
        return "Replication is paused."
    for site in direction(owner):
        if site_state(session, site) != "online":
            return f"No node of site {site} answers."
    if owner.last_error is not None:
        return f"The last cycle failed: {owner.last_error.get('message', 'unknown error')}"
    last = session.scalars(
        select(Cycle)
        .where(Cycle.group_id == member.group_id, Cycle.stats.is_not(None))
        .order_by(Cycle.created_at.desc())
        .limit(1)
    ).first()
    if last is None or last.stats is None:
        return None
    seconds = float(last.stats.get("seconds", 0.0))
    if seconds > definition.rpo / 2:
        rate = float(last.stats.get("moved_bytes", 0)) / max(seconds, 0.001) / 2**20
        return (
            f"A cycle takes {format_duration(seconds)} ({math.ceil(rate)} MiB/s), too long for an RPO of"
            f" {format_duration(definition.rpo)}."
        )
    return "A cycle is late; the next one is due now."
