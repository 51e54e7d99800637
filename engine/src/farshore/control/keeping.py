"""What retention keeps of a plan's checkpoints: the rules of ``farshore.checkpoints.retention`` on the records."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.checkpoints.retention import Decision, Held, decide
from farshore.control import clock, suspicion
from farshore.control.direction import direction
from farshore.control.store.records import Checkpoint, Group, Lease, Plan
from farshore.model.plan import Retention


def points_of(session: Session, plan: Plan, group_id: str, site: str | None = None) -> list[Held]:
    """Return a group's published points at a site, by default the one that is copied to now; oldest first."""
    rows = session.scalars(
        select(Checkpoint)
        .where(
            Checkpoint.group_id == group_id,
            Checkpoint.target_site == (site or direction(plan).target),
            Checkpoint.state == "published",
        )
        .order_by(Checkpoint.epoch, Checkpoint.sequence)
    ).all()
    leased = set(session.scalars(select(Lease.checkpoint_id)))
    group = session.get(Group, group_id)
    began = group.tainted_by if group is not None else None
    return [
        Held(
            row.checkpoint_id,
            row.taken_at,
            pinned=row.pinned,
            legal_hold=bool(row.hold),
            in_use=row.checkpoint_id in leased,
            suspect=row.integrity == "suspect",
            clean=suspicion.is_clean(row),
            began=row.checkpoint_id == began,
        )
        for row in rows
    ]


def rules_of(plan: Plan) -> Retention:
    """Return a plan's rules, without the work of reading all of a large plan."""
    return Retention.model_validate(plan.definition.get("retention", {}))


def decision(
    session: Session, plan: Plan, group_id: str, rules: Retention | None = None, site: str | None = None
) -> Decision:
    """Return what stays and what goes of a group now, by the plan's rules or by others; ``site``: as for the points."""
    return decide(points_of(session, plan, group_id, site), rules or rules_of(plan), clock.now().wall_s)


def sites_left(session: Session, plan: Plan, group_id: str) -> list[str]:
    """Return the sites with published points of a group that nothing is copied to any more.

    None before the plan is protected the other way round: until then it may come back to them.
    """
    if plan.state != "protected":
        return []
    sites = select(Checkpoint.target_site).where(Checkpoint.group_id == group_id, Checkpoint.state == "published")
    return sorted(set(session.scalars(sites)) - {direction(plan).target})


def groups_of(session: Session, plan: str) -> Sequence[str]:
    """Return the groups of a plan that have published points."""
    return session.scalars(
        select(Checkpoint.group_id)
        .where(Checkpoint.plan == plan, Checkpoint.state == "published")
        .distinct()
        .order_by(Checkpoint.group_id)
    ).all()
