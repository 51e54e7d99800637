"""Plans (what is protected, and how) and machines."""

from __future__ import annotations

from typing import Annotated, Any, Self

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from pydantic import Field, model_validator

from farshore.control import costs, preflight, views
from farshore.control.api import schemas
from farshore.control.api.caller import Answer, Call
from farshore.control.planning import apply, bundles, protect, source
from farshore.control.planning.apply import Wanted
from farshore.control.planning.protect import ProtectWish
from farshore.control.store.database import Transaction
from farshore.model.base import Model, Name

router = APIRouter(prefix="/api/v1", tags=["plans"])

NamePath = Annotated[Name, Path()]


class PlanRequest(Model):
    """A plan as it should be: the YAML text that people wrote, or the same as an object."""

    source: str | None = Field(None, max_length=source.LARGEST_CHARS)
    definition: dict[str, Any] | None = None
    files: dict[Annotated[str, Field(max_length=400)], str] | None = Field(
        None, max_length=512, description="the files of the plan's hooks: content as base64, by path"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.source is None) == (self.definition is None):
            raise ValueError("give either source (YAML text) or definition (an object)")
        return self

    def read(self) -> Wanted:
        """Return the plan that is meant; ``Invalid`` with code ``plan-invalid`` names the wrong key."""
        files = bundles.read(self.files) if self.files else None
        if self.source is not None:
            document = source.read(self.source)
            return Wanted(source.validate(document.data, document), self.source, document, files)
        data = self.definition or {}
        definition = source.validate(data)
        return Wanted(definition, apply.source_text(data), None, files)


@router.get("/machines", operation_id="list_machines", response_model=schemas.Items[schemas.Machine], tags=["machines"])
def list_machines(
    call: Call,
    site: Annotated[str | None, Query()] = None,
    plan: Annotated[str | None, Query()] = None,
    name: Annotated[str | None, Query()] = None,
) -> dict[str, Any]:
    """Return the machines of all sites."""
    with call.ctx.store.read() as session:
        if site is not None:
            views.site(session, site)
        if plan is not None:
            views.plan(session, plan)
        return {"items": views.machines(session, site, plan, name)}


@router.get("/machines/{machine_id}", operation_id="get_machine", response_model=schemas.Machine, tags=["machines"])
def get_machine(call: Call, machine_id: str, site: Annotated[str | None, Query()] = None) -> dict[str, Any]:
    """Return one machine, by id or by a name that only one has."""
    with call.ctx.store.read() as session:
        return views.machine(session, machine_id, site)


@router.get("/plans", operation_id="list_plans", response_model=schemas.Items[schemas.Plan])
def list_plans(call: Call) -> dict[str, Any]:
    """Return all plans."""
    with call.ctx.store.read() as session:
        return {"items": views.plans(session)}


@router.get("/plans/{name}", operation_id="get_plan", response_model=schemas.Plan)
def get_plan(call: Call, name: str) -> dict[str, Any]:
    """Return one plan with its state, its machines and their RPO now."""
    with call.ctx.store.read() as session:
        return views.plan(session, name)


@router.get("/plans/{name}/preflight", operation_id="get_preflight", response_model=schemas.Preflight)
def get_preflight(call: Call, name: str) -> dict[str, Any]:
    """Return what would stand in the way of a recovery of the plan now."""
    with call.ctx.store.read() as session:
        return preflight.of(session, name, key_is_here=call.ctx.home.recovery_key.exists())


@router.put("/plans/{name}", operation_id="put_plan", responses=schemas.answers(schemas.Plan, 200, 201))
def put_plan(call: Call, name: NamePath, body: PlanRequest) -> Response:
    """Make or change a plan. What it protects begins to be copied with ``protect_plan``."""
    wanted = body.read()

    def act(tx: Transaction) -> Answer:
        existed = views.has_plan(tx, name)
        result = apply.apply(tx, name, wanted, call.actor)
        shown = {**views.plan(tx, name), "warnings": result.warnings}
        return Answer(shown, 200 if existed else 201, changed=result.changed, audit={"revision": shown["revision"]})

    return call.change("put_plan", name, act)


@router.post("/plans/{name}:preview", operation_id="preview_plan", response_model=schemas.PlanPreview)
def preview_plan(call: Call, name: NamePath, body: PlanRequest) -> dict[str, Any]:
    """Return what ``put_plan`` would change."""
    wanted = body.read()
    with call.ctx.store.read() as session:
        result = apply.outcome(session, name, wanted)
        estimates = costs.of_change(session, name, result)
    return {
        "changed": result.changed,
        "before": result.before,
        "after": result.after,
        "warnings": result.warnings,
        "files": bundles.needed(wanted.definition),
        "costs": estimates,
    }


@router.delete("/plans/{name}", operation_id="delete_plan", status_code=204)
def delete_plan(call: Call, name: str) -> Response:
    """Remove a plan that is not active. Its checkpoints stay in the catalogue."""

    def act(tx: Transaction) -> Answer:
        if not views.has_plan(tx, name):
            return Answer(status=204, changed=False)
        protect.remove(tx, name)
        return Answer(status=204, changed=True)

    return call.change("delete_plan", name, act)


@router.post("/plans/{name}:protect", operation_id="protect_plan", responses=schemas.answers(schemas.Plan, 200))
def protect_plan(call: Call, name: str, body: ProtectWish) -> Response:
    """Begin, pause or end the protection of a plan or of some of its machines."""

    def act(tx: Transaction) -> Answer:
        result = protect.apply(tx, name, body)
        return Answer(
            {**views.plan(tx, name), "warnings": result.warnings},
            changed=result.changed,
            audit=body.model_dump(mode="json"),
        )

    return call.change("protect_plan", name, act)


@router.post("/plans/{name}:protect-preview", operation_id="preview_protect_plan", response_model=schemas.Preview)
def preview_protect_plan(call: Call, name: str, body: ProtectWish) -> dict[str, Any]:
    """Return what ``protect_plan`` would change."""
    with call.ctx.store.read() as session:
        result = protect.outcome(session, name, body)
    return {"changed": result.changed, "before": result.before, "after": result.after, "warnings": result.warnings}
