"""Runs: what was asked for, how far it is, how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse, Response

from farshore.control import views
from farshore.control.api import schemas
from farshore.control.api.caller import Answer, Call, Caller
from farshore.control.runs import orders, sights
from farshore.control.runs.again import RetryWish
from farshore.control.store.database import Transaction
from farshore.control.store.records import Run
from farshore.control.views.history import record
from farshore.errors import Forbidden
from farshore.recovery import evidence
from farshore.recovery.pages import media_type

router = APIRouter(prefix="/api/v1", tags=["runs"])

Limit = Annotated[int, Query(ge=1, le=1000)]
#: Kinds of runs that operators order; all others change where machines run.
_ANYBODYS: Final = frozenset({"replicate", "checkpoint", "drill", "cleanup", "scrub", "detach"})
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


def _changed(call: Caller, verb: str, run_id: str, act: Callable[[Transaction, Run], bool]) -> Response:
    """Ask something of a run; what has to do with a change of sites needs the role that orders one."""

    def do(tx: Transaction) -> Answer:
        run = record(tx, run_id)
        _require(call, verb, run)
        changed = act(tx, run)
        return Answer(views.run(tx, run_id), changed=changed, audit={"plan": run.plan, "kind": run.kind})

    return call.change(f"{verb}_run", run_id, do)


def _require(call: Caller, verb: str, run: Run) -> None:
    if run.kind not in _ANYBODYS and not call.identity.may("recovery-admin"):
        raise Forbidden(
            f"to {verb} a {run.kind} needs the role recovery-admin",
            code="role-too-small",
            hint="Use a token with that role.",
            needs="recovery-admin",
            has=call.identity.role,
        )


@router.post("/runs/{run_id}:cancel", operation_id="cancel_run", responses=schemas.answers(schemas.Run, 200))
def cancel_run(call: Call, run_id: str) -> Response:
    """Ask a run to stop and clean up. It ends a little later."""
    return _changed(call, "cancel", run_id, orders.cancel)


@router.post("/runs/{run_id}:pause", operation_id="pause_run", responses=schemas.answers(schemas.Run, 200))
def pause_run(call: Call, run_id: str) -> Response:
    """Let a run begin nothing new. It is paused once what it has at work has ended."""
    return _changed(call, "pause", run_id, orders.pause)


@router.post("/runs/{run_id}:resume", operation_id="resume_run", responses=schemas.answers(schemas.Run, 200))
def resume_run(call: Call, run_id: str) -> Response:
    """Let a paused run go on; this opens the gate that it waits at."""
    return _changed(call, "resume", run_id, orders.resume)


@router.post("/runs/{run_id}:approve", operation_id="approve_run", responses=schemas.answers(schemas.Run, 200))
def approve_run(call: Call, run_id: str) -> Response:
    """Agree to a run that somebody else has ordered. It begins when as many have as its plan asks for."""
    return _changed(call, "approve", run_id, lambda tx, run: orders.approve(tx, run, call.actor))


@router.post("/runs/{run_id}:retry", operation_id="retry_run", responses=schemas.answers(schemas.Ran, 200, 202))
def retry_run(call: Call, run_id: str, body: RetryWish | None = None) -> Response:
    """Go on with a run that failed, was cancelled or ended partial, in a run of its own; what succeeded stays."""
    wish = body or RetryWish()

    def do(tx: Transaction) -> Answer:
        run = record(tx, run_id)
        _require(call, "retry", run)
        made, new = orders.retry(tx, run, wish, call.actor)
        return Answer(
            {"run": views.run(tx, made.run_id), "changed": new},
            202 if new else 200,
            changed=new,
            audit={"plan": run.plan, "kind": run.kind, "run": made.run_id, **wish.model_dump(mode="json")},
        )

    return call.change("retry_run", run_id, do)


@router.get("/runs/{run_id}/report", operation_id="get_report", response_model=dict[str, Any])
def get_report(call: Call, run_id: str) -> Response:
    """Return a finished run's signed evidence, in the one form in which it can be checked byte by byte."""
    with call.ctx.store.read() as session:
        return Response(evidence.encode(orders.report(session, run_id)), media_type="application/json")


@router.get("/runs/{run_id}/machines/{machine}/screen", operation_id="get_screen", response_class=Response)
def get_screen(call: Call, run_id: str, machine: str) -> Response:
    """Return the picture of what a machine showed in a run, a PNG or a JPEG, as its platform gave it."""
    with call.ctx.store.read() as session:
        content = sights.screen(session, run_id, machine)
    # What a guest shows is not to be taken for a page of ours.
    return Response(content, media_type=media_type(content), headers={"X-Content-Type-Options": "nosniff"})


@router.get("/runs/{run_id}/machines/{machine}/console", operation_id="get_console", response_class=Response)
def get_console(call: Call, run_id: str, machine: str) -> Response:
    """Return the end of a machine's console text in a run."""
    with call.ctx.store.read() as session:
        content = sights.of(session, run_id, machine).console
    return Response(content, media_type="text/plain; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"})


@router.get("/evidence-key", operation_id="get_evidence_key", response_model=schemas.EvidenceKey)
def get_evidence_key(call: Call) -> dict[str, str]:
    """Return the public key that this control plane's reports are checked with."""
    key = call.ctx.evidence_key.public_key()
    return {"pem": evidence.pem(key), "fingerprint": evidence.fingerprint(key)}


@router.get("/runs/{run_id}/report.html", operation_id="get_report_html", response_class=HTMLResponse)
def get_report_html(call: Call, run_id: str) -> HTMLResponse:
    """Return a finished run's evidence as a page."""
    with call.ctx.store.read() as session:
        return HTMLResponse(orders.rendering(session, run_id, "html"))


@router.get("/runs/{run_id}/report.xml", operation_id="get_report_junit", response_class=Response)
def get_report_junit(call: Call, run_id: str) -> Response:
    """Return a finished run's evidence as JUnit XML."""
    with call.ctx.store.read() as session:
        return Response(orders.rendering(session, run_id, "junit"), media_type="application/xml; charset=utf-8")
