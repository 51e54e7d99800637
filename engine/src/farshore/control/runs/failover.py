"""A failover: the plan's machines run at the target from now on.

Planned: sync while running, stop, verified off, final sync of the stopped disks, fence (read back), raise the epoch,
make and start the machines at the target. A failure before the epoch lifts the fences and starts the source again.
Unplanned: not one word to the source; the epoch is raised by force, audited, and the old primary is fenced at first
contact. After the epoch there is no way back but failback; the same failover ordered again goes on where it stopped.
"""

from __future__ import annotations

import time
from typing import Any, Final, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore import errors
from farshore.control import audit, clock, tasks
from farshore.control.clock import Stamp
from farshore.control.nearby import suggestion
from farshore.control.planning import definitions, protect
from farshore.control.runs import boot, drill, ledger, reports, selection, story
from farshore.control.runs.story import Phase, Scene, Story
from farshore.control.scheduling import cycles, fences
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Fence, Machine, Plan, PlanMachine, Run, RunMachine, Task
from farshore.control.views.places import site_state
from farshore.control.views.points import newest
from farshore.control.views.protection import members, ordered, record
from farshore.errors import Conflict, FarshoreError, Invalid, Permanent, Unavailable
from farshore.model.base import Model, Name
from farshore.model.plan import Plan as Definition
from farshore.model.task import MachineCreateParams, MachineFenceParams, MachineParams, MachineResult, MachineStopParams
from farshore.recovery import preview, states
from farshore.recovery.plan import Order
from farshore.recovery.states import Event
from farshore.units import format_size


class FailoverWish(Model):
    """Active at ``to_site``. ``force`` is recorded; an unplanned failover always says that the source is lost.

    ``allow_suspect``: take a checkpoint too that an audit or a scrub has found wanting.
    """

    to_site: Name
    mode: Literal["planned", "unplanned"] = "planned"
    checkpoint: str = selection.LATEST
    force: bool = False
    allow_suspect: bool = False


def is_done(session: Session, name: str, wish: FailoverWish) -> bool:
    """Say whether the plan is active at the wanted site, with all machines up.

    Raises:
        NotFound: no such plan.
        Invalid: the plan has no such site.
        Conflict: it cannot fail over to there now.
    """
    plan = record(session, name)
    definition = Definition.model_validate(plan.definition)
    both = (definition.source_site, definition.target_site)
    if wish.to_site not in both:
        raise Invalid(
            f"plan {name!r} has no site {wish.to_site!r}",
            code="site-unknown",
            field="to_site",
            hint=suggestion(wish.to_site, both, " in the plan"),
        )
    if plan.active_site == wish.to_site and all(row.state != "failing-over" for row in members(session, name)):
        return True
    if wish.to_site == definition.source_site and plan.active_site == definition.target_site:
        raise Conflict(
            f"plan {name!r} is active at {plan.active_site!r}, and nothing replicates back to {wish.to_site!r} yet",
            code="failback-unavailable",
            field="to_site",
            hint="The way back needs replication in the other direction, which this version does not offer.",
        )
    return False


def preview_of(session: Session, name: str, wish: FailoverWish) -> dict[str, Any]:
    """Return what a failover would do. Errors: as :func:`request`."""
    plan = record(session, name)
    before = {"active_site": plan.active_site, "epoch": plan.epoch}
    if is_done(session, name, wish):
        return {"changed": False, "before": before, "after": before, "warnings": []}
    definition = Definition.model_validate(plan.definition)
    chosen, warnings = _admit(session, plan, definition, wish)
    orders = _orders(session, plan, definition, chosen, _epoch_after(plan))
    now = clock.now()
    planned = wish.mode == "planned"
    waves = Order.of(definition).waves()
    if not planned and site_state(session, definition.source_site) == "online":
        warnings.append(
            f"site {definition.source_site!r} answers: a planned failover would lose nothing; this one loses what was"
            " written since the checkpoint"
        )
    return {
        "changed": True,
        "before": before,
        "after": {
            "active_site": wish.to_site,
            "epoch": _epoch_after(plan),
            **preview.describe(list(orders.values()), [], definition),
            "stop": list(reversed(waves)) if planned else [],
            "checkpoints": {machine: point.checkpoint_id for machine, point in chosen.items()},
            "rpo_s": {
                machine: 0.0 if planned else round(now.age_s(ordered(point)), 3) for machine, point in chosen.items()
            },
        },
        "warnings": warnings,
    }


def request(tx: Transaction, name: str, wish: FailoverWish, actor: str) -> Run | None:
    """Insert a failover; None if the plan is active at the wanted site already.

    Raises:
        NotFound, Invalid, Conflict, Unavailable, Permanent: why it cannot run; nothing is changed then.
    """
    if is_done(tx, name, wish):
        return None
    plan = record(tx, name)
    definition = Definition.model_validate(plan.definition)
    chosen, _ = _admit(tx, plan, definition, wish)
    _orders(tx, plan, definition, chosen, _epoch_after(plan))
    resumed = _is_raised(tx, plan)
    _supersede(tx, plan, actor)
    run = ledger.create(tx, "failover", plan, actor, wish.model_dump(), workflow=True)
    now = clock.now()
    ledger.note(
        tx,
        run,
        definition=plan.definition,
        epoch_seen=plan.epoch,
        resumed=resumed,
        stamp=[now.wall_s, now.boot_s, now.boot_id],
        tag=f"failover-{name}-{_epoch_after(plan)}",
        powers={row.name: _power(tx, row) for row in members(tx, name)},
    )
    ledger.add_machines(tx, run, chosen)
    for machine_name, point in chosen.items():
        machine = ledger.machine(tx, run.run_id, machine_name)
        machine.target_name = machine_name
        if wish.mode == "unplanned" or resumed:
            machine.checkpoint_id = point.checkpoint_id
            machine.rpo_s = round(now.age_s(ordered(point)), 3)
            ledger.lease(tx, run.run_id, point.checkpoint_id)
    if not resumed:
        plan.state = "failing-over"
        for row in _rows(tx, run):
            if row.state != "failing-over":
                _event(plan, row, "begin")
    detail = "goes on after the epoch" if resumed else f"{wish.mode}, epoch {plan.epoch}"
    ledger.done(tx, run.run_id, "preflight", detail)
    tx.changed("plan", name)
    return run


def _supersede(tx: Transaction, plan: Plan, actor: str) -> None:
    """End a failover that got stuck before the epoch, because the source was lost in the middle of it.

    What it still wants of the source is taken back without a word to it. Only a forced, unplanned failover gets here.
    """
    stuck = ledger.open_run(tx, plan.name, ("failover",))
    if stuck is None:
        return
    now = time.time()
    for task in tx.scalars(select(Task).where(Task.run_id == stuck.run_id, Task.state.not_in(tasks.ENDED))):
        task.cancel, task.state, task.ended_at = True, "cancelled", now
    protect.stop_cycles(tx, plan.name, abandon=True)
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
    if _is_raised(session, session.get_one(Plan, run.plan)):
        raise Conflict(
            f"the epoch of plan {run.plan!r} was raised; only failback leads back",
            code="past-epoch",
            hint="Let the run end. If it fails, order the same failover again.",
        )


def _is_raised(session: Session, plan: Plan) -> bool:
    return any(row.raised and row.state == "failing-over" for row in members(session, plan.name))


def _epoch_after(plan: Plan) -> int:
    definition = Definition.model_validate(plan.definition)
    return plan.epoch + (plan.active_site == definition.source_site)


def _admit(
    session: Session, plan: Plan, definition: Definition, wish: FailoverWish
) -> tuple[dict[str, Checkpoint], list[str]]:
    """Return the checkpoints to come back from (of a planned one: those so far), and warnings."""
    stuck = ledger.open_run(session, plan.name, ("failover",))
    if stuck is None or not (wish.mode == "unplanned" and wish.force) or _is_raised(session, plan):
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
    for site in {definition.target_site, *([definition.source_site] if planned else [])}:
        state = site_state(session, site)
        if state != "online":
            raise Unavailable(
                f"no node of site {site!r} answers",
                code=f"site-{state}",
                field="mode" if site == definition.source_site else "to_site",
                hint="If the site is lost, use mode: unplanned."
                if site == definition.source_site
                else "Start it: `farshore node start --config FILE`.",
                site=site,
            )
    if _is_raised(session, plan):
        chosen = {
            row.name: session.get_one(Checkpoint, row.recovered_from)
            for row in members(session, plan.name)
            if row.recovered_from is not None
        }
        return chosen, [f"the epoch is {plan.epoch} already; the run goes on from there"]
    # A planned one comes back from what it syncs last, whatever was published so far.
    chosen = selection.choose(session, plan, wish.checkpoint, allow_suspect=planned or wish.allow_suspect)
    for row in members(session, plan.name):
        if row.name in chosen and row.machine_id is None:
            raise Conflict(f"machine {row.name!r} was not found at its site", code="machine-unresolved")
    return chosen, []


def _rows(session: Session, run: Run) -> list[PlanMachine]:
    names = {machine.name for machine in ledger.machines(session, run.run_id)}
    return [row for row in members(session, run.plan) if row.name in names]


def _power(session: Session, row: PlanMachine) -> str:
    machine = session.get(Machine, (row.site, row.machine_id)) if row.machine_id else None
    return str(machine.facts["power"]) if machine is not None else "unknown"


def _event(plan: Plan, row: PlanMachine, event: Event) -> None:
    """Let something happen to a machine if the rules allow it.

    Raises:
        Conflict: they do not; the caller does not go on.
    """
    before = states.Machine(row.state, plan.epoch, row.source_state, row.target_state, row.raised)  # type: ignore[arg-type]
    after = states.apply(before, event)
    row.state, row.source_state, row.target_state = after.state, after.source, after.target
    row.raised = after.raised


def _orders(
    session: Session, plan: Plan, definition: Definition, chosen: dict[str, Checkpoint], epoch: int
) -> dict[str, MachineCreateParams]:
    rows = {row.name: row for row in members(session, plan.name)}
    return {name: _order(plan, definition, rows[name], point, epoch) for name, point in chosen.items()}


def _order(plan: Plan, definition: Definition, row: PlanMachine, point: Checkpoint, epoch: int) -> MachineCreateParams:
    return preview.machine(
        definition,
        selection.choice(row, point),
        "failover",
        tag=f"failover-{plan.name}-{epoch}",
        name=row.name,
        epoch=epoch,
        drill_networks={},
    )


def _frozen(scene: Scene) -> Scene:
    return Scene(scene.tx, scene.ctx, scene.run, scene.plan, definitions.of_run(scene.run))


# Before the epoch -----------------------------------------------------------------------------------------------------


def _sync(scene: Scene) -> bool:
    """Copy while the machines run, so that the final sync is short."""
    return _cycles(scene, "sync")


def _final(scene: Scene) -> bool:
    """Copy what was written until the machines were off. These checkpoints have everything: the RPO is 0."""
    if not _cycles(scene, "final"):
        return False
    for cycle in _of(scene, "final"):
        point = scene.tx.get_one(Checkpoint, cycle.checkpoint_id)
        ledger.lease(scene.tx, scene.run.run_id, point.checkpoint_id)
        for row in _rows(scene.tx, scene.run):
            if row.group_id == cycle.group_id:
                machine = ledger.machine(scene.tx, scene.run.run_id, row.name)
                machine.checkpoint_id, machine.rpo_s = point.checkpoint_id, 0.0
    return True


def _of(scene: Scene, purpose: str) -> list[Cycle]:
    return list(scene.tx.scalars(select(Cycle).where(Cycle.run_id == scene.run.run_id, Cycle.purpose == purpose)))


def _cycles(scene: Scene, purpose: str) -> bool:
    tx, run = scene.tx, scene.run
    row = ledger.begin(tx, run.run_id, "sync" if purpose == "sync" else "final sync")
    found = _of(scene, purpose)
    if not found:
        protect.stop_cycles(tx, scene.plan.name)
        for group_id in sorted({member.group_id for member in _rows(tx, run)}):
            cycles.create(tx, scene.plan, group_id, purpose, run_id=run.run_id)
        return False
    if any(cycle.ended_at is None for cycle in found):
        return False
    for cycle in found:
        if cycle.stats is None:
            error = errors.from_dict(cycle.error or {})
            ledger.end(tx, row, "failed", error=error)
            raise error
    moved = sum(int((cycle.stats or {}).get("moved_bytes", 0)) for cycle in found)
    ledger.end(tx, row, "succeeded", f"{format_size(moved)} moved")
    return True


def _stop(scene: Scene) -> bool:
    """Stop the machines, those that others depend on last, each wave when the one before is verified off."""
    tx, run = scene.tx, scene.run
    rows = {row.name: row for row in _rows(tx, run)}
    for wave in reversed(Order.of(scene.definition).waves()):
        through = True
        for name in wave:
            if name not in rows:
                continue
            machine = ledger.machine(tx, run.run_id, name)
            machine.stop_ordered_at = machine.stop_ordered_at or time.time()
            task = story.order(
                scene,
                "stop",
                "machine-stop",
                scene.site("source"),
                MachineStopParams(
                    machine_id=str(rows[name].machine_id),
                    epoch=scene.plan.epoch,
                    timeout_s=scene.definition.shutdown.timeout,
                    on_timeout=scene.definition.shutdown.on_timeout,
                ),
                machine=name,
            )
            if task is None:
                through = False
                continue
            result = _result(task)
            if result.power != "off":
                raise Permanent(
                    f"machine {name!r} is {result.power} after it was stopped", code="not-verified-off", machine=name
                )
            story.detail(scene, "stop", f"verified off; {result.detail}".rstrip("; "), name)
            _event(scene.plan, rows[name], "stopped")
        if not through:
            return False
    return True


def _fence(scene: Scene) -> bool:
    """Keep the old primaries from starting, and read that back."""
    through = True
    for row in _rows(scene.tx, scene.run):
        task = story.order(
            scene,
            "fence",
            "machine-fence",
            scene.site("source"),
            # Marked with the epoch to come: whoever still acts in this one is refused from now on.
            MachineFenceParams(machine_id=str(row.machine_id), epoch=scene.plan.epoch + 1),
            machine=row.name,
        )
        if task is None:
            through = False
            continue
        result = _result(task)
        if not result.fenced:
            raise Permanent(f"the fence of machine {row.name!r} did not hold", code="fence-not-kept", machine=row.name)
        if result.power != "off":
            raise Permanent(
                f"machine {row.name!r} is {result.power} although it was stopped",
                code="not-verified-off",
                machine=row.name,
            )
        story.detail(scene, "fence", "fenced, verified off", row.name)
        _event(scene.plan, row, "fenced")
    return through


def _result(task: Task) -> MachineResult:
    if task.state != "succeeded":
        raise tasks.failure(task)
    return MachineResult.model_validate(task.result)


def _raise_epoch(scene: Scene) -> bool:
    """Change the primary: the one transaction after which there is no way back."""
    return _change_primary(scene, "raise-epoch")


# Unplanned ------------------------------------------------------------------------------------------------------------


def _quiet(scene: Scene) -> bool:
    """End all cycles without a word to the source, and wait until the target's part of them has ended.

    What was being published may still come through: it is chosen then, for it is newer.
    """
    tx, run = scene.tx, scene.run
    row = ledger.begin(tx, run.run_id, "quiet")
    running = tx.scalars(select(Cycle).where(Cycle.plan == scene.plan.name, Cycle.ended_at.is_(None))).all()
    if running:
        protect.stop_cycles(tx, scene.plan.name, abandon=True)
        return False
    chosen = selection.choose(
        tx, scene.plan, str(run.params["checkpoint"]), allow_suspect=bool(run.params.get("allow_suspect"))
    )
    requested = Stamp(*run.facts["stamp"])
    ledger.release(tx, run.run_id)
    tx.flush()
    for name, point in chosen.items():
        machine = ledger.machine(tx, run.run_id, name)
        machine.checkpoint_id = point.checkpoint_id
        machine.rpo_s = round(requested.age_s(ordered(point)), 3)
        ledger.lease(tx, run.run_id, point.checkpoint_id)
    ledger.end(tx, row, "succeeded", ", ".join(sorted({point.checkpoint_id for point in chosen.values()})))
    return True


def _force_epoch(scene: Scene) -> bool:
    """Change the primary by force. The old one is fenced by the first thing that its node is told."""
    return _change_primary(scene, "force-epoch")


def _change_primary(scene: Scene, event: Event) -> bool:
    tx, run, plan = scene.tx, scene.run, scene.plan
    if run.facts.get("raised"):
        return True
    row = ledger.begin(tx, run.run_id, "raise epoch")
    chosen = {machine.name: machine.checkpoint_id for machine in ledger.machines(tx, run.run_id)}
    members_of = _rows(tx, run)
    for member in members_of:
        _event(plan, member, event)
        member.recovered_from = chosen[member.name]
    before, plan.epoch = plan.epoch, plan.epoch + 1
    plan.active_site = scene.site()
    if event == "force-epoch":
        for member in members_of:
            _order_fence(scene, member)
    audit.record(
        tx,
        run.actor,
        event,
        plan.name,
        run=run.run_id,
        epoch_seen=run.facts["epoch_seen"],
        epoch=plan.epoch,
        to_site=plan.active_site,
        force=event == "force-epoch" or bool(run.params.get("force")),
        checkpoints=chosen,
    )
    ledger.note(tx, run, raised=True, epoch=plan.epoch)
    ledger.end(tx, row, "succeeded", f"{before} to {plan.epoch}; active at {plan.active_site}")
    tx.changed("plan", plan.name)
    return True


def _order_fence(scene: Scene, member: PlanMachine) -> None:
    machine_id = str(member.machine_id)
    fence = Fence(
        site=member.site,
        machine_id=machine_id,
        plan=scene.plan.name,
        machine=member.name,
        epoch=scene.plan.epoch,
        created_at=time.time(),
        attempts=0,
        not_before=0.0,
        done_at=None,
        error=None,
    )
    task = tasks.ensure(
        scene.tx,
        fences.key(fence),
        "machine-fence",
        member.site,
        # It may still run: nobody has stopped it.
        MachineFenceParams(machine_id=machine_id, epoch=scene.plan.epoch, power_off=True),
        plan=scene.plan.name,
        machine=member.name,
    )
    fence.task_id = task.task_id
    scene.tx.merge(fence)


# After the epoch ------------------------------------------------------------------------------------------------------


def _create(scene: Scene) -> bool:
    scene = _frozen(scene)

    def order(name: str) -> MachineCreateParams:
        row = scene.tx.get_one(PlanMachine, (scene.plan.name, name))
        point = scene.tx.get_one(Checkpoint, ledger.machine(scene.tx, scene.run.run_id, name).checkpoint_id)
        return _order(scene.plan, scene.definition, row, point, scene.plan.epoch)

    return boot.create(scene, order, _heard)


def _boot(scene: Scene) -> bool:
    return boot.start(_frozen(scene), "failover", scene.plan.epoch, scene.run.created_at, _heard)


def _heard(scene: Scene, machine: RunMachine, event: str) -> None:
    row = scene.tx.get_one(PlanMachine, (scene.plan.name, machine.name))
    if row.state != "failing-over":
        return  # a run that goes on after a failed one finds this machine up already
    if event == "created":
        row.target_machine_id = machine.target_machine_id
        _event(scene.plan, row, "created")
    elif event == "started":
        _event(scene.plan, row, "started")
    else:
        _event(scene.plan, row, "finish")
    scene.tx.changed("machine", str(row.machine_id))


def _finish(scene: Scene) -> bool:
    tx, run, plan = scene.tx, scene.run, scene.plan
    error = story.error_of(run)
    if run.facts.get("raised") or run.facts.get("resumed"):
        state = boot.end_state(scene) if error is None else "failed"
        if state != "failed":
            plan.state = "failed-over"
            plan.last_error = None
            for earlier in tx.scalars(select(Run).where(Run.plan == plan.name, Run.kind == "failover")):
                ledger.release(tx, earlier.run_id)
        ledger.finish(tx, run, state, error)
    else:
        cancelled = run.cancel and (error is None or error.code == "cancelled")
        ledger.finish(tx, run, "cancelled" if cancelled else "failed", error)
    tx.changed("plan", plan.name)
    reports.seal(tx, scene.ctx, run)
    story.look_around(scene, *(("source", "target") if run.params["mode"] == "planned" else ("target",)))
    return True


# The way back, before the epoch ---------------------------------------------------------------------------------------


def _halt(scene: Scene) -> bool:
    """Stop what the run has at work."""
    if scene.run.facts.get("raised"):
        return True
    running = [cycle for purpose in ("sync", "final") for cycle in _of(scene, purpose) if cycle.ended_at is None]
    for cycle in running:
        cycle.cancel = True
    return story.quiet(scene) and not running


def _unfence(scene: Scene) -> bool:
    """Lift the fences of machines whose fence was ordered, whether or not it was seen to hold."""
    if scene.run.facts.get("raised"):
        return True  # after the epoch nothing is undone at the source
    through = True
    for row in _rows(scene.tx, scene.run):
        if ledger.step(scene.tx, scene.run.run_id, "fence", row.name) is None:
            continue
        task = story.order(
            scene,
            "unfence",
            "machine-unfence",
            scene.site("source"),
            MachineParams(machine_id=str(row.machine_id), epoch=_epoch_to_come(scene)),
            machine=row.name,
            patient=True,
        )
        if task is None:
            through = False
        elif task.state != "succeeded":
            _keep(scene, tasks.failure(task))
        else:
            _event(scene.plan, row, "unfenced")
    return through


def _restart(scene: Scene) -> bool:
    """Start the machines again that were on before, in boot order."""
    if scene.run.facts.get("raised"):
        return True
    powers: dict[str, str] = scene.run.facts.get("powers", {})
    rows = {row.name: row for row in _rows(scene.tx, scene.run)}
    for wave in Order.of(scene.definition).waves():
        through = True
        for name in wave:
            if name not in rows or ledger.step(scene.tx, scene.run.run_id, "stop", name) is None:
                continue
            if powers.get(name) == "off":
                _event(scene.plan, rows[name], "restarted")
                continue
            task = story.order(
                scene,
                "start again",
                "machine-start",
                scene.site("source"),
                MachineParams(machine_id=str(rows[name].machine_id), epoch=_epoch_to_come(scene)),
                machine=name,
                patient=True,
            )
            if task is None:
                through = False
            elif task.state != "succeeded":
                _keep(scene, tasks.failure(task))
            else:
                _event(scene.plan, rows[name], "restarted")
        if not through:
            return False
    return True


def _epoch_to_come(scene: Scene) -> int:
    """Return the epoch that this run wanted to begin, the mark of its fences; a later one's are not its to lift."""
    return int(scene.run.facts["epoch_seen"]) + 1


def _keep(scene: Scene, error: FarshoreError) -> None:
    """Note what went wrong on the way back; the rest of the way is gone all the same."""
    found = [*scene.run.facts.get("way_back", []), error.to_dict()]
    ledger.note(scene.tx, scene.run, way_back=found)


def _restore(scene: Scene) -> bool:
    """Give plan and machines the state that they had: protected at the source."""
    if scene.run.facts.get("raised"):
        return True
    for row in _rows(scene.tx, scene.run):
        if row.state == "failing-over":
            _event(scene.plan, row, "abort")
            # Not verified off: whatever comes next has to find out anew.
            row.source_state = "running"
            point = newest(scene.tx, scene.plan, row.group_id)
            if point is None or not selection.holds(point, row):
                row.state = "seeding"
    scene.plan.state = "protected"
    protect.settle(scene.tx, scene.plan)
    return True


PLANNED: Final[Story] = (
    Phase("sync", _sync, "halt", cancellable=True),
    Phase("stop", _stop, "halt", cancellable=True),
    Phase("final", _final, "halt", cancellable=True),
    Phase("fence", _fence, "halt", cancellable=True),
    Phase("epoch", _raise_epoch, "halt", cancellable=True, atomic=True),
    Phase("create", _create, "finish"),
    Phase("boot", _boot, "finish"),
    Phase("finish", _finish),
    Phase("halt", _halt),
    Phase("unfence", _unfence),
    Phase("restart", _restart),
    Phase("restore", _restore),
    Phase("end", _finish),
)

UNPLANNED: Final[Story] = (
    Phase("quiet", _quiet, "restore", cancellable=True),
    Phase("epoch", _force_epoch, "restore", cancellable=True, atomic=True),
    Phase("create", _create, "finish"),
    Phase("boot", _boot, "finish"),
    Phase("finish", _finish),
    Phase("restore", _restore),
    Phase("end", _finish),
)
