"""What people ask of runs."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from farshore.control.runs import copies, ledger
from farshore.control.store.database import Transaction
from farshore.control.store.records import Report, Run
from farshore.control.views.history import record
from farshore.errors import NotFound


def cancel(tx: Transaction, run: Run) -> bool:
    """Ask a run to stop; False if it has ended or was asked already."""
    if run.state not in ledger.OPEN or run.cancel:
        return False
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
    return str(report(session, run_id))
