"""Approval: how long a run waits for it, and the run that makes a plan's policy of it weaker.

What a plan asks for cannot be evaded by changing the plan: a policy that is weaker than the one that counts is recorded
with the plan's revision, and counts once as many others have approved it as the stronger one asks. A stronger one
counts at once.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import select

from farshore.control import audit
from farshore.control.runs import ledger, story
from farshore.control.runs.story import Phase, Scene, Story
from farshore.control.store.database import Transaction
from farshore.control.store.records import Plan, Run
from farshore.errors import Conflict

KIND: Final = "approval"


def is_weaker(before: dict[str, Any] | None, after: dict[str, Any] | None) -> bool:
    """Say whether runs that waited for others by ``before`` would wait for fewer of them, or for none, by ``after``."""
    if before is None:
        return False
    return after is None or not set(before["verbs"]) <= set(after["verbs"]) or after["people"] < before["people"]


def settle(tx: Transaction, plan: Plan, actor: str) -> Run | None:
    """Let the policy of a plan's definition count; return the run that others have to approve where it is weaker."""
    wanted = plan.definition.get("approval")
    for other in tx.scalars(select(Run).where(Run.plan == plan.name, Run.kind == KIND, Run.state.in_(ledger.OPEN))):
        if other.state == ledger.WAITING_APPROVAL and other.params["approval"] == wanted:
            return other
        other.cancel = True
        other.pokes += 1
    if not is_weaker(plan.approval, wanted):
        plan.approval = wanted
        return None
    run = ledger.create(tx, KIND, plan, actor, {"approval": wanted}, workflow=True, asked=plan.approval)
    ledger.note(tx, run, definition=plan.definition)
    ledger.done(tx, run.run_id, "ask", f"by revision {plan.revision}; until then the policy of before counts")
    return run


def _take(scene: Scene) -> bool:
    tx, run, plan = scene.tx, scene.run, scene.plan
    wanted = run.params["approval"]
    if plan.definition.get("approval") != wanted:
        raise Conflict(f"plan {plan.name!r} says something else by now", code="superseded")
    before, plan.approval = plan.approval, wanted
    people = [item["actor"] for item in (run.approval or {}).get("by", ())]
    audit.record(tx, run.actor, "weaken-approval", plan.name, run=run.run_id, before=before, after=wanted, by=people)
    tx.changed("plan", plan.name)
    return True


def _finish(scene: Scene) -> bool:
    story.conclude(scene)
    return True


STORY: Final[Story] = (Phase("take", _take, "finish", cancellable=True, atomic=True), Phase("finish", _finish))
