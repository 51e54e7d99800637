"""Checkpoints, and the cycles that make them."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import select

from farshore.control import suspicion, views
from farshore.control.api import schemas
from farshore.control.api.caller import Answer, Call
from farshore.control.planning import protect
from farshore.control.runs import copies, scrub
from farshore.control.runs.copies import CheckpointWish, ReplicateWish
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Lease
from farshore.control.views.points import no_checkpoint
from farshore.errors import Conflict
from farshore.model.base import Model, Name
from farshore.model.plan import Retention

router = APIRouter(prefix="/api/v1", tags=["checkpoints"])

Limit = Annotated[int, Query(ge=1, le=1000)]
Filter = Annotated[str | None, Query(max_length=128)]
LabelPath = Annotated[Name, Path()]


class CheckpointChange(Model):
    """What is to change of a checkpoint; what is left out stays."""

    pin: bool | None = None
    label: Name | None = None
    note: str | None = Field(None, max_length=2000)


class HoldWish(Model):
    """Why a checkpoint must stay."""

    reason: str = Field(min_length=1, max_length=2000)


class ClearWish(Model):
    """Why a checkpoint is clean all the same."""

    note: str = Field(min_length=1, max_length=2000)


class RetentionWish(Model):
    """Rules to try; None: those of the plan."""

    retention: Retention | None = None


@router.post(
    "/plans/{name}:replicate",
    operation_id="replicate_plan",
    responses=schemas.answers(schemas.Ran, 202),
    tags=["plans"],
    status_code=202,
)
def replicate(call: Call, name: str, body: ReplicateWish) -> Response:
    """Run a cycle now, unless the newest checkpoint is young enough."""

    def act(tx: Transaction) -> Answer:
        run = copies.replicate(tx, name, body, call.actor)
        shown = views.run(tx, run.run_id) if run else None
        return Answer(
            {"run": shown, "changed": run is not None},
            202,
            changed=run is not None,
            audit={"run": run.run_id if run else None, **body.model_dump(mode="json")},
        )

    return call.change("replicate_plan", name, act)


@router.post(
    "/plans/{name}:replicate-preview",
    operation_id="preview_replicate_plan",
    response_model=schemas.Preview,
    tags=["plans"],
)
def preview_replicate(call: Call, name: str, body: ReplicateWish) -> dict[str, Any]:
    """Return what ``replicate_plan`` would do."""
    with call.ctx.store.read() as session:
        need = copies.needed_to_replicate(session, name, body)
        return {
            "changed": need.changed,
            "before": {"checkpoints": list(need.present)},
            "after": {"cycles": list(need.groups)},
            "warnings": need.warnings,
        }


@router.put(
    "/plans/{name}/checkpoints/{label}",
    operation_id="ensure_checkpoint",
    responses=schemas.answers(schemas.Ensured, 200, 202),
)
def ensure_checkpoint(call: Call, name: str, label: LabelPath, body: CheckpointWish) -> Response:
    """Make sure that every group of the plan has a checkpoint with this label; cycles run only if needed."""

    def act(tx: Transaction) -> Answer:
        run, present, changed = copies.checkpoint(tx, name, label, body, call.actor)
        shown = {
            "checkpoint": views.checkpoint(tx, present[0]) if present and run is None else None,
            "checkpoints": [views.checkpoint(tx, checkpoint_id) for checkpoint_id in present],
            "run": views.run(tx, run.run_id) if run else None,
            "changed": changed,
        }
        return Answer(shown, 202 if run else 200, changed=changed, audit={"label": label, **body.model_dump()})

    return call.change("ensure_checkpoint", name, act)


@router.get("/checkpoints", operation_id="list_checkpoints", response_model=schemas.Items[schemas.Checkpoint])
def list_checkpoints(
    call: Call,
    plan: Filter = None,
    machine: Filter = None,
    group: Filter = None,
    clean: Annotated[bool, Query()] = False,
    limit: Limit = 100,
) -> dict[str, Any]:
    """Return published checkpoints, newest first; with ``clean`` none that is suspect or shows signs of encryption."""
    with call.ctx.store.read() as session:
        return {"items": views.checkpoints(session, plan, machine, group, limit, clean=clean)}


@router.get("/checkpoints/{checkpoint_id}", operation_id="get_checkpoint", response_model=schemas.Checkpoint)
def get_checkpoint(call: Call, checkpoint_id: str) -> dict[str, Any]:
    """Return one checkpoint."""
    with call.ctx.store.read() as session:
        return views.checkpoint(session, checkpoint_id)


@router.patch(
    "/checkpoints/{checkpoint_id}", operation_id="change_checkpoint", responses=schemas.answers(schemas.Checkpoint, 200)
)
def change_checkpoint(call: Call, checkpoint_id: str, body: CheckpointChange) -> Response:
    """Pin, label or describe a checkpoint."""

    def act(tx: Transaction) -> Answer:
        row = _published(tx, checkpoint_id)
        wanted = {
            "pinned": row.pinned if body.pin is None else body.pin,
            "label": row.label if body.label is None else body.label,
            "note": row.note if body.note is None else body.note,
        }
        changed = any(getattr(row, key) != value for key, value in wanted.items())
        for key, value in wanted.items():
            setattr(row, key, value)
        tx.flush()
        if changed:
            tx.changed("checkpoint", checkpoint_id)
        return Answer(views.checkpoint(tx, checkpoint_id), changed=changed, audit=wanted)

    return call.change("change_checkpoint", checkpoint_id, act)


@router.delete("/checkpoints/{checkpoint_id}", operation_id="delete_checkpoint", status_code=204)
def delete_checkpoint(call: Call, checkpoint_id: str) -> Response:
    """Remove a checkpoint: it is not offered any more at once, its points go as soon as the node gets to it."""

    def act(tx: Transaction) -> Answer:
        row = tx.get(Checkpoint, checkpoint_id)
        if row is None:
            raise no_checkpoint(tx, checkpoint_id)
        if row.state != "published":
            return Answer(status=204, changed=False)
        used = tx.scalars(select(Lease.run_id).where(Lease.checkpoint_id == checkpoint_id)).first()
        if used is not None:
            raise Conflict(
                f"checkpoint {checkpoint_id} is in use by run {used}",
                code="checkpoint-in-use",
                hint="Wait for the run, or end its drill.",
            )
        base_of = select(Cycle.cycle_id).where(Cycle.base_checkpoint_id == checkpoint_id, Cycle.ended_at.is_(None))
        if tx.scalars(base_of).first() is not None:
            raise Conflict(
                f"a cycle grows on checkpoint {checkpoint_id} just now",
                code="checkpoint-in-use",
                hint="Try again when the cycle has ended.",
            )
        if row.hold:
            raise held(row)
        if row.pinned:
            raise Conflict(
                f"checkpoint {checkpoint_id} is pinned", code="checkpoint-pinned", hint="Take the pin away first."
            )
        protect.drop(tx, row)
        return Answer(status=204, changed=True, audit={"plan": row.plan, "group_id": row.group_id})

    return call.change("delete_checkpoint", checkpoint_id, act)


@router.put(
    "/checkpoints/{checkpoint_id}/hold",
    operation_id="hold_checkpoint",
    responses=schemas.answers(schemas.Checkpoint, 200),
)
def hold_checkpoint(call: Call, checkpoint_id: str, body: HoldWish) -> Response:
    """Place a legal hold: neither retention nor anybody else removes the checkpoint until an admin lifts it."""

    def act(tx: Transaction) -> Answer:
        row = _published(tx, checkpoint_id)
        if row.hold and row.hold != body.reason:
            raise Conflict(
                f"checkpoint {checkpoint_id} is under a hold by {row.held_by} already: {row.hold}",
                code="checkpoint-held",
                field="reason",
                hint="An admin can lift it; then place another one.",
            )
        changed = not row.hold
        if changed:
            row.hold, row.held_by, row.held_at = body.reason, call.actor, time.time()
            tx.changed("checkpoint", checkpoint_id)
        tx.flush()
        return Answer(views.checkpoint(tx, checkpoint_id), changed=changed, audit=body.model_dump())

    return call.change("hold_checkpoint", checkpoint_id, act)


@router.delete(
    "/checkpoints/{checkpoint_id}/hold",
    operation_id="release_checkpoint",
    responses=schemas.answers(schemas.Checkpoint, 200),
)
def release_checkpoint(call: Call, checkpoint_id: str) -> Response:
    """Lift a legal hold."""

    def act(tx: Transaction) -> Answer:
        row = _published(tx, checkpoint_id)
        reason, changed = row.hold, bool(row.hold)
        row.hold, row.held_by, row.held_at = "", "", None
        tx.flush()
        if changed:
            tx.changed("checkpoint", checkpoint_id)
        return Answer(views.checkpoint(tx, checkpoint_id), changed=changed, audit={"was": reason})

    return call.change("release_checkpoint", checkpoint_id, act)


@router.post(
    "/checkpoints/{checkpoint_id}:clear",
    operation_id="clear_checkpoint",
    responses=schemas.answers(schemas.Checkpoint, 200),
)
def clear_checkpoint(call: Call, checkpoint_id: str, body: ClearWish) -> Response:
    """Say that a checkpoint is clean although it, or one before it, shows signs of encryption."""

    def act(tx: Transaction) -> Answer:
        row = _published(tx, checkpoint_id)
        changed = suspicion.clear(tx, row, call.actor, body.note)
        tx.flush()
        return Answer(views.checkpoint(tx, checkpoint_id), changed=changed, audit=body.model_dump())

    return call.change("clear_checkpoint", checkpoint_id, act)


@router.post(
    "/plans/{name}:retention-preview",
    operation_id="preview_retention",
    response_model=schemas.RetentionPreview,
    tags=["plans"],
)
def preview_retention(call: Call, name: str, body: RetentionWish) -> dict[str, Any]:
    """Return which checkpoints would go now, by the plan's rules or by others."""
    with call.ctx.store.read() as session:
        return views.retention(session, name, body.retention)


@router.post(
    "/checkpoints/{checkpoint_id}:scrub",
    operation_id="scrub_checkpoint",
    responses=schemas.answers(schemas.Ran, 202),
    status_code=202,
)
def scrub_checkpoint(call: Call, checkpoint_id: str) -> Response:
    """Read a checkpoint back at its site and compare it with its manifest."""

    def act(tx: Transaction) -> Answer:
        run, new = scrub.request(tx, checkpoint_id, call.actor)
        shown = {"run": views.run(tx, run.run_id), "changed": new}
        return Answer(shown, 202, changed=new, audit={"run": run.run_id, "plan": run.plan})

    return call.change("scrub_checkpoint", checkpoint_id, act)


def held(row: Checkpoint) -> Conflict:
    """Return the error for the removal of a checkpoint that is under a legal hold."""
    return Conflict(
        f"checkpoint {row.checkpoint_id} is under a legal hold by {row.held_by}: {row.hold}",
        code="checkpoint-held",
        hint=f"An admin can lift it: `farshore checkpoint release {row.checkpoint_id}`.",
    )


def _published(tx: Transaction, checkpoint_id: str) -> Checkpoint:
    row = tx.get(Checkpoint, checkpoint_id)
    if row is None or row.state != "published":
        raise no_checkpoint(tx, checkpoint_id)
    return row
