"""Drills and failovers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi.responses import Response

from farshore.control import views
from farshore.control.api import schemas
from farshore.control.api.caller import Answer, Call
from farshore.control.runs import drill, failover, migrate, reprotect, retire, rollback
from farshore.control.runs.drill import DrillWish
from farshore.control.runs.failover import FailoverWish
from farshore.control.runs.migrate import MigrateWish
from farshore.control.runs.reprotect import ReprotectWish
from farshore.control.runs.retire import RetireWish
from farshore.control.runs.rollback import RollbackWish
from farshore.control.store.database import Transaction
from farshore.control.store.records import Run
from farshore.model.base import Model

router = APIRouter(prefix="/api/v1", tags=["recovery"])

Wish = TypeVar("Wish", bound=Model)


def _ran(tx: Transaction, run: Run | None, **detail: Any) -> Answer:
    shown = views.run(tx, run.run_id) if run else None
    return Answer(
        {"run": shown, "changed": run is not None},
        202 if run else 200,
        changed=run is not None,
        audit={"run": run.run_id if run else None, **detail},
    )


def _ordered(
    call: Call, operation: str, name: str, wish: Wish, request: Callable[[Transaction, str, Wish, str], Run | None]
) -> Response:
    return call.change(
        operation, name, lambda tx: _ran(tx, request(tx, name, wish, call.actor), **wish.model_dump(mode="json"))
    )


@router.post(
    "/plans/{name}:drill", operation_id="drill_plan", responses=schemas.answers(schemas.Ran, 202), status_code=202
)
def drill_plan(call: Call, name: str, body: DrillWish) -> Response:
    """Bring the plan's machines up in an isolated network at the target, prove them, take them away again."""
    return _ordered(call, "drill_plan", name, body, drill.request)


@router.post("/plans/{name}:drill-preview", operation_id="preview_drill_plan", response_model=schemas.Preview)
def preview_drill(call: Call, name: str, body: DrillWish) -> dict[str, Any]:
    """Return what ``drill_plan`` would make."""
    with call.ctx.store.read() as session:
        return drill.preview_of(session, name, body)


@router.post(
    "/plans/{name}:drill-end",
    operation_id="end_drill_plan",
    responses=schemas.answers(schemas.Ran, 200, 202),
    status_code=202,
)
def end_drill(call: Call, name: str) -> Response:
    """Clean up a drill that was left running."""
    return call.change("end_drill_plan", name, lambda tx: _ran(tx, drill.end(tx, name, call.actor)))


@router.post(
    "/plans/{name}:failover",
    operation_id="failover_plan",
    responses=schemas.answers(schemas.Ran, 200, 202),
    status_code=202,
)
def failover_plan(call: Call, name: str, body: FailoverWish) -> Response:
    """Make the plan active at ``to_site``; nothing to do if it is."""
    return _ordered(call, "failover_plan", name, body, failover.request)


@router.post("/plans/{name}:failover-preview", operation_id="preview_failover_plan", response_model=schemas.Preview)
def preview_failover(call: Call, name: str, body: FailoverWish) -> dict[str, Any]:
    """Return what ``failover_plan`` would do: machines, order, addresses, data at risk."""
    with call.ctx.store.read() as session:
        return failover.preview_of(session, name, body)


@router.post(
    "/plans/{name}:reprotect",
    operation_id="reprotect_plan",
    responses=schemas.answers(schemas.Ran, 200, 202),
    status_code=202,
)
def reprotect_plan(call: Call, name: str, body: ReprotectWish) -> Response:
    """Replicate the plan from where it runs back to the site that it left; nothing to do if it is."""
    return _ordered(call, "reprotect_plan", name, body, reprotect.request)


@router.post("/plans/{name}:reprotect-preview", operation_id="preview_reprotect_plan", response_model=schemas.Preview)
def preview_reprotect(call: Call, name: str, body: ReprotectWish) -> dict[str, Any]:
    """Return what ``reprotect_plan`` would do: the direction, and the old primaries that are kept."""
    with call.ctx.store.read() as session:
        return reprotect.preview_of(session, name, body)


@router.post("/plans/{name}:commit", operation_id="commit_plan", response_model=schemas.Committed)
def commit_plan(call: Call, name: str) -> Response:
    """Say that the plan's failover is not rolled back any more; nothing to do if none waits for that."""

    def act(tx: Transaction) -> Answer:
        changed = rollback.commit(tx, name, call.actor)
        return Answer({"changed": changed, "plan": views.plan(tx, name)}, changed=changed)

    return call.change("commit_plan", name, act)


@router.post(
    "/plans/{name}:rollback",
    operation_id="rollback_plan",
    responses=schemas.answers(schemas.Ran, 202),
    status_code=202,
)
def rollback_plan(call: Call, name: str, body: RollbackWish | None = None) -> Response:
    """Give up what a failover has made, and run at the site that it left again; before it is committed only."""
    return _ordered(call, "rollback_plan", name, body or RollbackWish(), rollback.request)


@router.post("/plans/{name}:rollback-preview", operation_id="preview_rollback_plan", response_model=schemas.Preview)
def preview_rollback(call: Call, name: str, body: RollbackWish | None = None) -> dict[str, Any]:
    """Return what ``rollback_plan`` would do: what it stops and starts, and what is not taken along."""
    with call.ctx.store.read() as session:
        return rollback.preview_of(session, name, body or RollbackWish())


@router.post(
    "/plans/{name}:migrate",
    operation_id="migrate_plan",
    responses=schemas.answers(schemas.Ran, 200, 202),
    status_code=202,
)
def migrate_plan(call: Call, name: str, body: MigrateWish) -> Response:
    """Move the plan to its target site for good; nothing to do if it was."""
    return _ordered(call, "migrate_plan", name, body, migrate.request)


@router.post("/plans/{name}:migrate-preview", operation_id="preview_migrate_plan", response_model=schemas.Preview)
def preview_migrate(call: Call, name: str, body: MigrateWish) -> dict[str, Any]:
    """Return what ``migrate_plan`` would do: machines, order, addresses."""
    with call.ctx.store.read() as session:
        return migrate.preview_of(session, name, body)


@router.post(
    "/plans/{name}:retire",
    operation_id="retire_plan",
    responses=schemas.answers(schemas.Ran, 200, 202),
    status_code=202,
)
def retire_plan(call: Call, name: str, body: RetireWish | None = None) -> Response:
    """Delete the plan's old primaries with their disks; nothing to do if there are none."""
    return _ordered(call, "retire_plan", name, body or RetireWish(), retire.request)


@router.post("/plans/{name}:retire-preview", operation_id="preview_retire_plan", response_model=schemas.Preview)
def preview_retire(call: Call, name: str, body: RetireWish | None = None) -> dict[str, Any]:
    """Return what ``retire_plan`` would delete."""
    with call.ctx.store.read() as session:
        return retire.preview_of(session, name, body or RetireWish())
