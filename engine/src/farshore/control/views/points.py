"""Published checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control.clock import iso
from farshore.control.direction import direction
from farshore.control.nearby import unknown
from farshore.control.store.records import Checkpoint, Lease, Plan, PlanMachine


def checkpoints(
    session: Session, plan: str | None = None, machine: str | None = None, group: str | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """Return published checkpoints, newest first. ``machine`` is a name or an id."""
    query = select(Checkpoint).where(Checkpoint.state == "published")
    if plan is not None:
        query = query.where(Checkpoint.plan == plan)
    if group is not None:
        query = query.where(Checkpoint.group_id == group)
    rows: Iterable[Checkpoint] = session.scalars(
        query.order_by(Checkpoint.ordered_at.desc(), Checkpoint.checkpoint_id.desc())
    )
    if machine is not None:
        rows = [row for row in rows if machine in _names(row) | _ids(row)]
    return [_checkpoint(session, row) for row in list(rows)[:limit]]


def checkpoint(session: Session, checkpoint_id: str) -> dict[str, Any]:
    """Return one checkpoint, also a tombstoned one; ``NotFound`` if there never was."""
    row = session.get(Checkpoint, checkpoint_id)
    if row is None:
        raise no_checkpoint(session, checkpoint_id)
    return _checkpoint(session, row)


def no_checkpoint(session: Session, wrong: str, field: str = "checkpoint_id", plan: str | None = None) -> Exception:
    """Return the error for a checkpoint that does not exist."""
    query = select(Checkpoint.checkpoint_id).where(Checkpoint.state == "published")
    if plan is not None:
        query = query.where(Checkpoint.plan == plan)
    newest = session.scalars(query.order_by(Checkpoint.ordered_at.desc()).limit(5)).all()
    return unknown("checkpoint", wrong, newest, field=field, hint="List them: `farshore checkpoint list`.")


def newest(session: Session, plan: Plan, group_id: str, *, sound: bool = False) -> Checkpoint | None:
    """Return a group's newest published checkpoint in the direction that the plan runs now.

    What was copied between other sites, or the other way, is neither a base nor of use at the target. ``sound``: one
    that is suspect does not count; it may be the base of a cycle, but nobody wants to recover from it.
    """
    source, target = direction(plan)
    query = select(Checkpoint).where(
        Checkpoint.group_id == group_id,
        Checkpoint.epoch <= plan.epoch,
        Checkpoint.source_site == source,
        Checkpoint.target_site == target,
        Checkpoint.state == "published",
    )
    if sound:
        query = query.where(Checkpoint.integrity != "suspect")
    return session.scalars(query.order_by(Checkpoint.epoch.desc(), Checkpoint.sequence.desc()).limit(1)).first()


def _names(row: Checkpoint) -> set[str]:
    return {machine["name"] for machine in row.manifest["machines"]}


def _ids(row: Checkpoint) -> set[str]:
    return {machine["machine_id"] for machine in row.manifest["machines"]}


def _checkpoint(session: Session, row: Checkpoint) -> dict[str, Any]:
    members = session.scalars(select(PlanMachine).where(PlanMachine.plan == row.plan))
    called = {member.machine_id: member.name for member in members}
    return {
        "checkpoint_id": row.checkpoint_id,
        "group_id": row.group_id,
        "plan": row.plan,
        "plan_revision": row.plan_revision,
        "level": row.level,
        "evidence": row.manifest.get("evidence", {}),
        "sequence": row.sequence,
        "epoch": row.epoch,
        "ordered_at": iso(row.ordered_at),
        "taken_at": iso(row.taken_at),
        "published_at": iso(row.published_at),
        "source_site": row.source_site,
        "target_site": row.target_site,
        "pinned": row.pinned,
        "label": row.label,
        "note": row.note,
        "in_use_by": list(session.scalars(select(Lease.run_id).where(Lease.checkpoint_id == row.checkpoint_id))),
        "integrity": row.integrity,
        "addenda": [
            {
                **{key: one[key] for key in ("verdict", "by", "origin", "reason", "damages", "more", "read_bytes")},
                "at": iso(one["at"]),
            }
            for one in row.addenda
        ],
        "state": "published" if row.state in {"published", "dropping"} else "tombstoned",
        "machines": [called.get(item["machine_id"], item["name"]) for item in row.manifest["machines"]],
        "disks": row.manifest["disks"],
        "stats": row.stats,
    }
