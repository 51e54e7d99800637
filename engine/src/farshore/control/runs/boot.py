"""Makes machines at the target and starts them in the plan's order; the same for drill and failover."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from farshore import errors
from farshore.control import tasks
from farshore.control.runs import ledger, story
from farshore.control.runs.story import Scene
from farshore.control.store.records import RunMachine
from farshore.errors import FarshoreError, Permanent
from farshore.model.plan import Purpose
from farshore.model.task import MachineCreateParams, MachineCreateResult, MachineParams, ProbeParams, ProbeResult
from farshore.recovery import preview
from farshore.recovery.plan import Order, State

_STATE: Final[dict[str, State]] = {
    "pending": "pending",
    "created": "pending",
    "starting": "starting",
    "green": "green",
    "failed": "failed",
    "skipped": "skipped",
}

#: Told of what has happened to a machine: ``created``, ``started``, ``green``.
Listener = Callable[[Scene, RunMachine, str], None]


def nothing(_scene: Scene, _machine: RunMachine, _event: str) -> None:
    """Listen to nothing."""


def create(scene: Scene, orders: dict[str, MachineCreateParams], listen: Listener = nothing) -> bool:
    """Make all machines at once, powered off.

    Raises:
        FarshoreError: a machine of a critical group could not be made (after all others have ended).
    """
    tx, run = scene.tx, scene.run
    through = True
    for machine in ledger.machines(tx, run.run_id):
        if machine.state != "pending":
            continue
        params = orders[machine.name]
        task = story.order(scene, "create", "machine-create", scene.site(), params, machine=machine.name)
        if task is None:
            through = False
        elif task.state == "succeeded":
            made = MachineCreateResult.model_validate(task.result)
            machine.target_machine_id, machine.target_name, machine.state = made.machine_id, made.name, "created"
            story.detail(scene, "create", made.name, machine.name)
            listen(scene, machine, "created")
        else:
            _failed(scene, machine, tasks.failure(task))
    if through:
        _halt(scene)
    return through


def start(scene: Scene, purpose: Purpose, epoch: int, since: float, listen: Listener = nothing) -> bool:
    """Start the machines group by group, each when its dependencies' probes are green.

    ``since``: when the clock of a machine's RTO began, if it was not stopped by this run.

    Raises:
        FarshoreError: a machine of a critical group did not come up; nothing more is started then.
    """
    tx, run = scene.tx, scene.run
    order = Order.of(scene.definition)
    machines = {machine.name: machine for machine in ledger.machines(tx, run.run_id)}
    order = Order(tuple(member for member in order.members if member.name in machines))
    while True:
        for machine in machines.values():
            if machine.state == "starting":
                _follow(scene, machine, purpose, epoch, since, listen)
        states = {name: _STATE[machine.state] for name, machine in machines.items()}
        for name in order.blocked(states):
            machines[name].state = "skipped"
            ledger.done(tx, run.run_id, "power-on", "not started: what it needs did not come up", name)
            states[name] = "skipped"
        ready = order.ready(states)
        if not ready:
            break
        for name in ready:
            machines[name].state = "starting"
    if not order.settled(states):
        return False
    _halt(scene)
    return True


def _follow(scene: Scene, machine: RunMachine, purpose: Purpose, epoch: int, since: float, listen: Listener) -> None:
    """Take one machine from power-on to green probes."""
    site, machine_id = scene.site(), str(machine.target_machine_id)
    machine.address = preview.address(scene.definition, machine.name, purpose)
    params = MachineParams(machine_id=machine_id, epoch=epoch)
    task = story.order(scene, "power-on", "machine-power-on", site, params, machine=machine.name)
    if task is None:
        return
    if task.state != "succeeded":
        _failed(scene, machine, tasks.failure(task))
        return
    listen(scene, machine, "started")
    probes = scene.definition.machine(machine.name).probes
    if probes:
        task = story.order(
            scene,
            "probe",
            "machine-probe",
            site,
            ProbeParams(machine_id=machine_id, address=machine.address, probes=probes),
            machine=machine.name,
        )
        if task is None:
            return
        if task.state != "succeeded":
            _failed(scene, machine, tasks.failure(task))
            return
        result = ProbeResult.model_validate(task.result)
        machine.probes = [outcome.model_dump(mode="json") for outcome in result.outcomes]
        red = [outcome for outcome in result.outcomes if not outcome.green]
        if red or not result.green:
            row = ledger.begin(scene.tx, scene.run.run_id, "probe", machine.name)
            error = Permanent(
                f"machine {machine.name!r}: "
                + ("; ".join(f"{item.type} {item.target}: {item.detail}" for item in red) or "not green"),
                code="probe-failed",
                hint="Its console text is in the run's evidence.",
                machine=machine.name,
                console=result.console[-2000:],
            )
            row.state, row.detail, row.error = "failed", error.message, error.to_dict()
            _failed(scene, machine, error)
            return
        story.detail(scene, "probe", f"{len(result.outcomes)} green", machine.name)
    # The node has just reported; its own tries are in the outcome's seconds.
    ended = task.ended_at or time.time()
    machine.state = "green"
    machine.rto_s = round(ended - (machine.stop_ordered_at or since), 3)
    scene.tx.changed("run", scene.run.run_id)
    listen(scene, machine, "green")


def _failed(scene: Scene, machine: RunMachine, error: FarshoreError) -> None:
    machine.state = "failed"
    failures = {**scene.run.facts.get("failures", {}), machine.name: error.to_dict()}
    ledger.note(scene.tx, scene.run, failures=failures)


def _halt(scene: Scene) -> None:
    """Raise the error of a failed machine of a critical group, if there is one."""
    states = {machine.name: _STATE[machine.state] for machine in ledger.machines(scene.tx, scene.run.run_id)}
    order = Order.of(scene.definition)
    order = Order(tuple(member for member in order.members if member.name in states))
    name = order.halted(states)
    if name is not None:
        raise errors.from_dict(scene.run.facts["failures"][name])


def end_state(scene: Scene) -> str:
    """Return how a run ended, from its machines: ``succeeded``, ``partial`` or ``failed``."""
    states = [machine.state for machine in ledger.machines(scene.tx, scene.run.run_id)]
    if all(state == "green" for state in states):
        return "succeeded"
    return "partial" if "green" in states else "failed"
