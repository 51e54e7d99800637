"""Reprotect: after a failover, replicate from where the plan runs now back to the site that it left.

The old primaries are fenced first, and that is read back. Then the roles turn, in one transaction: what runs now is the
source, and the old primary rests at the target. Its disks are never written; the first copy the other way begins with
what they hold, so that only what differs crosses the link.

A plan that was given another target site after its failover is replicated there instead: from the disks of an earlier
primary where one rests there, else whole. The old primary stays fenced where it is.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore import errors
from farshore.control import audit
from farshore.control.nearby import suggestion
from farshore.control.planning import protect
from farshore.control.runs import drill, epoch, hooks, ledger, stopping, story
from farshore.control.runs.story import Phase, Scene, Story
from farshore.control.scheduling import cycles, untracks
from farshore.control.store.database import Transaction
from farshore.control.store.records import Cycle, Group, OldPrimary, Plan, PlanMachine, Run, Site
from farshore.control.views.places import site_state
from farshore.control.views.protection import direction, is_parted, is_turned, members, record
from farshore.control.views.protection import divergent as forced
from farshore.errors import Conflict, Invalid, NotFound, Unavailable
from farshore.model.base import Model, Name
from farshore.model.task import MachineFenceParams
from farshore.units import format_size


class ReprotectWish(Model):
    """Replicate back. ``to_site``: where to, to be sure; default: the site that the plan left.

    ``accept_divergence``: after a forced failover the old primary may hold what nobody else has. It is kept as it is,
    but what is replicated from now on goes without it; this says that it is known.
    """

    to_site: Name | None = None
    accept_divergence: bool = False


def is_done(session: Session, name: str, wish: ReprotectWish) -> bool:
    """Say whether the plan is replicated from where it runs.

    Raises:
        NotFound: no such plan.
        Invalid: the plan cannot be replicated to the wanted site.
        Conflict: it is not protected, or only some of its machines were moved.
    """
    plan = record(session, name)
    target = direction(plan).target
    if wish.to_site is not None and wish.to_site != target:
        raise Invalid(
            f"plan {name!r} runs at {plan.active_site!r}; from there it is replicated to {target!r}, not to"
            f" {wish.to_site!r}",
            code="site-unknown",
            field="to_site",
            hint=f"For another site apply the plan with `source_site: {plan.active_site}` and `target_site:"
            f" {wish.to_site}` first, with the networks of both."
            if session.get(Site, wish.to_site) is not None
            else suggestion(wish.to_site, [target], " to replicate to"),
        )
    if plan.state == "unprotected":
        raise Conflict(
            f"plan {name!r} is not protected",
            code="not-protected",
            hint=f"Begin with: `farshore plan protect {name}`.",
        )
    if is_parted(session, name):
        raise Conflict(
            f"some machines of plan {name!r} run at {plan.active_site!r} still, and are replicated from there",
            code="partly-failed-over",
            hint=f"Fail the rest over as well (`farshore failover {name} --to {target}`); then all of it can turn.",
        )
    return plan.state in {"seeding", "protected", "reprotecting"} and is_turned(session, plan)


def preview_of(session: Session, name: str, wish: ReprotectWish) -> dict[str, Any]:
    """Return what a reprotect would do. Errors: as :func:`request`."""
    plan = record(session, name)
    source, target = direction(plan)
    after = {"source_site": source, "target_site": target, "epoch": plan.epoch}
    if is_done(session, name, wish):
        return {"changed": False, "before": after, "after": after, "warnings": []}
    rows, warnings = _admit(session, plan, wish)
    return {
        "changed": True,
        "before": {"source_site": rows[0].site if rows else target, "target_site": source, "epoch": plan.epoch},
        "after": {
            **after,
            "old_primaries": [
                {"machine": row.name, "site": row.site, "machine_id": row.machine_id, "kept": True} for row in rows
            ],
        },
        "warnings": warnings,
    }


def request(tx: Transaction, name: str, wish: ReprotectWish, actor: str) -> Run | None:
    """Insert a reprotect; None if the plan is replicated from where it runs already.

    Raises:
        NotFound, Invalid, Conflict, Unavailable: why it cannot run; nothing is changed then.
    """
    if is_done(tx, name, wish):
        return None
    plan = record(tx, name)
    rows, warnings = _admit(tx, plan, wish)
    run = ledger.create(tx, "reprotect", plan, actor, wish.model_dump(), workflow=True)
    ledger.note(tx, run, definition=plan.definition, warnings=warnings)
    ledger.add_machines(tx, run, [row.name for row in rows])
    ledger.done(tx, run.run_id, "preflight", f"from {run.from_site} to {run.to_site}, epoch {plan.epoch}")
    tx.changed("plan", name)
    return run


def _admit(session: Session, plan: Plan, wish: ReprotectWish) -> tuple[list[PlanMachine], list[str]]:
    """Return the machines that turn, and what to say about it."""
    drill.require_free(session, plan, "reprotect")
    if plan.state != "failed-over":
        raise Conflict(
            f"plan {plan.name!r} is {plan.state}",
            code=f"plan-{plan.state}",
            hint="Let the failover come to its end first: order it again.",
        )
    if not plan.committed:
        raise Conflict(
            f"the failover of plan {plan.name!r} to {plan.active_site!r} can still be rolled back",
            code="not-committed",
            hint=f"Decide first: `farshore commit {plan.name}` or `farshore rollback {plan.name}`.",
        )
    rows = [row for row in members(session, plan.name) if row.activity != "inactive"]
    for row in rows:
        if row.activity == "paused" or row.state != "failed-over" or row.target_machine_id is None:
            raise Conflict(
                f"machine {row.name!r} of plan {plan.name!r} is {'paused' if row.activity == 'paused' else row.state}",
                code="machine-paused" if row.activity == "paused" else "state-conflict",
                hint=f"Let it go on first: `farshore plan protect {plan.name}`."
                if row.activity == "paused"
                else "Order the failover again; it goes on with what did not come up.",
                machine=row.name,
            )
        _refuse_taken(session, plan, row)
        if row.site != direction(plan).target and row.source_state != "fenced":
            raise Conflict(
                f"the old primary of machine {row.name!r} at site {row.site!r} was not seen fenced and off yet",
                code="old-primary-not-fenced",
                hint="Its site has to answer once. If it is lost for good, unprotect the plan and protect the machines"
                " with a new one, from where they run.",
                machine=row.name,
            )
    for site in direction(plan):
        state = site_state(session, site)
        if state != "online":
            raise Unavailable(
                f"no node of site {site!r} answers",
                code=f"site-{state}",
                hint="The old primary has to be fenced before anything is replicated to its site.",
                site=site,
            )
    divergent = [name for name in forced(session, plan.name) if name in {row.name for row in rows}]
    if divergent and not wish.accept_divergence:
        raise Conflict(
            f"the failover was forced: at site {rows[0].site!r} {', '.join(divergent)} may hold what was"
            " written after the checkpoint and is nowhere else",
            code="divergent",
            field="accept_divergence",
            hint="It is kept as it is, but what is replicated goes without it. Say that you know:"
            f" `farshore reprotect {plan.name} --accept-divergence`.",
            machines=divergent,
        )
    return rows, [f"machine {name!r} is divergent at site {rows[0].site!r}: kept" for name in divergent]


def _resting(session: Session, plan: Plan, row: PlanMachine) -> str | None:
    """Return the id of the newest old primary of a machine that rests where the plan is replicated to."""
    target = direction(plan).target
    if row.site == target:
        return row.machine_id
    earlier = (
        select(OldPrimary.machine_id)
        .where(OldPrimary.plan == plan.name, OldPrimary.machine == row.name, OldPrimary.site == target)
        .order_by(OldPrimary.epoch.desc())
    )
    return session.scalars(earlier.limit(1)).first()


def _refuse_taken(session: Session, plan: Plan, row: PlanMachine) -> None:
    other = session.scalars(
        select(PlanMachine).where(
            PlanMachine.plan != plan.name,
            PlanMachine.site == plan.active_site,
            (PlanMachine.name == row.name) | (PlanMachine.machine_id == row.target_machine_id),
        )
    ).first()
    if other is not None:
        raise Conflict(
            f"machine {row.name!r} at site {plan.active_site!r} is in plan {other.plan!r} already",
            code="machine-overlap",
            hint=f"A machine belongs to one plan. Remove it from {other.plan!r} first.",
            plans=[plan.name, other.plan],
        )


def _fence(scene: Scene) -> bool:
    """Fence once more what rests at the target, whatever was known of it, and read back that it is off."""
    through = True
    for row in epoch.rows(scene.tx, scene.run):
        resting = _resting(scene.tx, scene.plan, row)
        if resting is None and row.site != scene.site():
            continue  # nothing of it was ever there; where it was before, it is fenced
        params = MachineFenceParams(machine_id=str(resting), epoch=scene.plan.epoch, power_off=True)
        try:
            if not stopping.fence_machine(scene, row.name, params, scene.site()):
                through = False
                continue
        except NotFound:
            story.detail(scene, "fence", "it is not there any more: everything is copied", row.name)
            if row.site == scene.site():
                row.machine_id = None
        if row.site == scene.site():
            epoch.happen(scene.plan, row, "fenced")
    return through


def _turn(scene: Scene) -> bool:
    """Exchange source and target: the one transaction after which the plan runs the other way."""
    tx, run, plan = scene.tx, scene.run, scene.plan
    if run.facts.get("turned"):
        return True
    turned = epoch.rows(tx, run)
    for row in turned:
        epoch.happen(plan, row, "reprotect")
        row.old_machine_id, row.machine_id = _resting(tx, plan, row), row.target_machine_id
        if row.old_machine_id is not None:
            untracks.order(tx, plan.name, scene.site(), row.name, row.old_machine_id, plan.epoch)
        if row.home is not None and row.home["site"] != plan.definition["source_site"]:
            row.home = None  # the plan has moved: that is a site like any other now
        row.site, row.target_machine_id, row.recovered_from = plan.active_site, None, None
        group = tx.get(Group, row.group_id)
        if group is not None:
            group.failures, group.not_before, group.last_seconds, group.last_error = 0, 0.0, None, None
    tx.flush()
    plan.state = "reprotecting"
    protect.settle(tx, plan)
    audit.record(
        tx,
        run.actor,
        "reprotect",
        plan.name,
        run=run.run_id,
        epoch=plan.epoch,
        source_site=run.from_site,
        target_site=run.to_site,
        old_primaries={row.name: row.old_machine_id for row in turned},
        accept_divergence=bool(run.params.get("accept_divergence")),
    )
    for group_id in sorted({member.group_id for member in turned}):
        cycles.create(tx, plan, group_id, "reprotect", run_id=run.run_id)
    ledger.note(tx, run, turned=True)
    ledger.done(tx, run.run_id, "turn", f"replicated from {run.from_site} to {run.to_site} from now on")
    return True


def _copy(scene: Scene) -> bool:
    """Bring the other site up to date; what fails is tried again by the schedule, whatever becomes of this run."""
    tx, run = scene.tx, scene.run
    row = ledger.begin(tx, run.run_id, "copy")
    found = tx.scalars(select(Cycle).where(Cycle.run_id == run.run_id)).all()
    if run.cancel:
        for cycle in found:
            cycle.cancel = True
    if any(cycle.ended_at is None for cycle in found):
        return False
    for cycle in found:
        if cycle.stats is None:
            error = errors.from_dict(cycle.error or {})
            ledger.end(tx, row, "failed", error=error)
            raise error
    moved = sum(int((cycle.stats or {}).get("moved_bytes", 0)) for cycle in found)
    whole = sum(int((cycle.stats or {}).get("disk_bytes", 0)) for cycle in found)
    ledger.end(tx, row, "succeeded", f"{format_size(moved)} of {format_size(whole)} moved")
    for machine in ledger.machines(tx, run.run_id):
        member = tx.get_one(PlanMachine, (run.plan, machine.name))
        cycle = next(item for item in found if item.group_id == member.group_id)
        machine.checkpoint_id, machine.machine_id, machine.state = cycle.checkpoint_id, member.machine_id, "succeeded"
    return hooks.order(scene, "reprotect", "post", "plan")


def _finish(scene: Scene) -> bool:
    story.conclude(scene)
    story.look_around(scene, "source", "target")
    return True


STORY: Final[Story] = (
    Phase("fence", _fence, "finish", cancellable=True),
    Phase("turn", _turn, "finish", cancellable=True, atomic=True),
    Phase("copy", _copy, "finish"),
    Phase("finish", _finish),
)


def first_phase(run: Run) -> str:
    """Return the phase that a reprotect begins with, or goes on with when the orchestrator has lost it."""
    return "copy" if run.facts.get("turned") else "finish" if "error" in run.facts else "fence"
