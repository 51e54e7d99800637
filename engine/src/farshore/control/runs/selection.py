"""Which checkpoint each machine of a plan comes back from."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control.catalog import rebuilding
from farshore.control.clock import iso, parse_iso
from farshore.control.store.records import Checkpoint, Plan, PlanMachine
from farshore.control.views.points import no_checkpoint
from farshore.control.views.protection import direction, members
from farshore.errors import Conflict, NotFound, Unavailable
from farshore.model.checkpoint import Manifest
from farshore.model.machine import MachineFacts
from farshore.recovery.preview import Choice

LATEST: Final = "latest"


def choose(session: Session, plan: Plan, selector: str, *, allow_suspect: bool = False) -> dict[str, Checkpoint]:
    """Return a checkpoint for each protected machine, by machine name in the plan's order.

    ``selector``: ``latest``, a checkpoint's id, or a time. A plan of several groups has one checkpoint per group: an id
    names one of them, the others come from the time that is nearest to its own: groups are copied one by one, so that
    the points of one round lie a little before or after each other. A time is never passed. Suspect checkpoints are
    passed over, and refused where named, unless ``allow_suspect``.

    Raises:
        NotFound: no such checkpoint, or none that old.
        Conflict: a machine has no checkpoint yet, or none is protected, or the one named is at another site, or
            suspect.
    """
    rows = [row for row in members(session, plan.name) if row.activity != "inactive"]
    if not rows:
        raise Conflict(
            f"no machine of plan {plan.name!r} is protected",
            code="not-protected",
            hint=f"Begin with: `farshore plan protect {plan.name}`.",
        )
    named: Checkpoint | None = None
    until: float | None = None
    if selector != LATEST:
        until = parse_iso(selector)
        if until is None:
            named = session.get(Checkpoint, selector)
            if named is None or named.state != "published" or named.plan != plan.name:
                raise no_checkpoint(session, selector, field="checkpoint", plan=plan.name)
            target = direction(plan).target
            if named.target_site != target:
                raise Conflict(
                    f"checkpoint {selector} is at site {named.target_site!r}, plan {plan.name!r} recovers at"
                    f" {target!r}",
                    code="checkpoint-elsewhere",
                    field="checkpoint",
                    hint=f"List the others: `farshore checkpoint list --plan {plan.name}`.",
                    checkpoint=selector,
                )
            if named.integrity == "suspect" and not allow_suspect:
                raise _suspect(named.checkpoint_id, f"checkpoint {selector} is suspect", reason_of(named))
    return {row.name: _of(session, plan, row, named, until, allow_suspect=allow_suspect) for row in rows}


def _of(
    session: Session,
    plan: Plan,
    row: PlanMachine,
    named: Checkpoint | None,
    until: float | None,
    *,
    allow_suspect: bool,
) -> Checkpoint:
    if named is not None and named.group_id == row.group_id and holds(named, row):
        return named
    query = select(Checkpoint).where(
        Checkpoint.group_id == row.group_id,
        Checkpoint.target_site == direction(plan).target,
        Checkpoint.state == "published",
    )
    if until is not None:
        query = query.where(Checkpoint.taken_at <= until)
    points = [
        point
        for point in session.scalars(query.order_by(Checkpoint.epoch.desc(), Checkpoint.sequence.desc()))
        if holds(point, row)
    ]
    doubted = [point for point in points if point.integrity == "suspect" and not allow_suspect]
    points = [point for point in points if point not in doubted]
    if not points and doubted:
        raise _suspect(
            doubted[0].checkpoint_id,
            f"every checkpoint of machine {row.name!r} of plan {plan.name!r} that could be taken is suspect",
            reason_of(doubted[0]),
        )
    if points and named is not None:
        moment = named.taken_at
        return min(points, key=lambda point: abs(point.taken_at - moment))
    if points:
        return points[0]
    if until is not None:
        raise NotFound(
            f"machine {row.name!r} of plan {plan.name!r} has no checkpoint from {iso(until)} or before",
            code="checkpoint-unknown",
            field="checkpoint",
            hint=f"List them: `farshore checkpoint list --plan {plan.name}`.",
            machine=row.name,
        )
    if direction(plan).target in rebuilding(session):
        raise Unavailable(
            f"what site {direction(plan).target!r} holds was not read yet since this control plane took over",
            code="catalog-rebuilding",
            hint="It is read as soon as a node of the site polls: let its control_url lead here.",
        )
    raise Conflict(
        f"machine {row.name!r} of plan {plan.name!r} has no checkpoint yet",
        code="no-checkpoint",
        field="checkpoint",
        hint=f"Make one: `farshore replicate {plan.name}`.",
        machine=row.name,
    )


def reason_of(point: Checkpoint) -> str:
    """Return why a checkpoint is suspect; empty if it is not."""
    return next((str(one["reason"]) for one in reversed(point.addenda) if one["verdict"] == "suspect"), "")


def _suspect(checkpoint_id: str, message: str, reason: str) -> Conflict:
    return Conflict(
        f"{message}: {reason}",
        code="checkpoint-suspect",
        field="checkpoint",
        hint="Take another one, or say that you want it all the same: `--allow-suspect`.",
        checkpoint=checkpoint_id,
    )


def holds(point: Checkpoint, row: PlanMachine) -> bool:
    """Say whether a checkpoint holds a machine."""
    return any(item["machine_id"] == row.machine_id for item in point.manifest["machines"])


def choice(row: PlanMachine, point: Checkpoint) -> Choice:
    """Return the choice as the planner of a recovery takes it."""
    away = row.home is not None and point.source_site != row.home["site"]
    home = MachineFacts.model_validate(row.home["facts"]) if away and row.home is not None else None
    return Choice(row.name, str(row.machine_id), Manifest.model_validate(point.manifest), home)
