"""Published checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from farshore.checkpoints.retention import Verdict
from farshore.control import keeping, suspicion
from farshore.control.clock import iso
from farshore.control.direction import direction
from farshore.control.nearby import unknown
from farshore.control.store.records import Checkpoint, Group, Lease, Plan, PlanMachine
from farshore.model.plan import Retention


def checkpoints(
    session: Session,
    plan: str | None = None,
    machine: str | None = None,
    group: str | None = None,
    limit: int = 100,
    *,
    clean: bool = False,
) -> list[dict[str, Any]]:
    """Return published checkpoints, newest first. ``machine`` is a name or an id; ``clean``: no doubtful ones."""
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
    if clean:
        rows = [row for row in rows if suspicion.is_clean(row) and row.integrity != "suspect"]
    chosen = list(rows)[:limit]
    verdicts = _verdicts(session, {(row.plan, row.group_id) for row in chosen})
    return [_checkpoint(session, row, verdicts) for row in chosen]


def checkpoint(session: Session, checkpoint_id: str) -> dict[str, Any]:
    """Return one checkpoint, also a tombstoned one; ``NotFound`` if there never was."""
    row = session.get(Checkpoint, checkpoint_id)
    if row is None:
        raise no_checkpoint(session, checkpoint_id)
    return _checkpoint(session, row, _verdicts(session, {(row.plan, row.group_id)}))


def _verdicts(session: Session, groups: set[tuple[str, str]]) -> dict[str, Verdict]:
    """Return what retention would say now of the points of some groups, by their ids."""
    found: dict[str, Verdict] = {}
    for name, group_id in groups:
        plan = session.get(Plan, name)
        if plan is not None:
            found |= {one.checkpoint_id: one for one in keeping.decision(session, plan, group_id).verdicts}
    return found


def retention(session: Session, name: str, rules: Retention | None = None) -> dict[str, Any]:
    """Return what retention would do with a plan's checkpoints now, by its rules or by others."""
    plan = session.get(Plan, name)
    if plan is None:
        raise unknown("plan", name, session.scalars(select(Plan.name)), field="name")
    own = keeping.rules_of(plan)
    decisions = {
        group_id: keeping.decision(session, plan, group_id, rules) for group_id in keeping.groups_of(session, name)
    }
    goes = [checkpoint_id for one in decisions.values() for checkpoint_id in one.goes]
    shown = [
        {
            "checkpoint_id": verdict.checkpoint_id,
            "group_id": group_id,
            "taken_at": iso(session.get_one(Checkpoint, verdict.checkpoint_id).taken_at),
            "stays": verdict.stays,
            "reasons": list(verdict.reasons),
        }
        for group_id, one in decisions.items()
        for verdict in one.verdicts
    ]
    before = [str(item["checkpoint_id"]) for item in shown]
    return {
        "changed": bool(goes),
        "before": {"retention": own.model_dump(mode="json"), "checkpoints": before},
        "after": {
            "retention": (rules or own).model_dump(mode="json"),
            "checkpoints": [checkpoint_id for checkpoint_id in before if checkpoint_id not in goes],
        },
        "checkpoints": shown,
        "crowded": [group_id for group_id, one in decisions.items() if one.crowded],
        "warnings": [
            f"group {group_id} has reached max_chain {(rules or own).max_chain}; what is pinned, held or used cannot go"
            for group_id, one in decisions.items()
            if one.crowded
        ],
    }


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
    chosen = newest_of(plan, group_id, *direction(plan), sound=sound).scalar_subquery()
    return session.scalars(select(Checkpoint).where(Checkpoint.checkpoint_id == chosen)).first()


def newest_of(
    plan: Plan, group_id: str | InstrumentedAttribute[str], source: str, target: str, *, sound: bool = False
) -> Select[str]:
    """Return the query for the id of what :func:`newest` returns; ``group_id`` may be a column."""
    query = select(Checkpoint.checkpoint_id).where(
        Checkpoint.group_id == group_id,
        Checkpoint.epoch <= plan.epoch,
        Checkpoint.source_site == source,
        Checkpoint.target_site == target,
        Checkpoint.state == "published",
    )
    if sound:
        query = query.where(Checkpoint.integrity != "suspect")
    return query.order_by(Checkpoint.epoch.desc(), Checkpoint.sequence.desc()).limit(1).correlate(Group)


def _names(row: Checkpoint) -> set[str]:
    return {machine["name"] for machine in row.manifest["machines"]}


def _ids(row: Checkpoint) -> set[str]:
    return {machine["machine_id"] for machine in row.manifest["machines"]}


def _checkpoint(session: Session, row: Checkpoint, verdicts: dict[str, Verdict]) -> dict[str, Any]:
    verdict = verdicts.get(row.checkpoint_id)
    found = suspicion.score_of(row)
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
        "hold": {"reason": row.hold, "by": row.held_by, "at": iso(row.held_at)} if row.hold else None,
        "retention": {"stays": verdict.stays, "reasons": list(verdict.reasons)} if verdict else None,
        "suspicion": {
            "verdict": suspicion.verdict(row),
            "score": found.value if found.scored else None,
            "reasons": list(found.reasons),
            "tainted_by": found.tainted_by,
            "cleared": {**row.cleared, "at": iso(row.cleared["at"])} if row.cleared else None,
        },
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
