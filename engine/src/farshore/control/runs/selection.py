"""Which checkpoint each machine of a plan comes back from."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import suspicion
from farshore.control.catalog import rebuilding
from farshore.control.clock import iso, parse_iso
from farshore.control.planning import definitions
from farshore.control.store.records import Checkpoint, Plan, PlanMachine
from farshore.control.views.points import no_checkpoint
from farshore.control.views.protection import direction, members
from farshore.errors import Conflict, Invalid, NotFound, Unavailable
from farshore.model.machine import MachineFacts
from farshore.model.plan import Plan as Definition
from farshore.model.plan import RecoverySource
from farshore.recovery import captured
from farshore.recovery.preview import Choice

LATEST: Final = "latest"
#: The newest without signs of encryption, and not after one that has them: see ``farshore.control.suspicion``.
LATEST_CLEAN: Final = "latest_clean"
#: Characters of an id's beginning that are taken for it.
_LEAST_OF_AN_ID: Final = 6


def choose(
    session: Session, plan: Plan, selector: str, *, names: Collection[str] | None = None, allow_suspect: bool = False
) -> dict[str, Checkpoint]:
    """Return a checkpoint for each protected machine, or each of ``names``, by machine name in the plan's order.

    ``selector``: ``latest``, ``latest_clean``, an id or its beginning, a label, or a time. A plan of several groups has
    one checkpoint per group: an id names one of them, the others come from the time that is nearest to its own: groups
    are copied one by one, so that the points of one round lie a little before or after each other. A time is never
    passed. Suspect checkpoints are passed over, and refused where named, unless ``allow_suspect``.

    Raises:
        NotFound: no such checkpoint, or none that old.
        Invalid: a time in the future, or words that name several.
        Conflict: a machine has no checkpoint yet, or none is protected, or the one named is at another site, or
            suspect.
    """
    rows = [row for row in members(session, plan.name) if row.activity != "inactive"]
    rows = [row for row in rows if names is None or row.name in names]
    if not rows:
        raise Conflict(
            f"no machine of plan {plan.name!r} is protected",
            code="not-protected",
            hint=f"Begin with: `farshore plan protect {plan.name}`.",
        )
    named: Checkpoint | None = None
    until: float | None = None
    if selector not in {LATEST, LATEST_CLEAN}:
        until = parse_iso(selector)
        if until is None:
            named = _named(session, plan, selector)
            if named.integrity == "suspect" and not allow_suspect:
                raise _suspect(named.checkpoint_id, f"checkpoint {named.checkpoint_id} is suspect", reason_of(named))
        elif until > time.time():
            raise Invalid(
                f"{iso(until)} is in the future",
                code="checkpoint-in-future",
                field="checkpoint",
                hint="Write a time in the past; without a zone it is read as UTC. The newest there is: latest.",
            )
    return {
        row.name: _of(session, plan, row, named, until, clean=selector == LATEST_CLEAN, allow_suspect=allow_suspect)
        for row in rows
    }


def _named(session: Session, plan: Plan, selector: str) -> Checkpoint:
    """Return the one checkpoint of a plan that an id, the beginning of one, or a label names.

    Raises:
        NotFound: none; the error tells of near ones, or that it was removed.
        Invalid: several, which are named.
        Conflict: it is at another site than the one that the plan recovers at.
    """
    target = direction(plan).target
    offered = session.scalars(
        select(Checkpoint)
        .where(Checkpoint.plan == plan.name, Checkpoint.state == "published")
        .order_by(Checkpoint.ordered_at.desc())
    ).all()
    found = [row for row in offered if row.checkpoint_id == selector]
    if not found and selector:
        found = [row for row in offered if row.label == selector and row.target_site == target]
        if found:  # one of each group; the others follow by its time
            found = found if len({row.group_id for row in found}) < len(found) else found[:1]
    if not found and len(selector) >= _LEAST_OF_AN_ID:
        found = [row for row in offered if row.checkpoint_id.startswith(selector)]
    if len(found) > 1:
        raise Invalid(
            f"{selector!r} names {len(found)} checkpoints of plan {plan.name!r}",
            code="checkpoint-ambiguous",
            field="checkpoint",
            hint=f"Say which: {', '.join(f'{row.checkpoint_id} ({iso(row.taken_at)})' for row in found[:5])}.",
        )
    if not found:
        gone = session.get(Checkpoint, selector)
        if gone is not None and gone.plan == plan.name:
            oldest = offered[-1] if offered else None
            raise NotFound(
                f"checkpoint {selector} of plan {plan.name!r} was removed",
                code="checkpoint-removed",
                field="checkpoint",
                hint=f"The oldest that is kept is {oldest.checkpoint_id}, from {iso(oldest.taken_at)}."
                if oldest is not None
                else f"Nothing is kept; make one: `farshore replicate {plan.name}`.",
                checkpoint=selector,
            )
        raise no_checkpoint(session, selector, field="checkpoint", plan=plan.name)
    if found[0].target_site != target:
        raise Conflict(
            f"checkpoint {selector} is at site {found[0].target_site!r}, plan {plan.name!r} recovers at {target!r}",
            code="checkpoint-elsewhere",
            field="checkpoint",
            hint=f"List the others: `farshore checkpoint list --plan {plan.name}`.",
            checkpoint=selector,
        )
    return found[0]


def _of(
    session: Session,
    plan: Plan,
    row: PlanMachine,
    named: Checkpoint | None,
    until: float | None,
    *,
    clean: bool,
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
    if clean and points:
        encrypted = points[0]
        points = [point for point in points if suspicion.is_clean(point)]
        if not points:
            raise Conflict(
                f"every checkpoint of machine {row.name!r} of plan {plan.name!r} shows signs of encryption",
                code="no-clean-checkpoint",
                field="checkpoint",
                hint="Look at them: `farshore checkpoint show`. One that is harmless can be cleared, or be named.",
                machine=row.name,
                checkpoint=encrypted.checkpoint_id,
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
            hint=_what_is_kept(session, plan, row),
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


def _what_is_kept(session: Session, plan: Plan, row: PlanMachine) -> str:
    """Return a sentence that says how far back one can go with a machine."""
    oldest = session.scalars(
        select(Checkpoint)
        .where(
            Checkpoint.group_id == row.group_id,
            Checkpoint.target_site == direction(plan).target,
            Checkpoint.state == "published",
        )
        .order_by(Checkpoint.epoch, Checkpoint.sequence)
        .limit(1)
    ).first()
    if oldest is None:
        return f"None is kept yet; make one: `farshore replicate {plan.name}`."
    return f"The oldest that retention has kept is {oldest.checkpoint_id}, from {iso(oldest.taken_at)}."


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


def doubts(chosen: Mapping[str, Checkpoint]) -> list[str]:
    """Return a warning for each machine that would come back from a checkpoint with signs of encryption."""
    return [
        f"machine {name!r} comes back from checkpoint {point.checkpoint_id}, which"
        f" {'shows' if suspicion.score_of(point).flagged else 'follows one that shows'} signs of encryption; the newest"
        f" before is: {LATEST_CLEAN}"
        for name, point in chosen.items()
        if not suspicion.is_clean(point)
    ]


@dataclass(frozen=True, slots=True)
class Settings:
    """With which settings a recovery is made; ``differences`` from the plan as it is now."""

    definition: Definition
    origin: RecoverySource
    differences: list[captured.Difference]

    def told(self) -> dict[str, Any]:
        """Return it for a preview."""
        if self.origin == "current":
            return {}
        return {"recovery_settings": self.origin, "differences": [asdict(one) for one in self.differences]}


def settings(plan: Plan, choices: Sequence[Choice], origin: RecoverySource | None) -> Settings:
    """Return the settings to recover with: those of now, or those that the checkpoints carry. None: as the plan says.

    Raises:
        Permanent: those of the checkpoints cannot be used; the error says why.
    """
    definition = Definition.model_validate(plan.definition)
    if (origin or definition.recovery_settings) == "current":
        return Settings(definition, "current", [])
    then = captured.effective(definition, choices)
    return Settings(then, "captured", captured.differences(definition, then))


def choice(row: PlanMachine, point: Checkpoint) -> Choice:
    """Return the choice as the planner of a recovery takes it."""
    away = row.home is not None and point.source_site != row.home["site"]
    home = MachineFacts.model_validate(row.home["facts"]) if away and row.home is not None else None
    return Choice(row.name, str(row.machine_id), definitions.of_checkpoint(point), home)
