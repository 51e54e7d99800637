"""Commit or roll back: whether the old primary is still wanted after a failover.

Until a failover is committed it can be rolled back: what was made at the target is stopped, verified off and fenced,
the epoch is raised once more, and the old primary, which nobody has written to, is unfenced and started. What was
written at the target meanwhile stays there, with the fenced machine. A failure before the epoch starts the target's
machines again.

Where the target's site is lost, what runs there cannot be stopped first: by force, which is audited, it is given up
without a word, and fenced at first contact. The site of the old primary has to answer in any case.
"""

from __future__ import annotations

import time
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import audit, tasks
from farshore.control.planning import definitions, protect
from farshore.control.runs import drill, epoch, hooks, ledger, selection, stopping, story, subset
from farshore.control.runs.story import Phase, Scene, Story
from farshore.control.store.database import Transaction
from farshore.control.store.records import OldPrimary, Plan, PlanMachine, Run
from farshore.control.views.places import site_state
from farshore.control.views.points import newest
from farshore.control.views.protection import direction, is_turned, members, record
from farshore.errors import Conflict, FarshoreError, Unavailable
from farshore.model.base import Model
from farshore.model.task import MachineFenceParams, MachineParams
from farshore.recovery.plan import Order


class RollbackWish(Model):
    """``force``: the site that is given up is lost, and what runs there is fenced when it answers again."""

    force: bool = False


def commit(tx: Transaction, name: str, actor: str) -> bool:
    """Say that a failover is not rolled back any more; False if nothing waits for that.

    Raises:
        NotFound: no such plan.
        Conflict: its failover has not ended.
    """
    plan = record(tx, name)
    if plan.committed:
        return False
    moved = [row for row in members(tx, name) if not row.committed]
    running = ledger.open_run(tx, name, ("failover", "migrate", "rollback"))
    if plan.state in {"failing-over", "rolling-back"} or running or all(row.state != "failed-over" for row in moved):
        state = plan.state if plan.state in {"failing-over", "rolling-back"} else "failing-over"
        raise Conflict(
            f"plan {name!r} is {state}",
            code=f"plan-{state}",
            hint="Let the failover come to its end first.",
        )
    epoch.commit(tx, plan, moved)
    audit.record(
        tx,
        actor,
        "commit-failover",
        name,
        epoch=plan.epoch,
        active_site=plan.active_site,
        machines=[row.name for row in moved],
    )
    tx.changed("plan", name)
    return True


def preview_of(session: Session, name: str, wish: RollbackWish) -> dict[str, Any]:
    """Return what a rollback would do. Errors: as :func:`request`."""
    plan = record(session, name)
    rows, forced = _admit(session, plan, wish)
    source, target = _way(plan, rows)
    waves = Order.of(definitions.of_plan(plan)).only(rows).waves()
    left = subset.left_out(session, plan, rows)
    return {
        "changed": True,
        "before": {"active_site": plan.active_site, "epoch": plan.epoch},
        "after": {
            "active_site": target,
            "left_out": left,
            "epoch": plan.epoch + any(row.raised for row in rows.values()),
            "stop": [] if forced else list(reversed(waves)),
            "order": waves,
        },
        "warnings": [
            f"what was written at {source!r} since the failover stays there and is not taken along",
            *([f"site {source!r} does not answer: what runs there is fenced at first contact"] if forced else []),
            *subset.stranded(plan, rows, left),
        ],
    }


def request(tx: Transaction, name: str, wish: RollbackWish, actor: str) -> Run:
    """Insert a rollback, or one that goes on with a rollback that failed.

    Raises:
        NotFound, Conflict, Unavailable: why it cannot run; nothing is changed then.
    """
    plan = record(tx, name)
    rows, forced = _admit(tx, plan, wish)
    run = ledger.create(tx, "rollback", plan, actor, wish.model_dump(), workflow=True)
    back = not any(row.raised for row in rows.values())
    run.from_site, run.to_site = _way(plan, rows)
    moved = tx.scalars(
        select(Run).where(Run.plan == name, Run.kind.in_(("failover", "migrate"))).order_by(Run.created_at)
    )
    powers: dict[str, str] = {}
    for one in moved:
        powers |= one.facts["powers"] if one.facts.get("raised") else {}
    ledger.note(tx, run, definition=plan.definition, epoch_seen=plan.epoch, powers=powers, raised=back, forced=forced)
    ledger.add_machines(tx, run, rows)
    if plan.active_site == run.from_site:
        plan.state = "rolling-back"  # else the others run where these come back to, and are replicated
    for row in rows.values():
        if row.state != "rolling-back":
            epoch.happen(plan, row, "begin-rollback")
    ledger.done(tx, run.run_id, "preflight", f"from {run.from_site} to {run.to_site}, epoch {plan.epoch}")
    tx.changed("plan", name)
    return run


def _admit(session: Session, plan: Plan, wish: RollbackWish) -> tuple[dict[str, PlanMachine], bool]:
    """Return the machines that go back, and whether that has to be by force."""
    drill.require_free(session, plan, "rollback")
    moved = {row.name: row for row in members(session, plan.name) if row.raised or row.state == "rolling-back"}
    rows = {name: row for name, row in moved.items() if not row.committed or row.state == "rolling-back"}
    if not moved or plan.state == "migrated":
        raise Conflict(
            f"plan {plan.name!r} is {plan.state} at {plan.active_site!r}: there is no failover to roll back",
            code="nothing-to-roll-back",
            hint="After a reprotect the way back is a failover to the other site."
            if is_turned(session, plan)
            else f"Look at it: `farshore plan show {plan.name}`.",
        )
    source, target = _way(plan, moved)
    if not rows:
        raise Conflict(
            f"the failover of plan {plan.name!r} to {source!r} was committed",
            code="committed",
            hint=f"The way back is: `farshore reprotect {plan.name}`, then a failover to {target}.",
        )
    state = site_state(session, target)
    if state != "online":
        raise Unavailable(
            f"no node of site {target!r} answers, where the old machines would start",
            code=f"site-{state}",
            hint=f"What runs at {source} goes on meanwhile. Wait for the site, or decide to stay:"
            f" `farshore commit {plan.name}`.",
            site=target,
        )
    unknown = [row.name for row in rows.values() if row.raised and row.source_state != "fenced"]
    if unknown:
        raise Conflict(
            f"at site {target!r} nobody knows yet how {', '.join(unknown)} of plan {plan.name!r} was left",
            code="old-primary-not-fenced",
            hint="The failover was forced, and the site has only just come back: the old machines are fenced first."
            f" Try again when `farshore plan show {plan.name}` does not say old-primary-not-fenced any more.",
            machines=unknown,
        )
    state = site_state(session, source)
    forced = state != "online" and any(row.raised and row.target_machine_id for row in rows.values())
    if forced and not wish.force:
        raise Unavailable(
            f"no node of site {source!r} answers: what runs there cannot be seen to be off",
            code=f"site-{state}",
            field="force",
            hint="If it cannot go on there in any case, say that the site is lost:"
            f" `farshore rollback {plan.name} --force`. What was written there is not taken along.",
            site=source,
        )
    return rows, forced


def _way(plan: Plan, rows: dict[str, PlanMachine]) -> tuple[str, str]:
    """Return the site that machines are taken back from, and the one that they are replicated from, where they go."""
    there = next(iter(rows.values())).site
    source, target = direction(plan)
    return (target if source == there else source), there


def first_phase(run: Run) -> str:
    """Return the phase that a rollback begins with, or goes on with when the orchestrator has lost it."""
    if run.facts.get("raised"):
        return "unfence"
    return "halt" if "error" in run.facts else "stop"


def _made(scene: Scene) -> dict[str, PlanMachine]:
    """Return the machines of which something was made at the site that is given up."""
    return {row.name: row for row in epoch.rows(scene.tx, scene.run) if row.raised and row.target_machine_id}


def _stop(scene: Scene) -> bool:
    if scene.run.facts.get("forced"):
        return True
    rows = _made(scene)
    for wave in reversed(Order.of(scene.definition).waves()):
        through = True
        for name in (name for name in wave if name in rows):
            if not stopping.stop_machine(scene, name, str(rows[name].target_machine_id)):
                through = False
        if not through:
            return False
    return True


def _fence(scene: Scene) -> bool:
    through = True
    made = _made(scene)
    for row in epoch.rows(scene.tx, scene.run):
        if row.name in made and not scene.run.facts.get("forced"):
            params = MachineFenceParams(machine_id=str(row.target_machine_id), epoch=scene.plan.epoch + 1)
            if not stopping.fence_machine(scene, row.name, params, scene.site("source")):
                through = False
                continue
        epoch.happen(scene.plan, row, "forsake" if scene.run.facts.get("forced") else "give-up")
    return through


def _raise(scene: Scene) -> bool:
    """Make the old primary the primary again: the one transaction after which there is only the way on."""
    tx, run, plan = scene.tx, scene.run, scene.plan
    if run.facts.get("raised"):
        return True
    rows = epoch.rows(tx, run)
    for row in rows:
        epoch.happen(plan, row, "roll-back")
        forsaken = select(OldPrimary).where(
            OldPrimary.plan == plan.name, OldPrimary.machine == row.name, OldPrimary.machine_id == row.machine_id
        )
        for old in tx.scalars(forsaken):
            tx.delete(old)
    before, plan.epoch = plan.epoch, plan.epoch + 1
    plan.active_site = scene.site()
    epoch.commit(tx, plan, rows)
    for row in rows:
        if row.target_machine_id is None:
            continue
        tx.merge(
            OldPrimary(
                plan=plan.name,
                machine=row.name,
                epoch=plan.epoch,
                site=scene.site("source"),
                machine_id=row.target_machine_id,
                divergent=True,
                created_at=time.time(),
                committed_at=time.time(),
            )
        )
        if run.facts.get("forced"):
            epoch.order_fence(scene, row, scene.site("source"), row.target_machine_id)
        # It rests where the next failover will want its name.
        row.old_machine_id, row.target_machine_id, row.recovered_from = row.target_machine_id, None, None
    audit.record(
        tx,
        run.actor,
        "roll-back",
        plan.name,
        run=run.run_id,
        epoch=plan.epoch,
        to_site=plan.active_site,
        force=run.facts.get("forced"),
    )
    ledger.note(tx, run, raised=True, epoch=plan.epoch)
    ledger.done(tx, run.run_id, "raise epoch", f"{before} to {plan.epoch}; active at {plan.active_site}")
    tx.changed("plan", plan.name)
    return True


def _unfence(scene: Scene) -> bool:
    through = True
    for row in epoch.rows(scene.tx, scene.run):
        if row.source_state != "fenced":
            continue
        params = MachineParams(machine_id=str(row.machine_id), epoch=scene.plan.epoch)
        task = story.order(scene, "unfence", "machine-unfence", scene.site(), params, machine=row.name)
        if task is None:
            through = False
            continue
        epoch.result(task)
        epoch.happen(scene.plan, row, "unfenced")
    return through


def _start(scene: Scene) -> bool:
    """Start the old primaries that were on before the failover, in boot order."""
    powers: dict[str, str] = scene.run.facts.get("powers", {})
    rows = {row.name: row for row in epoch.rows(scene.tx, scene.run) if row.state == "rolling-back"}
    for wave in Order.of(scene.definition).waves():
        through = True
        for name in (name for name in wave if name in rows):
            machine = ledger.machine(scene.tx, scene.run.run_id, name)
            if powers.get(name) != "off":
                params = MachineParams(machine_id=str(rows[name].machine_id), epoch=scene.plan.epoch)
                task = story.order(scene, "start again", "machine-start", scene.site(), params, machine=name)
                if task is None:
                    through = False
                    continue
                epoch.result(task)
            epoch.happen(scene.plan, rows[name], "restarted")
            epoch.happen(scene.plan, rows[name], "rolled-back")
            point = newest(scene.tx, scene.plan, rows[name].group_id)
            if point is None or not selection.holds(point, rows[name]):
                rows[name].state = "seeding"
            machine.state, machine.machine_id = "succeeded", rows[name].machine_id
        if not through:
            return False
    return True


def _after(scene: Scene) -> bool:
    """Call the hook that comes after it; its failure leaves the machines as they are, and the run ends partial."""
    try:
        return hooks.order(scene, "rollback", "post", "plan")
    except FarshoreError as error:
        failures = {**scene.run.facts.get("failures", {}), "hook post_rollback": error.to_dict()}
        ledger.note(scene.tx, scene.run, failures=failures)
        return True


def _halt(scene: Scene) -> bool:
    return story.quiet(scene)


def _forward(scene: Scene) -> bool:
    """Before the epoch: let the target's machines run again."""
    if scene.run.facts.get("raised"):
        return True
    for kind, step, waves in (
        ("machine-unfence", "unfence again", [list(_made(scene))]),
        ("machine-start", "start again", Order.of(scene.definition).waves()),
    ):
        rows = _made(scene)
        for wave in waves:
            through = True
            for name in (name for name in wave if name in rows):
                begun = "fence" if kind == "machine-unfence" else "stop"
                if ledger.step(scene.tx, scene.run.run_id, begun, name) is None:
                    continue
                params = MachineParams(machine_id=str(rows[name].target_machine_id), epoch=scene.plan.epoch + 1)
                task = story.order(scene, step, kind, scene.site("source"), params, machine=name, patient=True)
                if task is None:
                    through = False
                elif task.state != "succeeded":
                    stopping.keep_going(scene, tasks.failure(task))
            if not through:
                return False
    for row in epoch.rows(scene.tx, scene.run):
        epoch.happen(scene.plan, row, "abort-rollback")
    states = {row.state for row in epoch.rows(scene.tx, scene.run)}
    if scene.plan.state == "rolling-back":
        scene.plan.state = "failing-over" if "failing-over" in states else "failed-over"
    return True


def _finish(scene: Scene) -> bool:
    tx, run, plan = scene.tx, scene.run, scene.plan
    if story.error_of(run) is None:
        plan.state = "protected"
        protect.settle(tx, plan)
        for earlier in tx.scalars(select(Run).where(Run.plan == plan.name, Run.kind.in_(("failover", "migrate")))):
            ledger.release(tx, earlier.run_id)
    story.conclude(scene)
    tx.changed("plan", plan.name)
    story.look_around(scene, *(("target",) if run.facts.get("forced") else ("source", "target")))
    return True


STORY: Final[Story] = (
    Phase("stop", _stop, "halt", cancellable=True),
    Phase("fence", _fence, "halt", cancellable=True),
    Phase("epoch", _raise, "halt", cancellable=True, atomic=True),
    Phase("unfence", _unfence, "finish"),
    Phase("start", _start, "finish"),
    Phase("after", _after, "finish"),
    Phase("finish", _finish),
    Phase("halt", _halt),
    Phase("forward", _forward),
    Phase("end", _finish),
)
