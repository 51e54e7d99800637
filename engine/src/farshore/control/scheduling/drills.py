"""Begins the drills that plans' schedules ask for.

One row per plan waits, for the next time; when it falls due it is tried until the drill begins, or until it is too late
and the next one is what counts. A drill never begins while something else of the plan's recovery is going on, and one
that could not be is told of as missed, with the reason.
"""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control.planning import definitions
from farshore.control.runs import drill
from farshore.control.runs.drill import DrillWish
from farshore.control.store.database import Transaction
from farshore.control.store.records import DueDrill, Plan
from farshore.errors import FarshoreError
from farshore.model import schedule
from farshore.model.schedule import Schedule

#: Who ordered a drill that nobody did.
ACTOR: Final = "schedule"
#: How long after its time a drill may still begin; less where the next one comes sooner.
LATEST_S: Final = 3600.0
#: Between two tries of one that is due.
TRY_AGAIN_S: Final = 10.0
#: Rows of a plan that are kept once they are decided.
KEPT: Final = 50
#: Times that are counted one by one when nobody was there to keep them.
_MOST_COUNTED: Final = 10_000


def plans(session: Session) -> list[str]:
    """Return the plans that have a schedule, or a drill that waits for one."""
    waiting = set(session.scalars(select(DueDrill.plan).where(DueDrill.state == "waiting")))
    scheduled = Plan.definition["drill"]["schedule"].as_string().is_not(None)
    return sorted(waiting | set(session.scalars(select(Plan.name).where(scheduled))))


def advance(tx: Transaction, name: str) -> None:
    """Do what is due of a plan's schedule now."""
    plan = tx.get(Plan, name)
    if plan is None:
        return
    policy = definitions.of_plan(plan).drill
    row = waiting(tx, name)
    # Nothing is rehearsed of a plan that protects nothing.
    if policy.schedule is None or plan.activity == "inactive":
        if row is not None:
            tx.delete(row)
            tx.changed("plan", name)
        return
    now = time.time()
    times = schedule.parse(policy.schedule)
    if row is None or row.schedule != policy.schedule:
        if row is not None:
            tx.delete(row)
            tx.flush()
        _wait(tx, name, policy.schedule, times.after(now))
        return
    if now < row.due_at or (row.tried_at is not None and now < row.tried_at + TRY_AGAIN_S):
        return
    following = times.after(row.due_at)
    too_late = min(row.due_at + LATEST_S, following)
    if row.tried_at is None and now > too_late:
        row.state, row.reason = "missed", "nobody was there to begin it: the control plane was not running"
    else:
        error = _begin(tx, row, policy.checkpoint, now)
        if error is not None and now <= too_late:
            return
        if error is not None:
            row.state = "missed"
    following, left_out = _next(times, following, now)
    if left_out:
        row.reason = f"{row.reason}; {left_out} more times have passed since" if row.reason else row.reason
    _wait(tx, name, policy.schedule, following)
    _forget(tx, name)


def waiting(session: Session, plan: str) -> DueDrill | None:
    """Return the drill of a plan that waits for its time, None if there is none."""
    return session.scalars(select(DueDrill).where(DueDrill.plan == plan, DueDrill.state == "waiting")).first()


def last(session: Session, plan: str) -> DueDrill | None:
    """Return the plan's newest drill that fell due and was decided on, None if there is none."""
    decided = select(DueDrill).where(DueDrill.plan == plan, DueDrill.state != "waiting")
    return session.scalars(decided.order_by(DueDrill.due_at.desc()).limit(1)).first()


def _begin(tx: Transaction, row: DueDrill, checkpoint: str, now: float) -> FarshoreError | None:
    """Order the drill; return why that cannot be now."""
    row.tried_at = now
    try:
        with tx.begin_nested():
            run = drill.request(tx, row.plan, DrillWish(checkpoint=checkpoint), ACTOR)
    except FarshoreError as error:
        if row.reason != error.message:
            row.reason = error.message
            tx.changed("plan", row.plan)
        return error
    row.state, row.run_id, row.reason = "begun", run.run_id, ""
    return None


def _next(times: Schedule, following: float, now: float) -> tuple[float, int]:
    """Return the first time that is still to come, and how many have passed unheeded before it."""
    left_out = 0
    while following <= now and left_out < _MOST_COUNTED:
        following, left_out = times.after(following), left_out + 1
    return (following, left_out) if following > now else (times.after(now), left_out)


def _wait(tx: Transaction, plan: str, text: str, due_at: float) -> None:
    if tx.get(DueDrill, (plan, due_at)) is None:
        tx.add(DueDrill(plan=plan, due_at=due_at, schedule=text, state="waiting", reason=""))
    tx.flush()
    tx.changed("plan", plan)


def _forget(tx: Transaction, plan: str) -> None:
    decided = select(DueDrill).where(DueDrill.plan == plan, DueDrill.state != "waiting")
    for row in tx.scalars(decided.order_by(DueDrill.due_at.desc()).offset(KEPT)):
        tx.delete(row)
