"""Has the machines of committed failovers leave the chain of checkpoints: whoever still needs it is found by itself."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farshore.control.runs import detach
from farshore.control.store.database import Transaction
from farshore.control.store.records import Machine, Plan, PlanMachine


def plans(session: Session) -> list[str]:
    """Return the plans of which a machine may need a checkpoint although it runs where it does for good."""
    primary = func.coalesce(PlanMachine.target_machine_id, PlanMachine.machine_id)
    query = (
        select(Plan.name)
        .join(PlanMachine, PlanMachine.plan == Plan.name)
        .join(Machine, Machine.machine_id == primary)
        .where(Plan.committed, Machine.facts["on_points"].as_boolean())
    )
    return sorted(set(session.scalars(query)))


def advance(tx: Transaction, name: str) -> None:
    """Order a detach of a plan where one is wanted and none is under way."""
    plan = tx.get(Plan, name)
    if plan is not None:
        detach.request(tx, plan)
