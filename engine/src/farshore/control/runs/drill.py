"""A drill: bring a plan's machines up in an isolated network at the target, prove them, take everything away again.

Nothing of it touches the source, a replica or a checkpoint; replication goes on. All that is made carries the run's id
as its tag, and the sweep by that tag proves that nothing is left. That the network leads nowhere is proven before the
first machine is on, and counted again before the last one is off.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import clock, forecast, ids, inventory, tasks
from farshore.control.planning import definitions
from farshore.control.runs import boot, ledger, selection, sights, story, subset
from farshore.control.runs.story import Phase, Scene, Story
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Group, Plan, PlanMachine, Run
from farshore.control.views.places import site_state
from farshore.control.views.protection import direction, members, ordered, record, runs_at
from farshore.errors import Conflict, Permanent, Unavailable
from farshore.model.base import Model
from farshore.model.plan import Plan as Definition
from farshore.model.plan import RecoverySource
from farshore.model.task import (
    IsolationParams,
    IsolationResult,
    LookParams,
    LookResult,
    MachineCreateParams,
    NetworkCreateParams,
    SweepParams,
    SweepResult,
)
from farshore.recovery import preview
from farshore.recovery.preview import Choice

#: Sweeps that may find something left before the run says so and ends.
MOST_SWEEPS: Final = 5
#: What stands for the random part of a name in a preview.
_TO_COME: Final = "x"


class DrillWish(Model):
    """``checkpoint``: ``latest``, ``latest_clean``, an id, a label, or a time. ``keep``: leave it running.

    ``allow_suspect``: take a checkpoint too that an audit or a scrub has found wanting. ``recovery_settings``: those of
    the plan now, or those that the checkpoint carries; default: as the plan says. ``groups``: only the machines of
    these boot groups; default: all that were not moved to the other site.
    """

    checkpoint: str = selection.LATEST
    keep: bool = False
    allow_suspect: bool = False
    recovery_settings: RecoverySource | None = None
    groups: subset.Groups = None


def preview_of(session: Session, name: str, wish: DrillWish) -> dict[str, Any]:
    """Return what a drill would make.

    Raises:
        NotFound, Conflict, Unavailable, Permanent: why it cannot run.
    """
    plan = record(session, name)
    require_free(session, plan, "drill")
    chosen = _chosen(session, plan, wish)
    picks = _choices(session, plan, chosen)
    used = selection.settings(plan, picks, wish.recovery_settings)
    definition = used.definition
    names = {machine: f"{machine}-drill-{_TO_COME * 6}" for machine in chosen}
    networks = {item.source: f"farshore-drill-{_TO_COME * 8}" for item in definition.networks}
    orders = [
        preview.machine(
            definition, pick, "drill", tag="run", name=names[pick.name], epoch=plan.epoch, drill_networks=networks
        )
        for pick in picks
    ]
    now = clock.now()
    warnings = selection.doubts(chosen)
    target = direction(plan).target
    if site_state(session, target) != "online":
        warnings.append(f"no node of site {target!r} answers")
    told = preview.describe(orders, preview.networks(definition, picks, networks, "run"), definition, chosen)
    there = inventory.at(session, target)
    if there is not None and there.probe_helper:
        told["networks"] = [{**one, "admits": f"probes by {there.probe_helper}"} for one in told["networks"]]
    return {
        "changed": True,
        "before": {"machines": [], "networks": []},
        "after": {
            **told,
            **_left_out(session, plan, chosen),
            **used.told(),
            "checkpoints": {machine: point.checkpoint_id for machine, point in chosen.items()},
            "rpo_s": {machine: round(now.age_s(ordered(point)), 3) for machine, point in chosen.items()},
            **forecast.of(session, plan, dict(zip(chosen, orders, strict=True)), chosen, verb="drill"),
        },
        "warnings": warnings,
    }


def request(tx: Transaction, name: str, wish: DrillWish, actor: str) -> Run:
    """Insert a drill with its checkpoints leased; the orchestrator takes it from here. Errors: as the preview."""
    plan = record(tx, name)
    require_free(tx, plan, "drill")
    target = direction(plan).target
    if site_state(tx, target) != "online":
        raise Unavailable(
            f"no node of site {target!r} answers",
            code=f"site-{site_state(tx, target)}",
            hint="Start it: `farshore node start --config FILE`.",
            site=target,
        )
    chosen = _chosen(tx, plan, wish)
    used = selection.settings(plan, _choices(tx, plan, chosen), wish.recovery_settings)
    definition = used.definition
    run = ledger.create(tx, "drill", plan, actor, wish.model_dump(), workflow=True)
    suffix = ids.short(6)
    ledger.note(
        tx,
        run,
        tag=run.run_id,
        networks={item.source: f"farshore-drill-{ids.short(8)}" for item in definition.networks},
        definition=plan.definition if used.origin == "current" else definition.model_dump(mode="json"),
        **used.told(),
        **_left_out(tx, plan, chosen),
    )
    ledger.add_machines(tx, run, chosen)
    now = clock.now()
    for machine in ledger.machines(tx, run.run_id):
        point = chosen[machine.name]
        machine.checkpoint_id = point.checkpoint_id
        machine.target_name = f"{machine.name}-drill-{suffix}"
        machine.rpo_s = round(now.age_s(ordered(point)), 3)
    ledger.lease(tx, run.run_id, *(point.checkpoint_id for point in chosen.values()))
    ledger.done(tx, run.run_id, "lease", ", ".join(sorted({point.checkpoint_id for point in chosen.values()})))
    _orders(tx, run, plan, definition)  # what cannot be made is refused now, not in the middle
    return run


def first_phase(run: Run) -> str:
    """Return the phase that a drill begins with, or goes on with when the orchestrator has lost it.

    Nothing is made again once the clean-up has begun.
    """
    if run.facts.get("sweeps"):
        return "clean-up"
    return "halt" if "error" in run.facts else "network"


def kept(session: Session, plan: str) -> Run | None:
    """Return the plan's drill that was left running, None if there is none."""
    return ledger.kept_drill(session, plan)


def end(tx: Transaction, name: str, actor: str) -> Run | None:
    """Order the clean-up of a kept drill; None if there is none."""
    plan = record(tx, name)
    drill = kept(tx, name)
    if drill is None:
        running = ledger.open_run(tx, name, ("drill",))
        if running is not None:
            raise Conflict(
                f"drill {running.run_id} of plan {name!r} has not ended",
                code="drill-running",
                hint=f"It cleans up by itself. To stop it: `farshore run cancel {running.run_id}`.",
            )
        return None
    cleaning = ledger.open_run(tx, name, ("cleanup",))
    if cleaning is not None:
        return cleaning
    run = ledger.create(tx, "cleanup", plan, actor, {"drill": drill.run_id}, workflow=True)
    # Swept where the drill was, whatever the plan says by now.
    run.from_site, run.to_site = drill.from_site, drill.to_site
    ledger.note(tx, run, tag=drill.run_id, of=drill.run_id, definition=drill.facts["definition"])
    return run


def require_free(session: Session, plan: Plan, wanted: str) -> None:
    """Refuse while a drill, a failover or a clean-up of the plan has not ended."""
    running = ledger.open_run(session, plan.name, ledger.RECOVERIES)
    if running is not None:
        raise Conflict(
            f"{running.kind} {running.run_id} of plan {plan.name!r} has not ended",
            code=f"{running.kind}-running",
            hint=f"Watch it (`farshore run watch {running.run_id}`) or stop it (`farshore run cancel`).",
            run=running.run_id,
        )
    if wanted == "drill":
        ledger.refuse_kept_drill(session, plan.name)


def _chosen(session: Session, plan: Plan, wish: DrillWish) -> dict[str, Checkpoint]:
    names = [row.name for row in subset.rows(session, plan, wish.groups) if runs_at(plan, row) == plan.active_site]
    return selection.choose(session, plan, wish.checkpoint, names=names, allow_suspect=wish.allow_suspect)


def _left_out(session: Session, plan: Plan, chosen: dict[str, Checkpoint]) -> dict[str, list[str]]:
    """Return the protected machines that are not rehearsed, where that is not all of them."""
    left = subset.left_out(session, plan, chosen)
    return {"left_out": left} if left else {}


def _choices(session: Session, plan: Plan, chosen: dict[str, Checkpoint]) -> list[Choice]:
    rows: dict[str, PlanMachine] = {row.name: row for row in members(session, plan.name)}
    return [selection.choice(rows[name], point) for name, point in chosen.items()]


def _orders(
    session: Session, run: Run, plan: Plan, definition: Definition
) -> tuple[dict[str, MachineCreateParams], list[NetworkCreateParams]]:
    machines = ledger.machines(session, run.run_id)
    chosen = {machine.name: session.get_one(Checkpoint, machine.checkpoint_id) for machine in machines}
    picks = _choices(session, plan, chosen)
    networks: dict[str, str] = run.facts["networks"]
    names = {machine.name: str(machine.target_name) for machine in machines}
    orders = {
        pick.name: preview.machine(
            definition,
            pick,
            "drill",
            tag=run.run_id,
            name=names[pick.name],
            epoch=plan.epoch,
            drill_networks=networks,
        )
        for pick in picks
    }
    return orders, preview.networks(definition, picks, networks, run.run_id)


def _frozen(scene: Scene) -> Scene:
    """Return the scene with the plan as it was when the drill was ordered."""
    return Scene(scene.tx, scene.ctx, scene.run, scene.plan, definitions.of_run(scene.run))


def _network(scene: Scene) -> bool:
    scene = _frozen(scene)
    _, networks = _orders(scene.tx, scene.run, scene.plan, scene.definition)
    through = True
    for params in networks:
        step = f"network {params.name}"
        task = story.order(scene, step, "network-create", scene.site(), params)
        if task is None:
            through = False
        elif task.state != "succeeded":
            raise tasks.failure(task)
        else:
            story.detail(scene, step, f"{params.subnet}, isolated")
    return through


def _isolation(scene: Scene) -> bool:
    """Prove that the networks lead nowhere, before anything is plugged into them."""
    return _proof(scene, "isolation", canaries=True)


def _packets(scene: Scene) -> bool:
    """Count what the machines have sent since then that went anywhere else than to each other."""
    if scene.run.cancel or "isolation" not in scene.run.facts:
        return True
    return _proof(scene, "packets outside", canaries=False)


def _proof(scene: Scene, step: str, *, canaries: bool) -> bool:
    """Have the isolation of the run's networks proven.

    Raises:
        Permanent: they lead somewhere (``not-isolated``).
    """
    scene = _frozen(scene)
    tx, run = scene.tx, scene.run
    _, networks = _orders(tx, run, scene.plan, scene.definition)
    names = tuple(params.name for params in networks)
    if not names:
        ledger.done(tx, run.run_id, step, "no machine is plugged into anything")
        return True
    params = IsolationParams(tag=run.run_id, networks=names, canaries=canaries)
    task = story.order(scene, step, "isolation", scene.site(), params)
    if task is None:
        return False
    if task.state != "succeeded":
        raise tasks.failure(task)
    result = IsolationResult.model_validate(task.result)
    before = run.facts.get("isolation", {})
    told = result.model_dump(mode="json")
    ledger.note(tx, run, isolation={**told, "canaries": told["canaries"] or before.get("canaries", [])})
    if not result.proven:
        error = Permanent(
            f"the drill's network is not isolated: {result.reason}",
            code="not-isolated",
            hint="Nothing is started in it. Look for rules of the hypervisor that let its guests through.",
        )
        row = ledger.begin(tx, run.run_id, step)
        row.state, row.detail, row.error = "failed", error.message[: ledger.LONGEST_DETAIL], error.to_dict()
        raise error
    outside, stopped = (sum(getattr(one, name) for one in result.packets) for name in ("outside", "stopped"))
    tried = [f"{sum(not one.control for one in result.canaries)} canaries closed"] if result.canaries else []
    tried += [f"{sum(one.control for one in result.canaries)} controls reached"] if result.canaries else []
    story.detail(scene, step, ", ".join([*tried, f"{outside} packets outside, {stopped} stopped"]))
    return True


def _maker(scene: Scene) -> boot.Maker:
    """Return what says, of each machine, what is made of it; worked out when it is asked for the first time."""
    orders: dict[str, MachineCreateParams] = {}

    def order(name: str) -> MachineCreateParams:
        if not orders:
            orders.update(_orders(scene.tx, scene.run, scene.plan, scene.definition)[0])
        return orders[name]

    return order


def _create(scene: Scene) -> bool:
    scene = _frozen(scene)
    return boot.create(scene, _maker(scene))


def _boot(scene: Scene) -> bool:
    scene = _frozen(scene)
    return boot.start(scene, _maker(scene), "drill", scene.plan.epoch, scene.run.started_at or time.time())


def _look(scene: Scene) -> bool:
    """Keep what each machine shows, green or not; that it cannot be had fails nothing."""
    if scene.run.cancel:
        return True
    through = True
    for machine in ledger.machines(scene.tx, scene.run.run_id):
        if machine.target_machine_id is None or machine.state in {"pending", "created", "skipped"}:
            continue
        params = LookParams(machine_id=machine.target_machine_id)
        task = story.order(scene, "look", "machine-look", scene.site(), params, machine=machine.name)
        if task is None:
            through = False
        elif task.state == "succeeded" and task.result is not None:
            seen = LookResult.model_validate(task.result)
            story.detail(scene, "look", sights.keep(scene.tx, scene.ctx, scene.run, machine.name, seen), machine.name)
            task.result = None  # it is in the records of the run now
    return through


def _keep(scene: Scene) -> bool:
    """Leave a good drill running if that was asked for."""
    if scene.run.params.get("keep") and not scene.run.cancel and boot.end_state(scene) == "succeeded":
        ledger.note(scene.tx, scene.run, kept=True)
    return True


def _halt(scene: Scene) -> bool:
    return bool(scene.run.facts.get("kept")) or story.quiet(scene)


def _clean_up(scene: Scene) -> bool:
    """Sweep until a sweep finds that nothing is left; that answer is the proof."""
    if scene.run.facts.get("kept"):
        return True
    scene = _frozen(scene) if "definition" in scene.run.facts else scene
    tag = str(scene.run.facts["tag"])
    number = int(scene.run.facts.get("sweeps", 0))
    if number and not scene.run.facts.get("remaining"):
        return True
    step = "clean-up" if number == 0 else f"clean-up {number + 1}"
    task = story.order(scene, step, "sweep", scene.site(), SweepParams(tag=tag), patient=True, pause_s=2.0 * number)
    if task is None:
        return False
    if task.state != "succeeded":
        raise tasks.failure(task)
    result = SweepResult.model_validate(task.result)
    removed = [*scene.run.facts.get("removed", []), *result.removed]
    ledger.note(scene.tx, scene.run, sweeps=number + 1, removed=removed, remaining=list(result.remaining))
    left = f"{len(result.remaining)} left: {', '.join(result.remaining)}" if result.remaining else "nothing left"
    story.detail(scene, step, f"{len(result.removed)} removed, {left}")
    if result.remaining and number + 1 < MOST_SWEEPS:
        return _clean_up(scene)
    if result.remaining:
        raise Permanent(
            f"site {scene.site()!r} still holds {', '.join(result.remaining)}",
            code="leftovers",
            hint=f"Remove them by hand, or end the drill again: `farshore drill end {scene.plan.name}`.",
            remaining=list(result.remaining),
        )
    ledger.done(scene.tx, scene.run.run_id, "proof", "the sweep found nothing that carries the run's tag")
    return True


def _finish(scene: Scene) -> bool:
    tx, run = scene.tx, scene.run
    # Whatever no sweep has found to be gone is still tied to its points, and has to be ended some time.
    proven = bool(run.facts.get("sweeps")) and not run.facts.get("remaining")
    stuck = not run.facts.get("kept") and not proven
    during = _during(tx, run)
    ledger.note(tx, run, during=during)
    ledger.done(
        tx,
        run.run_id,
        "replication",
        f"{during['cycles_published']} cycles published, {during['cycles_failed']} failed,"
        f" {during['cycles_skipped']} skipped, {during['resent_bytes']} bytes sent again",
    )
    if stuck:
        ledger.note(tx, run, kept=True)
    story.conclude(scene, boot.end_state(scene))
    return True


def _during(session: Session, run: Run) -> dict[str, Any]:
    """Return what replication did while the drill was on: it must not have noticed."""
    began, now = run.started_at or run.created_at, time.time()
    cycles = session.scalars(
        select(Cycle).where(Cycle.plan == run.plan, Cycle.ended_at >= began, Cycle.state.in_(("done", "failed")))
    ).all()
    plan = session.get_one(Plan, run.plan)
    protecting = plan.activity == "active" and plan.state in {"seeding", "protected"}
    rpo_s = Definition.model_validate(plan.definition).rpo
    groups = session.scalars(select(Group.group_id).where(Group.plan == run.plan)).all() if protecting else []
    return {
        "cycles_published": sum(cycle.stats is not None for cycle in cycles),
        "cycles_failed": sum(cycle.state == "failed" for cycle in cycles),
        "cycles_skipped": sum(skipped(_spans(session, group, began), began, now, rpo_s) for group in groups),
        "resent_bytes": sum(int((cycle.stats or {}).get("resent_bytes", 0)) for cycle in cycles),
    }


def _spans(session: Session, group_id: str, began: float) -> list[tuple[float, float]]:
    """Return when cycles of a group began and ended: the last one that ended before a moment, and all since."""
    of_group = select(Cycle).where(Cycle.group_id == group_id, Cycle.started_at.is_not(None))
    before = of_group.where(Cycle.ended_at < began).order_by(Cycle.ended_at.desc()).limit(1)
    since = of_group.where(Cycle.ended_at.is_(None) | (Cycle.ended_at >= began)).order_by(Cycle.started_at)
    cycles = [*session.scalars(before), *session.scalars(since)]
    return [(cycle.started_at or 0.0, cycle.ended_at or time.time()) for cycle in cycles]


def skipped(spans: Sequence[tuple[float, float]], began: float, ended: float, rpo_s: float) -> int:
    """Return how many cycles of a group were due between two moments and did not begin.

    ``spans`` are its cycles, in order, the first may lie before ``began``. One is due ``rpo_s`` after the end of the
    one before at the latest, and again each ``rpo_s``. A group that never had a cycle skips none.
    """
    missing = 0
    for (_, one_ended), (other_began, _) in pairwise([*spans, (ended, ended)]):
        due = int(max(0.0, min(other_began, ended) - one_ended) // rpo_s)
        missing += due - min(due, int(max(0.0, began - one_ended) // rpo_s))
    return missing


def _finish_cleanup(scene: Scene) -> bool:
    tx, run = scene.tx, scene.run
    if story.error_of(run) is None:
        drill = tx.get_one(Run, run.facts["of"])
        ledger.note(tx, drill, kept=False, cleaned_by=run.run_id)
        ledger.release(tx, drill.run_id)
    story.conclude(scene)
    return True


STORY: Final[Story] = (
    Phase("network", _network, "halt", cancellable=True),
    Phase("isolation", _isolation, "halt", cancellable=True),
    Phase("create", _create, "halt", cancellable=True),
    Phase("boot", _boot, "look", cancellable=True),
    Phase("look", _look, "packets", cancellable=True),
    Phase("packets", _packets, "halt", cancellable=True),
    Phase("keep", _keep),
    Phase("halt", _halt),
    Phase("clean-up", _clean_up),
    Phase("finish", _finish),
)

CLEANUP: Final[Story] = (Phase("clean-up", _clean_up), Phase("finish", _finish_cleanup))
