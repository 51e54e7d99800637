"""Runs: what was asked for, how far it is, how it ended."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse, Response

from farshore.control import views
from farshore.control.api import schemas
from farshore.control.api.caller import Answer, Call
from farshore.control.runs import orders
from farshore.control.store.database import Transaction
from farshore.control.views.history import record
from farshore.errors import Forbidden

router = APIRouter(prefix="/api/v1", tags=["runs"])

Limit = Annotated[int, Query(ge=1, le=1000)]
Filter = Annotated[str | None, Query(max_length=128)]


@router.get("/runs", operation_id="list_runs", response_model=schemas.Items[schemas.Run])
def list_runs(
    call: Call, plan: Filter = None, kind: Filter = None, state: Filter = None, limit: Limit = 100
) -> dict[str, Any]:
    """Return runs, newest first. ``state=open``: those that have not ended."""
    with call.ctx.store.read() as session:
        return {"items": views.runs(session, plan, kind, state, limit)}


@router.get("/runs/{run_id}", operation_id="get_run", response_model=schemas.Run)
def get_run(call: Call, run_id: str) -> dict[str, Any]:
    """Return one run with its steps, machines, cycles and progress."""
    with call.ctx.store.read() as session:
        return views.run(session, run_id)


@router.post("/runs/{run_id}:cancel", operation_id="cancel_run", responses=schemas.answers(schemas.Run, 200))
def cancel_run(call: Call, run_id: str) -> Response:
    """Ask a run to stop and clean up. It ends a little later."""

    def act(tx: Transaction) -> Answer:
        run = record(tx, run_id)
        if run.kind == "failover" and not call.identity.may("recovery-admin"):
            raise Forbidden(
                "cancelling a failover needs the role recovery-admin",
                code="role-too-small",
                needs="recovery-admin",
                has=call.identity.role,
            )
        changed = orders.cancel(tx, run)
        return Answer(views.run(tx, run_id), changed=changed, audit={"plan": run.plan})

    return call.change("cancel_run", run_id, act)


@router.get("/runs/{run_id}/report", operation_id="get_report")
def get_report(call: Call, run_id: str) -> dict[str, Any]:
    """Return a finished run's signed evidence."""
    with call.ctx.store.read() as session:
        return orders.report(session, run_id)


@router.get("/runs/{run_id}/report.html", operation_id="get_report_html", response_class=HTMLResponse)
def get_report_html(call: Call, run_id: str) -> HTMLResponse:
    """Return a finished run's evidence as a page."""
    with call.ctx.store.read() as session:
        return HTMLResponse(orders.report_html(session, run_id))
