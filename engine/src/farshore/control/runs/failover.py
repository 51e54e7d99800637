"""A failover: the plan's machines run at the target from now on.

Planned: sync while running, stop, verified off, final sync of the stopped disks, fence (read back), raise the epoch,
make and start the machines at the target. A failure before the epoch lifts the fences and starts the source again.
Unplanned: not one word to the source; the epoch is raised by force, audited, and the old primary is fenced at first
contact. After the epoch the same failover ordered again goes on where it stopped.

Which way it goes is a matter of where the plan is active: ``to_site`` is the plan's target site, or, once the plan was
reprotected, its source site again; then it is called a failback, and networks, addresses and sizes are those of home.
"""

from __future__ import annotations

import time
from typing import Any, Final, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import clock, forecast, tasks
from farshore.control.clock import Stamp
from farshore.control.nearby import suggestion
from farshore.control.planning import definitions, protect
from farshore.control.runs import boot, drill, epoch, ledger, retire, selection, stopping, story, subset
from farshore.control.runs.story import Phase, Scene, Story
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Plan, PlanMachine, Run, RunMachine, Task
from farshore.control.views.places import site_state
from farshore.control.views.protection import direction, is_parted, members, ordered, record, runs_at
from farshore.errors import Conflict, Invalid, Unavailable
from farshore.model.base import Model, Name
from farshore.model.plan import Plan as Definition
from farshore.model.plan import Purpose, RecoverySource
from farshore.model.task import MachineCreateParams
from farshore.recovery import preview
from farshore.recovery.plan import Order

#: States of machines on their way from one site to the other.
_UNFINISHED: Final = ("failing-over", "rolling-back")


class FailoverWish(Model):
    """Active at ``to_site``. ``force`` is recorded; an unplanned failover always says that the source is lost.

    ``allow_suspect``: take a checkpoint too that an audit or a scrub has found wanting. ``commit``: ``manual`` leaves
    the way back open until somebody commits the failover; default: as the plan says. ``recovery_settings`` of an
    unplanned one: those of the plan now, or those that the checkpoint carries; default: as the plan says. ``groups``:
    only the machines of these boot groups; the others run on where they are, and are replicated; default: all.
    """

    to_site: Name
    mode: Literal["planned", "unplanned"] = "planned"
    checkpoint: str = selection.LATEST
    force: bool = False
    allow_suspect: bool = False
    commit: Literal["auto", "manual"] | None = None
    recovery_settings: RecoverySource | None = None
    groups: subset.Groups = None


def purpose_of(definition: Definition, kind: str, to_site: str) -> Purpose:
    """Return what a change of sites is for: which networks and addresses the machines get."""
    if kind == "migrate":
        return "migration"
    return "failback" if to_site == definition.source_site else "failover"


def is_done(session: Session, name: str, wish: FailoverWish) -> bool:
    """Say whether the wanted machines are up at the wanted site.

    Raises:
        NotFound: no such plan.
        Invalid: the plan has no such site or group, or cannot be parted like that.
        Conflict: it cannot fail over to there now.
    """
    plan = record(session, name)
    definition = definitions.of_plan(plan)
    both = (definition.source_site, definition.target_site)
    if wish.to_site not in both:
        raise Invalid(
            f"plan {name!r} has no site {wish.to_site!r}",
            code="site-unknown",
            field="to_site",
            hint=suggestion(wish.to_site, both, " in the plan"),
        )
    rows = _meant(session, plan, wish)
    elsewhere = [row for row in rows if runs_at(plan, row) != wish.to_site]
    if any(row.raised for row in elsewhere):
        raise Conflict(
            f"plan {name!r} is active at {runs_at(plan, elsewhere[0])!r}, and nothing replicates back to"
            f" {wish.to_site!r} yet",
            code="failback-unavailable",
            field="to_site",
            hint=_way_back(session, plan),
            machines=[row.name for row in elsewhere if row.raised],
        )
    if elsewhere or any(row.state in _UNFINISHED for row in rows):
        return False
    return bool(rows) or plan.active_site == wish.to_site


def _meant(session: Session, plan: Plan, wish: FailoverWish) -> list[PlanMachine]:
    """Return the machines that a wish is about; those that were moved for good only where it is about no others."""
    rows = subset.rows(session, plan, wish.groups, moves=True)
    return [row for row in rows if row.activity != "inactive"] or [row for row in rows if row.raised]


def _way_back(session: Session, plan: Plan) -> str:
    if not plan.committed:
        return f"To give up what ran there since: `farshore rollback {plan.name}`; else: `farshore commit {plan.name}`."
    if is_parted(session, plan.name):
        return f"Fail the rest over as well; then have all of it replicated back: `farshore reprotect {plan.name}`."
    return f"Have it replicated back first: `farshore reprotect {plan.name}`."


def preview_of(session: Session, name: str, wish: FailoverWish, kind: str = "failover") -> dict[str, Any]:
    """Return what a failover would do. Errors: as :func:`request`."""
    plan = record(session, name)
    before = {"active_site": plan.active_site, "epoch": plan.epoch}
    if is_done(session, name, wish):
        return {"changed": False, "before": before, "after": before, "warnings": []}
    chosen, warnings = _admit(session, plan, wish)
    warnings += selection.doubts(chosen)
    left = subset.left_out(session, plan, chosen) if wish.groups is not None else []
    warnings += subset.stranded(plan, chosen, left)
    warnings += retire.outlook(plan, chosen)
    used = _settings(session, plan, chosen, wish)
    definition = used.definition
    after = epoch.to_come(session, plan)
    orders = _orders(session, plan, definition, chosen, after, purpose_of(definition, kind, wish.to_site))
    now = clock.now()
    planned = wish.mode == "planned"
    waves = Order.of(definition).only(chosen).waves()
    parted = any(row.name in left and not row.raised for row in members(session, name))
    source = _left(plan, wish)
    if not planned and site_state(session, source) == "online":
        warnings.append(
            f"site {source!r} answers: a planned failover would lose nothing; this one loses what was written since the"
            " checkpoint"
        )
    return {
        "changed": True,
        "before": before,
        "after": {
            "active_site": plan.active_site if parted else wish.to_site,
            "epoch": after,
            "purpose": purpose_of(definition, kind, wish.to_site),
            **preview.describe(list(orders.values()), [], definition, chosen),
            **({"left_out": left} if wish.groups is not None else {}),
            **used.told(),
            "stop": list(reversed(waves)) if planned else [],
            "checkpoints": {machine: point.checkpoint_id for machine, point in chosen.items()},
            "rpo_s": {
                machine: 0.0 if planned else round(now.age_s(ordered(point)), 3) for machine, point in chosen.items()
            },
            **forecast.of(session, plan, orders, chosen, verb=kind, planned=planned),
        },
        "warnings": warnings,
    }


def _settings(session: Session, plan: Plan, chosen: dict[str, Checkpoint], wish: FailoverWish) -> selection.Settings:
    """Return the settings to recover with. A planned failover syncs once more, with those of now."""
    rows = {row.name: row for row in members(session, plan.name)}
    choices = [selection.choice(rows[name], point) for name, point in chosen.items()]
    return selection.settings(plan, choices, "current" if wish.mode == "planned" else wish.recovery_settings)


def request(tx: Transaction, name: str, wish: FailoverWish, actor: str, kind: str = "failover") -> Run | None:
    """Insert a failover; None if the plan is active at the wanted site already.

    Raises:
        NotFound, Invalid, Conflict, Unavailable, Permanent: why it cannot run; nothing is changed then.
    """
    if is_done(tx, name, wish):
        return None
    plan = record(tx, name)
    chosen, _ = _admit(tx, plan, wish)
    used = _settings(tx, plan, chosen, wish)
    definition = used.definition
    purpose = purpose_of(definition, kind, wish.to_site)
    after = epoch.to_come(tx, plan)
    _orders(tx, plan, definition, chosen, after, purpose)
    resumed = epoch.is_raised(tx, plan)
    _supersede(tx, plan, actor)
    verb = "failback" if purpose == "failback" else kind
    run = ledger.create(tx, kind, plan, actor, wish.model_dump(), workflow=True, verb=verb, approved=resumed)
    run.from_site, run.to_site = _left(plan, wish), wish.to_site
    now = clock.now()
    ledger.note(
        tx,
        run,
        definition=plan.definition if used.origin == "current" else definition.model_dump(mode="json"),
        **used.told(),
        epoch_seen=plan.epoch,
        resumed=resumed,
        verb=verb,
        purpose=purpose,
        stamp=[now.wall_s, now.boot_s, now.boot_id],
        tag=_tag(plan, after),
        **({"left_out": subset.left_out(tx, plan, chosen)} if wish.groups is not None else {}),
    )
    ledger.add_machines(tx, run, chosen)
    known = wish.mode == "unplanned" or resumed
    for machine in ledger.machines(tx, run.run_id):
        machine.target_name = machine.name
        if known:
            point = chosen[machine.name]
            machine.checkpoint_id = point.checkpoint_id
            machine.rpo_s = round(now.age_s(ordered(point)), 3)
    if known:
        ledger.lease(tx, run.run_id, *(point.checkpoint_id for point in chosen.values()))
    if not resumed and run.state != ledger.WAITING_APPROVAL:
        begin(tx, run)
    detail = "goes on after the epoch" if resumed else f"{wish.mode}, epoch {plan.epoch}"
    ledger.done(tx, run.run_id, "preflight", detail)
    tx.changed("plan", name)
    return run


def begin(tx: Transaction, run: Run) -> None:
    """Take the run's machines out of replication, as a failover does when it is ordered, or approved.

    Raises:
        Conflict: their state does not allow it any more.
    """
    plan = tx.get_one(Plan, run.plan)
    now = clock.now()
    powers = {row.name: epoch.power(tx, row.site, row.machine_id) for row in epoch.rows(tx, run)}
    ledger.note(tx, run, stamp=[now.wall_s, now.boot_s, now.boot_id], powers=powers)
    if epoch.moves_all(tx, run):
        plan.state = "failing-over"
    for row in epoch.rows(tx, run):
        epoch.remember_home(tx, plan, row)
        if row.state != "failing-over":
            epoch.happen(plan, row, "begin")
    tx.changed("plan", plan.name)


def _supersede(tx: Transaction, plan: Plan, actor: str) -> None:
    """End a failover that got stuck before the epoch, because the source was lost in the middle of it.

    What it still wants of the source is taken back without a word to it. Only a forced, unplanned failover gets here.
    """
    stuck = ledger.open_run(tx, plan.name, ("failover", "migrate"))
    if stuck is None:
        return
    now = time.time()
    for task in tx.scalars(select(Task).where(Task.run_id == stuck.run_id, Task.state.not_in(tasks.ENDED))):
        task.cancel, task.state, task.ended_at = True, "cancelled", now
    protect.stop_cycles(tx, plan.name, {row.group_id for row in epoch.rows(tx, stuck)}, abandon=True)
    ledger.finish(tx, stuck, "failed", Conflict(f"superseded by a forced failover of {actor}", code="superseded"))


def first_phase(run: Run) -> str:
    """Return the phase that a failover begins with, or goes on with when the orchestrator has lost it.

    After the epoch that is never one that speaks to the source.
    """
    planned = run.params["mode"] == "planned"
    if run.facts.get("raised") or run.facts.get("resumed"):
        return "create"
    if "error" in run.facts:
        return "halt" if planned else "restore"  # what was stopped may be on again: no step forward counts any more
    return "sync" if planned else "quiet"


def refuse_cancel(session: Session, run: Run) -> None:
    """Raise ``Conflict`` if the failover cannot be cancelled any more."""
    if epoch.is_raised(session, session.get_one(Plan, run.plan)):
        raise Conflict(
            f"the epoch of plan {run.plan!r} was raised; only failback leads back",
            code="past-epoch",
            hint="Let the run end. If it fails, order the same failover again.",
        )


def _left(plan: Plan, wish: FailoverWish) -> str:
    """Return the site that a failover leaves, or has left."""
    source, target = direction(plan)
    return source if source != wish.to_site else target


def _tag(plan: Plan, number: int) -> str:
    return f"failover-{plan.name}-{number}"


def _admit(session: Session, plan: Plan, wish: FailoverWish) -> tuple[dict[str, Checkpoint], list[str]]:
    """Return the checkpoints to come back from (of a planned one: those so far), and warnings."""
    raised = epoch.is_raised(session, plan)
    meant = _meant(session, plan, wish)
    stuck = ledger.open_run(session, plan.name, ("failover", "migrate"))
    begun = set(ledger.states(session, stuck.run_id)) if stuck is not None else set()
    # One that got stuck is taken over as a whole: what it has begun with is not left halfway.
    taken = stuck is not None and wish.mode == "unplanned" and wish.force and begun <= {row.name for row in meant}
    if not taken or raised:
        drill.require_free(session, plan, "failover")
    if plan.state == "unprotected":
        raise Conflict(
            f"plan {plan.name!r} is not protected",
            code="not-protected",
            hint=f"Begin with: `farshore plan protect {plan.name}`.",
        )
    planned = wish.mode == "planned"
    if planned and wish.checkpoint != selection.LATEST:
        raise Invalid(
            "a planned failover brings the machines up from what it syncs last",
            code="checkpoint-not-latest",
            field="checkpoint",
            hint="Leave the checkpoint out, or use mode: unplanned.",
        )
    source = _left(plan, wish)
    for site in {wish.to_site, *([source] if planned and not raised else [])}:
        state = site_state(session, site)
        if state != "online":
            raise Unavailable(
                f"no node of site {site!r} answers",
                code=f"site-{state}",
                field="mode" if site == source else "to_site",
                hint="If the site is lost, use mode: unplanned."
                if site == source
                else "Start it: `farshore node start --config FILE`.",
                site=site,
            )
    if raised:
        _refuse_others(session, plan, meant, wish)
        chosen = {
            row.name: session.get_one(Checkpoint, row.recovered_from)
            for row in members(session, plan.name)
            if row.recovered_from is not None and row.state == "failing-over"
        }
        return chosen, [f"the epoch is {plan.epoch} already; the run goes on from there"]
    # A planned one comes back from what it syncs last, whatever was published so far.
    chosen = selection.choose(
        session,
        plan,
        wish.checkpoint,
        names={row.name for row in meant if runs_at(plan, row) != wish.to_site},
        allow_suspect=planned or wish.allow_suspect,
    )
    for row in meant:
        if row.name in chosen and row.machine_id is None:
            raise Conflict(f"machine {row.name!r} was not found at its site", code="machine-unresolved")
    return chosen, []


def _refuse_others(session: Session, plan: Plan, meant: list[PlanMachine], wish: FailoverWish) -> None:
    """Refuse a wish for other machines than those that an earlier failover has begun with and not brought up."""
    begun = epoch.unfinished(session, plan)
    if begun != [row.name for row in meant if runs_at(plan, row) != wish.to_site or row.state in _UNFINISHED]:
        groups = [group.name for group in definitions.of_plan(plan).groups() if set(group.machines) & set(begun)]
        raise Conflict(
            f"{', '.join(begun)} of plan {plan.name!r} began to move and did not come up yet",
            code="failover-unfinished",
            field="groups",
            hint="Go on with that first: `farshore failover "
            f"{plan.name} --to {wish.to_site} {' '.join(f'--group {name}' for name in groups)}`.",
            machines=begun,
        )


def _orders(
    session: Session,
    plan: Plan,
    definition: Definition,
    chosen: dict[str, Checkpoint],
    number: int,
    purpose: Purpose,
) -> dict[str, MachineCreateParams]:
    rows = {row.name: row for row in members(session, plan.name)}
    return {name: _order(plan, definition, rows[name], point, number, purpose) for name, point in chosen.items()}


def _order(
    plan: Plan, definition: Definition, row: PlanMachine, point: Checkpoint, number: int, purpose: Purpose
) -> MachineCreateParams:
    name = str(row.home["facts"]["name"]) if purpose == "failback" and row.home is not None else row.name
    made = preview.machine(
        definition,
        selection.choice(row, point),
        purpose,
        tag=_tag(plan, number),
        name=name,
        epoch=number,
        drill_networks={},
    )
    return made.model_copy(update={"replaces": row.old_machine_id})


def frozen(scene: Scene) -> Scene:
    """Return the scene with the plan as it was when the run was ordered."""
    return Scene(scene.tx, scene.ctx, scene.run, scene.plan, definitions.of_run(scene.run))


def raise_epoch(scene: Scene) -> bool:
    """Change the primary: the one transaction after which there is no way back."""
    return epoch.change_primary(scene, "raise-epoch")


# Unplanned ------------------------------------------------------------------------------------------------------------


def _quiet(scene: Scene) -> bool:
    """End all cycles without a word to the source, and wait until the target's part of them has ended.

    What was being published may still come through: it is chosen then, for it is newer.
    """
    tx, run = scene.tx, scene.run
    row = ledger.begin(tx, run.run_id, "quiet")
    groups = {row.group_id for row in epoch.rows(tx, run)}
    open_cycles = select(Cycle.cycle_id).where(Cycle.group_id.in_(groups), Cycle.ended_at.is_(None))
    if tx.scalars(open_cycles).first() is not None:
        protect.stop_cycles(tx, scene.plan.name, groups, abandon=True)
        return False
    chosen = selection.choose(
        tx,
        scene.plan,
        str(run.params["checkpoint"]),
        names=ledger.states(tx, run.run_id),
        allow_suspect=bool(run.params.get("allow_suspect")),
    )
    requested = Stamp(*run.facts["stamp"])
    ledger.release(tx, run.run_id)
    tx.flush()
    machines = {machine.name: machine for machine in ledger.machines(tx, run.run_id)}
    for name, point in chosen.items():
        machines[name].checkpoint_id = point.checkpoint_id
        machines[name].rpo_s = round(requested.age_s(ordered(point)), 3)
    ledger.lease(tx, run.run_id, *(point.checkpoint_id for point in chosen.values()))
    ledger.end(tx, row, "succeeded", ", ".join(sorted({point.checkpoint_id for point in chosen.values()})))
    return True


def _force_epoch(scene: Scene) -> bool:
    """Change the primary by force. The old one is fenced by the first thing that its node is told."""
    return epoch.change_primary(scene, "force-epoch")


# After the epoch ------------------------------------------------------------------------------------------------------


def _maker(scene: Scene) -> boot.Maker:
    """Return what says, of each machine, what is made of it."""
    purpose = purpose_of(scene.definition, scene.run.kind, scene.site())

    def order(name: str) -> MachineCreateParams:
        row = scene.tx.get_one(PlanMachine, (scene.plan.name, name))
        point = scene.tx.get_one(Checkpoint, ledger.machine(scene.tx, scene.run.run_id, name).checkpoint_id)
        return _order(scene.plan, scene.definition, row, point, scene.plan.epoch, purpose)

    return order


def create(scene: Scene) -> bool:
    """Make the first machines at the target."""
    scene = frozen(scene)
    return boot.create(scene, _maker(scene), _heard)


def bring_up(scene: Scene) -> bool:
    """Make the others, start the machines and prove them."""
    scene = frozen(scene)
    purpose = purpose_of(scene.definition, scene.run.kind, scene.site())
    return boot.start(scene, _maker(scene), purpose, scene.plan.epoch, scene.run.created_at, _heard)


def _heard(scene: Scene, machine: RunMachine, event: str) -> None:
    row = scene.tx.get_one(PlanMachine, (scene.plan.name, machine.name))
    if row.state != "failing-over":
        return  # a run that goes on after a failed one finds this machine up already
    if event == "created":
        row.target_machine_id = machine.target_machine_id
        epoch.happen(scene.plan, row, "created")
    elif event == "started":
        epoch.happen(scene.plan, row, "started")
    else:
        epoch.happen(scene.plan, row, "finish")
    scene.tx.changed("machine", str(row.machine_id))


def finish(scene: Scene) -> bool:
    """End the run, after the epoch or before it."""
    tx, run, plan = scene.tx, scene.run, scene.plan
    error = story.error_of(run)
    if run.facts.get("raised") or run.facts.get("resumed"):
        state = boot.end_state(scene) if error is None else "failed"
        if state != "failed":
            if epoch.leaves_some(tx, plan):
                protect.settle(tx, plan)
            else:
                plan.state, plan.last_error = "failed-over", None
            wanted = run.params.get("commit") or scene.definition.commit
            epoch.commit(tx, plan, epoch.rows(tx, run), committed=wanted == "auto")
        if state == "succeeded":  # of one that is partial, machines are still to be made
            for earlier in tx.scalars(select(Run).where(Run.plan == plan.name, Run.kind == run.kind)):
                ledger.release(tx, earlier.run_id)
        ledger.finish(tx, run, state, error)
    else:
        story.conclude(scene, "failed")
    tx.changed("plan", plan.name)
    story.look_around(scene, *(("source", "target") if run.params["mode"] == "planned" else ("target",)))
    return True


BEFORE_EPOCH: Final[Story] = (
    Phase("sync", stopping.sync, "halt", cancellable=True),
    Phase("stop", stopping.stop, "halt", cancellable=True),
    Phase("final", stopping.final, "halt", cancellable=True),
    Phase("fence", stopping.fence, "halt", cancellable=True),
    Phase("epoch", raise_epoch, "halt", cancellable=True, atomic=True),
)
WAY_BACK: Final[Story] = (
    Phase("halt", stopping.halt),
    Phase("unfence", stopping.unfence),
    Phase("restart", stopping.restart),
    Phase("restore", stopping.restore),
    Phase("end", finish),
)

PLANNED: Final[Story] = (
    *BEFORE_EPOCH,
    Phase("create", create, "finish"),
    Phase("boot", bring_up, "finish"),
    Phase("finish", finish),
    *WAY_BACK,
)

UNPLANNED: Final[Story] = (
    Phase("quiet", _quiet, "restore", cancellable=True),
    Phase("epoch", _force_epoch, "restore", cancellable=True, atomic=True),
    Phase("create", create, "finish"),
    Phase("boot", bring_up, "finish"),
    Phase("finish", finish),
    Phase("restore", stopping.restore),
    Phase("end", finish),
)
