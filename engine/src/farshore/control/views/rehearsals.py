"""When a plan is rehearsed: the next time, the last one, and what was missed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control.clock import iso
from farshore.control.store.records import DueDrill, Plan, Run

#: Condition of a plan whose newest scheduled drill did not begin.
MISSED = "drill-missed"


def rehearsals(session: Session, row: Plan) -> dict[str, Any]:
    """Return a plan's drills as its page shows them."""
    due = session.scalars(select(DueDrill).where(DueDrill.plan == row.name, DueDrill.state == "waiting")).first()
    missed = newest_missed(session, row.name)
    last = session.scalars(
        select(Run).where(Run.plan == row.name, Run.kind == "drill").order_by(Run.created_at.desc()).limit(1)
    ).first()
    return {
        "schedule": row.definition.get("drill", {}).get("schedule"),
        "next_at": iso(due.due_at) if due else None,
        "waits_for": due.reason or None if due else None,
        "missed": {"due_at": iso(missed.due_at), "reason": missed.reason} if missed else None,
        "last": {"run_id": last.run_id, "state": last.state, "ended_at": iso(last.ended_at)} if last else None,
    }


def newest_missed(session: Session, plan: str) -> DueDrill | None:
    """Return the plan's newest scheduled drill if it was missed and none has been run since, else None."""
    decided = select(DueDrill).where(DueDrill.plan == plan, DueDrill.state != "waiting")
    newest = session.scalars(decided.order_by(DueDrill.due_at.desc()).limit(1)).first()
    if newest is None or newest.state != "missed":
        return None
    since = select(Run.run_id).where(
        Run.plan == plan, Run.kind == "drill", Run.state == "succeeded", Run.created_at > newest.due_at
    )
    return None if session.scalars(since.limit(1)).first() else newest
