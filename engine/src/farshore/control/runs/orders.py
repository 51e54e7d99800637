"""What people ask of runs: cancel, pause, resume, approve, retry; and their evidence."""

from __future__ import annotations

import time
from typing import Any, Literal

from sqlalchemy.orm import Session

from farshore.control.clock import iso
from farshore.control.runs import again, copies, failover, ledger, stories, story
from farshore.control.store.database import Transaction
from farshore.control.store.records import Report, Run
from farshore.control.views.history import record
from farshore.errors import Conflict, Forbidden, NotFound
from farshore.recovery import evidence


def cancel(tx: Transaction, run: Run) -> bool:
    """Ask a run to stop; False if it has ended or was asked already.

    Raises:
        Conflict: it is past the point where it can be stopped.
    """
    if run.state not in ledger.OPEN or run.cancel:
        return False
    if run.kind in stories.FAILOVERS:
        failover.refuse_cancel(tx, run)
    if run.kind == "rollback" and run.facts.get("raised"):
        raise Conflict("the epoch was raised: a rollback leads on from here", code="past-epoch", hint="Let it end.")
    if run.kind == "cleanup":
        raise Conflict("a clean-up is not cancelled: what it removes is of no use any more", code="not-cancellable")
    if run.workflow:
        run.cancel, run.pause = True, False
        _poke(tx, run)
    else:
        copies.cancel(tx, run)
    return True


def pause(tx: Transaction, run: Run) -> bool:
    """Let a run order nothing new; what runs ends. False if it was asked already.

    Raises:
        Conflict: it has ended, or is on its way to its end.
    """
    if run.state not in ledger.OPEN:
        raise _ended(run)
    if run.pause:
        return False
    if not run.workflow:
        raise Conflict(
            f"{run.kind} run {run.run_id} is made of cycles, which end by themselves",
            code="not-pausable",
            hint=f"Pause the plan's replication: `farshore plan pause {run.plan}`.",
        )
    if run.cancel or not stories.pausable(run):
        raise Conflict(
            f"{run.kind} {run.run_id} is on its way to its end ({run.phase}) and cannot rest there",
            code="not-pausable",
            hint=f"Watch it: `farshore run watch {run.run_id}`.",
        )
    run.pause = True
    _poke(tx, run)
    return True


def resume(tx: Transaction, run: Run) -> bool:
    """Let a paused run go on; False if it is not paused.

    Raises:
        Conflict: it has ended.
    """
    if run.state not in ledger.OPEN:
        raise _ended(run)
    if not run.pause:
        return False
    run.pause = False
    if run.state == ledger.PAUSED:
        run.state = "running"
    _poke(tx, run)
    return True


def approve(tx: Transaction, run: Run, actor: str) -> bool:
    """Record that ``actor`` agrees to a run; the last one who has to lets it begin. False if ``actor`` did already.

    Raises:
        Conflict: it does not wait for approval.
        Forbidden: ``actor`` has ordered it.
    """
    given = list((run.approval or {}).get("by", ()))
    if any(item["actor"] == actor for item in given):
        return False
    if run.state != ledger.WAITING_APPROVAL or run.cancel or run.approval is None:
        raise Conflict(
            f"{run.kind} {run.run_id} does not wait for approval: it is {run.state}",
            code="not-waiting",
            hint=f"Look at it: `farshore run show {run.run_id}`.",
        )
    if story.is_too_late(run):
        raise Conflict(
            f"{run.kind} {run.run_id} was to be approved earlier: it is over",
            code="approval-expired",
            hint="Let it be ordered again.",
        )
    if actor == run.actor:
        raise Forbidden(
            f"{run.kind} {run.run_id} was ordered with this token; somebody else has to approve it",
            code="own-run",
            hint="Let another person approve it with a token of their own.",
        )
    given.append({"actor": actor, "at": iso(time.time())})
    run.approval = {**run.approval, "by": given}
    if len(given) >= run.approval["people"]:
        run.state = "pending"
        if run.kind in stories.FAILOVERS:
            failover.begin(tx, run)
    _poke(tx, run)
    return True


def retry(tx: Transaction, run: Run, wish: again.RetryWish, actor: str) -> tuple[Run, bool]:
    """Go on with a run that failed or came to a part of its end; returns its successor, and whether it is new.

    Errors: as those of the order that it repeats, and:

    Raises:
        Conflict: it has not ended, succeeded, or there is nothing left of it to go on with.
    """
    return again.order(tx, run, wish, actor)


def report(session: Session, run_id: str) -> dict[str, Any]:
    """Return a run's evidence; ``NotFound`` before its end."""
    record(session, run_id)
    row = session.get(Report, run_id)
    if row is None:
        raise NotFound(
            f"run {run_id} has no report", code="report-unknown", hint="Runs have one when they end; copies have none."
        )
    return dict(row.document)


def rendering(session: Session, run_id: str, name: Literal["html", "junit"]) -> str:
    """Return the text beside a run's evidence, as it was when that was sealed."""
    document = report(session, run_id)
    row = session.get_one(Report, run_id)
    kept = row.html if name == "html" else row.junit
    return kept or evidence.render(document["body"], row.position, document["previous"])[name]


def _poke(tx: Transaction, run: Run) -> None:
    run.pokes += 1
    tx.changed("run", run.run_id)
    tx.changed("plan", run.plan)


def _ended(run: Run) -> Conflict:
    return Conflict(
        f"{run.kind} {run.run_id} has ended: {run.state}",
        code="run-ended",
        hint=f"Go on with it: `farshore run retry {run.run_id}`." if run.state in again.RETRIED else "",
    )
