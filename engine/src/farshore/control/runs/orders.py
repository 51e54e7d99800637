"""What people ask of runs."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from farshore.control.runs import copies, failover, ledger
from farshore.control.store.database import Transaction
from farshore.control.store.records import Report, Run
from farshore.control.views.history import record
from farshore.errors import Conflict, NotFound
from farshore.recovery import evidence


def cancel(tx: Transaction, run: Run) -> bool:
    """Ask a run to stop; False if it has ended or was asked already.

    Raises:
        Conflict: it is past the point where it can be stopped.
    """
    if run.state not in ledger.OPEN or run.cancel:
        return False
    if run.kind == "failover":
        failover.refuse_cancel(tx, run)
    if run.kind == "cleanup":
        raise Conflict("a clean-up is not cancelled: what it removes is of no use any more", code="not-cancellable")
    if run.workflow:
        run.cancel = True
        run.pokes += 1
        tx.changed("run", run.run_id)
    else:
        copies.cancel(tx, run)
    return True


def report(session: Session, run_id: str) -> dict[str, Any]:
    """Return a run's evidence; ``NotFound`` before its end."""
    record(session, run_id)
    row = session.get(Report, run_id)
    if row is None:
        raise NotFound(
            f"run {run_id} has no report", code="report-unknown", hint="Drills and failovers have one when they end."
        )
    return dict(row.document)


def report_html(session: Session, run_id: str) -> str:
    """Return a run's evidence as a page."""
    return evidence.html(report(session, run_id))
