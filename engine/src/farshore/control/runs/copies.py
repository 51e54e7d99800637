"""Runs of cycles: replicate now, and make sure that a labelled checkpoint exists."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import clock
from farshore.control.nearby import suggestion
from farshore.control.runs import ledger
from farshore.control.scheduling import cycles
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Plan, PlanMachine, Run
from farshore.control.views.places import site_state
from farshore.control.views.points import newest
from farshore.control.views.protection import direction, is_turned, members, ordered, record, runs_at
from farshore.errors import Conflict, Invalid, Unavailable
from farshore.model.base import Duration, Model, Name
from farshore.model.checkpoint import LEVELS, Level
from farshore.model.plan import Plan as Definition


class ReplicateWish(Model):
    """Run a cycle now, unless the newest checkpoint is younger than ``max_age_s``. ``machines`` None: all."""

    machines: tuple[Name, ...] | None = None
    max_age_s: Annotated[Duration, Field(ge=0)] | None = None


class CheckpointWish(Model):
    """A checkpoint with a label exists, pinned or not, of a level or a higher one.

    ``max_age_s``: one that is younger and without a label is taken instead of running a cycle. ``hold``: the reason of
    a legal hold, which is placed if there is none; empty: no word about it.
    """

    pin: bool = False
    consistency: Literal["machine", "group", "application"] | None = None
    max_age_s: Annotated[Duration, Field(ge=0)] | None = None
    hold: str = Field("", max_length=2000)


@dataclass(frozen=True, slots=True)
class Needed:
    """What a wish takes: groups to copy, checkpoints to mark, and what fulfils it already."""

    groups: tuple[str, ...]
    mark: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything has to happen."""
        return bool(self.groups or self.mark)


def needed_to_replicate(session: Session, name: str, wish: ReplicateWish) -> Needed:
    """Return the groups that need a cycle now.

    Raises:
        NotFound, Invalid, Conflict, Unavailable: why no cycle can run.
    """
    plan = record(session, name)
    chosen = _chosen(session, plan, wish.machines)
    groups = []
    present = []
    now = clock.now()
    for group_id in sorted({row.group_id for row in chosen}):
        point = newest(session, plan, group_id, sound=True)
        if point is not None and wish.max_age_s is not None and now.age_s(ordered(point)) < wish.max_age_s:
            present.append(point.checkpoint_id)
        else:
            groups.append(group_id)
    if groups:
        _require_sites(session, plan)
    return Needed(tuple(groups), present=tuple(present))


def replicate(tx: Transaction, name: str, wish: ReplicateWish, actor: str) -> Run | None:
    """Order cycles; None if nothing is needed. A run for the same groups that has not begun to copy is joined."""
    need = needed_to_replicate(tx, name, wish)
    if not need.groups:
        return None
    plan = record(tx, name)
    for run in tx.scalars(select(Run).where(Run.plan == name, Run.kind == "replicate", Run.state.in_(ledger.OPEN))):
        waiting = tx.scalars(select(Cycle).where(Cycle.run_id == run.run_id)).all()
        if {item.group_id for item in waiting} == set(need.groups) and all(item.state == "waiting" for item in waiting):
            return run
    run = ledger.create(tx, "replicate", plan, actor, wish.model_dump(mode="json"))
    for group_id in need.groups:
        cycles.create(tx, plan, group_id, "run", run_id=run.run_id)
    return run


def needed_for_checkpoint(session: Session, name: str, label: str, wish: CheckpointWish) -> Needed:
    """Return what is missing for every group of the plan to have a checkpoint with ``label``.

    Raises:
        NotFound, Invalid, Conflict, Unavailable: why it cannot be.
    """
    plan = record(session, name)
    definition = Definition.model_validate(plan.definition)
    least = _least_level(definition, wish)
    now = clock.now()
    groups, mark, present = [], [], []
    for group_id in sorted({row.group_id for row in _here(session, plan)}):
        rows = session.scalars(
            select(Checkpoint)
            .where(Checkpoint.group_id == group_id, Checkpoint.state == "published", Checkpoint.integrity != "suspect")
            .order_by(Checkpoint.epoch.desc(), Checkpoint.sequence.desc())
        ).all()
        labelled = next((row for row in rows if row.label == label and _reaches(row.level, least)), None)
        young = next(
            (
                row
                for row in rows
                if not row.label
                and wish.max_age_s is not None
                and now.age_s(ordered(row)) < wish.max_age_s
                and _reaches(row.level, least)
            ),
            None,
        )
        if labelled is not None:
            present.append(labelled.checkpoint_id)
            if labelled.pinned != wish.pin or (wish.hold and not labelled.hold):
                mark.append(labelled.checkpoint_id)
        elif young is not None:
            mark.append(young.checkpoint_id)
        else:
            groups.append(group_id)
    if groups:
        _chosen(session, plan, None)
        _require_sites(session, plan)
    return Needed(tuple(groups), tuple(mark), tuple(present))


def checkpoint(
    tx: Transaction, name: str, label: str, wish: CheckpointWish, actor: str
) -> tuple[Run | None, list[str], bool]:
    """Ensure the checkpoint; returns the run if cycles are needed, the ids that are there, and whether it changed."""
    need = needed_for_checkpoint(tx, name, label, wish)
    for checkpoint_id in need.mark:
        row = tx.get_one(Checkpoint, checkpoint_id)
        row.label, row.pinned = label, wish.pin
        if wish.hold and not row.hold:
            row.hold, row.held_by, row.held_at = wish.hold, actor, clock.now().wall_s
        tx.changed("checkpoint", checkpoint_id)
    run = None
    if need.groups:
        plan = record(tx, name)
        for open_run in tx.scalars(
            select(Run).where(Run.plan == name, Run.kind == "checkpoint", Run.state.in_(ledger.OPEN))
        ):
            if open_run.params.get("label") == label:
                return open_run, list(need.present), True
        run = ledger.create(tx, "checkpoint", plan, actor, {"label": label, **wish.model_dump(mode="json")})
        for group_id in need.groups:
            cycles.create(
                tx,
                plan,
                group_id,
                "checkpoint",
                run_id=run.run_id,
                label=label,
                pin=wish.pin,
                hold=(wish.hold, actor if wish.hold else ""),
                consistency="application" if wish.consistency == "application" else None,
            )
    return run, sorted({*need.present, *need.mark}), need.changed


def cancel(tx: Transaction, run: Run) -> None:
    """Stop a run's cycles; the run ends with them."""
    run.cancel = True
    for cycle in tx.scalars(select(Cycle).where(Cycle.run_id == run.run_id, Cycle.ended_at.is_(None))):
        cycle.cancel = True
    tx.changed("run", run.run_id)


def _here(session: Session, plan: Plan) -> list[PlanMachine]:
    """Return the machines that run where the plan is active: all, or those that were not moved elsewhere."""
    rows = [row for row in members(session, plan.name) if runs_at(plan, row) == plan.active_site]
    return [row for row in rows if row.state not in {"failing-over", "rolling-back"}]


def _chosen(session: Session, plan: Plan, names: tuple[str, ...] | None) -> list[PlanMachine]:
    rows = members(session, plan.name)
    if plan.state in {"failing-over", "rolling-back"} or not is_turned(session, plan):
        raise Conflict(
            f"plan {plan.name!r} is {plan.state}; it is active at site {plan.active_site!r}",
            code=f"plan-{plan.state}" if plan.state in {"failing-over", "rolling-back"} else "plan-failed-over",
            hint=f"Nothing replicates from there yet. Begin with: `farshore reprotect {plan.name}`.",
        )
    name = plan.name
    if names is not None:
        known = {row.name for row in rows}
        for index, wanted in enumerate(names):
            if wanted not in known:
                raise Invalid(
                    f"plan {name!r} has no machine {wanted!r}",
                    code="machine-unknown",
                    field=f"machines[{index}]",
                    hint=suggestion(wanted, known, " in the plan"),
                )
        rows = [row for row in rows if row.name in names]
        here = {row.name for row in _here(session, plan)}
        moved = next((row.name for row in rows if row.name not in here), None)
        if moved is not None:
            raise Conflict(
                f"machine {moved!r} of plan {name!r} was moved to the other site, or is on its way there",
                code="machine-moved",
                field="machines",
                hint=f"Leave it out. Look at it: `farshore plan show {name}`.",
            )
    else:
        rows = _here(session, plan)
    inactive = [row for row in rows if row.activity != "active"]
    if inactive:
        raise Conflict(
            f"machine {inactive[0].name!r} of plan {plan.name!r} is"
            f" {'paused' if inactive[0].activity == 'paused' else 'not protected'}",
            code="not-protected",
            hint=f"Begin with: `farshore plan protect {plan.name}`.",
        )
    for row in rows:
        if row.machine_id is None:
            raise Conflict(
                f"machine {row.name!r} was not found at site {row.site!r}",
                code="machine-unresolved",
                hint=f"Look for it: `farshore machine list --site {row.site}`.",
            )
    return rows


def _require_sites(session: Session, plan: Plan) -> None:
    for site in direction(plan):
        state = site_state(session, site)
        if state != "online":
            raise Unavailable(
                f"no node of site {site!r} answers" if state == "offline" else f"site {site!r} has no node",
                code=f"site-{state}",
                hint="Start it: `farshore node start --config FILE`.",
                site=site,
            )


def _least_level(definition: Definition, wish: CheckpointWish) -> Level | None:
    if wish.consistency == "group" and definition.consistency == "machine":
        raise Invalid(
            f"plan {definition.name!r} takes checkpoints per machine",
            code="consistency-unavailable",
            field="consistency",
            hint="Set `consistency: group` in the plan, or ask for application: each machine's guest frozen.",
        )
    return wish.consistency


def _reaches(level: str, least: Level | None) -> bool:
    return least is None or (level in LEVELS and LEVELS.index(level) >= LEVELS.index(least))
