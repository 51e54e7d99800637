"""The source's part of a planned change of sites: synced, stopped, synced again, fenced; and the way back of all that.

Everything here speaks to the site that the run leaves, and nothing here is done once the epoch was raised.
"""

from __future__ import annotations

import time

from sqlalchemy import select

from farshore import errors
from farshore.control import tasks
from farshore.control.planning import protect
from farshore.control.runs import epoch, ledger, selection, story
from farshore.control.runs.story import Scene
from farshore.control.scheduling import cycles
from farshore.control.store.records import Cycle
from farshore.control.views.points import newest
from farshore.errors import FarshoreError, Permanent
from farshore.model.task import MachineFenceParams, MachineParams, MachineResult, MachineStopParams
from farshore.recovery.plan import Order
from farshore.units import format_size


def sync(scene: Scene) -> bool:
    """Copy while the machines run, so that the final sync is short."""
    return _cycles(scene, "sync")


def final(scene: Scene) -> bool:
    """Copy what was written until the machines were off. These checkpoints have everything: the RPO is 0."""
    if not _cycles(scene, "final"):
        return False
    points = {cycle.group_id: str(cycle.checkpoint_id) for cycle in _of(scene, "final")}
    ledger.lease(scene.tx, scene.run.run_id, *points.values())
    for row in epoch.rows(scene.tx, scene.run):
        if row.group_id in points:
            machine = ledger.machine(scene.tx, scene.run.run_id, row.name)
            machine.checkpoint_id, machine.rpo_s = points[row.group_id], 0.0
    return True


def _of(scene: Scene, purpose: str) -> list[Cycle]:
    return list(scene.tx.scalars(select(Cycle).where(Cycle.run_id == scene.run.run_id, Cycle.purpose == purpose)))


def _cycles(scene: Scene, purpose: str) -> bool:
    tx, run = scene.tx, scene.run
    row = ledger.begin(tx, run.run_id, "sync" if purpose == "sync" else "final sync")
    found = _of(scene, purpose)
    if not found:
        if run.pause:
            return False
        groups = sorted({member.group_id for member in epoch.rows(tx, run)})
        protect.stop_cycles(tx, scene.plan.name, groups)
        for group_id in groups:
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


def stop(scene: Scene) -> bool:
    """Stop the machines, those that others depend on last, each wave when the one before is verified off."""
    rows = {row.name: row for row in epoch.rows(scene.tx, scene.run)}
    at_work, ended = story.progress(scene, "stop")
    for wave in reversed(Order.of(scene.definition).waves()):
        through = True
        for name in (name for name in wave if name in rows):
            if name in at_work:
                through = False
            elif name in ended and rows[name].source_state == "stopped":
                continue
            elif stop_machine(scene, name, str(rows[name].machine_id)):
                epoch.happen(scene.plan, rows[name], "stopped")
            else:
                through = False
        if not through:
            return False
    return True


def stop_machine(scene: Scene, name: str, machine_id: str) -> bool:
    """Stop what runs at the site that the run leaves; True once it is verified off.

    Raises:
        Permanent: it is not.
    """
    shutdown = scene.definition.shutdown
    params = MachineStopParams(
        machine_id=machine_id, epoch=scene.plan.epoch, timeout_s=shutdown.timeout, on_timeout=shutdown.on_timeout
    )
    task = story.order(scene, "stop", "machine-stop", scene.site("source"), params, machine=name)
    if ledger.step(scene.tx, scene.run.run_id, "stop", name) is not None:
        machine = ledger.machine(scene.tx, scene.run.run_id, name)
        machine.stop_ordered_at = machine.stop_ordered_at or time.time()
    if task is None:
        return False
    result = epoch.result(task)
    _require_off(name, result, "after it was stopped")
    story.detail(scene, "stop", f"verified off; {result.detail}".rstrip("; "), name)
    return True


def fence(scene: Scene) -> bool:
    """Keep the old primaries from starting, and read that back."""
    through = True
    at_work, ended = story.progress(scene, "fence")
    for row in epoch.rows(scene.tx, scene.run):
        if row.name in at_work:
            through = False
            continue
        if row.name in ended and row.source_state == "fenced":
            continue
        # Marked with the epoch to come: whoever still acts in this one is refused from now on.
        params = MachineFenceParams(machine_id=str(row.machine_id), epoch=scene.plan.epoch + 1)
        if fence_machine(scene, row.name, params, scene.site("source")):
            epoch.happen(scene.plan, row, "fenced")
        else:
            through = False
    return through


def fence_machine(scene: Scene, name: str, params: MachineFenceParams, site: str) -> bool:
    """Keep a machine from starting; True once that is read back, and that it is off.

    Raises:
        Permanent: the fence did not hold, or the machine is on.
    """
    task = story.order(scene, "fence", "machine-fence", site, params, machine=name)
    if task is None:
        return False
    result = epoch.result(task)
    if not result.fenced:
        raise Permanent(f"the fence of machine {name!r} did not hold", code="fence-not-kept", machine=name)
    _require_off(name, result, "although it was stopped")
    story.detail(scene, "fence", "fenced, verified off", name)
    return True


def _require_off(name: str, result: MachineResult, why: str) -> None:
    if result.power != "off":
        raise Permanent(f"machine {name!r} is {result.power} {why}", code="not-verified-off", machine=name)


# The way back, before the epoch ---------------------------------------------------------------------------------------


def halt(scene: Scene) -> bool:
    """Stop what the run has at work."""
    if scene.run.facts.get("raised"):
        return True
    running = [cycle for purpose in ("sync", "final") for cycle in _of(scene, purpose) if cycle.ended_at is None]
    for cycle in running:
        cycle.cancel = True
    return story.quiet(scene) and not running


def unfence(scene: Scene) -> bool:
    """Lift the fences of machines whose fence was ordered, whether or not it was seen to hold."""
    if scene.run.facts.get("raised"):
        return True  # after the epoch nothing is undone at the source
    through = True
    for row in epoch.rows(scene.tx, scene.run):
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
            keep_going(scene, tasks.failure(task))
        else:
            epoch.happen(scene.plan, row, "unfenced")
    return through


def restart(scene: Scene) -> bool:
    """Start the machines again that were on before, in boot order."""
    if scene.run.facts.get("raised"):
        return True
    powers: dict[str, str] = scene.run.facts.get("powers", {})
    rows = {row.name: row for row in epoch.rows(scene.tx, scene.run)}
    for wave in Order.of(scene.definition).waves():
        through = True
        for name in wave:
            if name not in rows or ledger.step(scene.tx, scene.run.run_id, "stop", name) is None:
                continue
            if powers.get(name) == "off":
                epoch.happen(scene.plan, rows[name], "restarted")
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
                keep_going(scene, tasks.failure(task))
            else:
                epoch.happen(scene.plan, rows[name], "restarted")
        if not through:
            return False
    return True


def _epoch_to_come(scene: Scene) -> int:
    """Return the epoch that this run wanted to begin, the mark of its fences; a later one's are not its to lift."""
    return int(scene.run.facts["epoch_seen"]) + 1


def keep_going(scene: Scene, error: FarshoreError) -> None:
    """Note what went wrong on the way back; the rest of the way is gone all the same."""
    found = [*scene.run.facts.get("way_back", []), error.to_dict()]
    ledger.note(scene.tx, scene.run, way_back=found)


def restore(scene: Scene) -> bool:
    """Give plan and machines the state that they had: protected at the source."""
    if scene.run.facts.get("raised"):
        return True
    for row in epoch.rows(scene.tx, scene.run):
        if row.state == "failing-over":
            epoch.happen(scene.plan, row, "abort")
            # Not verified off: whatever comes next has to find out anew.
            row.source_state = "running"
            point = newest(scene.tx, scene.plan, row.group_id)
            if point is None or not selection.holds(point, row):
                row.state = "seeding"
    scene.plan.state = "protected"
    protect.settle(scene.tx, scene.plan)
    return True
