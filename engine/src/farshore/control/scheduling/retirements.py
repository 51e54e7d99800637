"""Has old primaries deleted where their plan wants that, once the time that it gives them is over."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control.runs import retire
from farshore.control.store.database import Transaction
from farshore.control.store.records import OldPrimary, Plan


def plans(session: Session) -> list[str]:
    """Return the plans of which an old primary might go by itself."""
    committed = select(OldPrimary.plan).where(OldPrimary.committed_at.is_not(None), ~OldPrimary.divergent)
    wanted = Plan.definition["retire"]["old_primaries"].as_string() == "delete"
    return sorted(session.scalars(select(Plan.name).where(Plan.name.in_(committed), wanted)))


def advance(tx: Transaction, name: str) -> None:
    """Order the deletion of what is due of a plan."""
    plan = tx.get(Plan, name)
    if plan is not None:
        retire.due(tx, plan)
