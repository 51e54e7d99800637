"""Makes machines at the target and starts them in the plan's order; the same for every kind of run.

A machine of a run is pending, then being made (creating, preparing), created, starting and green; or it has failed, or
was skipped because of one that has. Those whose turn comes later are made while others start. Only machines for which
nothing is at work are looked at: a run may have thousands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from typing import Final

from sqlalchemy import func, select

from farshore import errors
from farshore.control import tasks
from farshore.control.runs import hooks, ledger, names, story
from farshore.control.runs.story import Scene
from farshore.control.store.records import RunMachine, Task
from farshore.errors import FarshoreError, Permanent
from farshore.model.guest import MachinePrepareResult
from farshore.model.hooks import Moment, Verb
from farshore.model.plan import Purpose
from farshore.model.task import (
    MachineCreateParams,
    MachineCreateResult,
    MachineParams,
    ProbeParams,
    ProbeResult,
)
from farshore.recovery import preview
from farshore.recovery.plan import Order, State
from farshore.recovery.readdress.preparation import preparation

#: The steps of a machine, in order.
STEPS: Final = ("create", "prepare", "power on", "validate")
_MAKING: Final = ("creating", "preparing")
_UNMADE: Final = frozenset({"pending", *_MAKING})
_STARTED: Final = frozenset({"starting", "green"})
_STATE: Final[dict[str, State]] = {
    "pending": "unmade",
    "creating": "making",
    "preparing": "making",
    "created": "pending",
    "starting": "starting",
    "green": "green",
    "failed": "failed",
    "skipped": "skipped",
}
_VERB: Final[dict[Purpose, Verb]] = {
    "drill": "drill",
    "failover": "failover",
    "failback": "failback",
    "migration": "migrate",
}

#: Creations of a run that wait for a node. Tasks are handed out by age: what is made would have to wait for all that
#: was ordered before it went on, and nothing begins before the look that orders it is over. Nodes take more than these
#: in a second only if they work on hundreds at once.
MOST_QUEUED: Final = 64
#: When it is seen how many of them were taken, if nothing ends before.
_TAKEN_AFTER_S: Final = 1.0
#: Orders by run: to work one out takes longer than a look at a run of a thousand machines does otherwise.
_orders: Final[dict[str, Order]] = {}
_ORDERS_KEPT: Final = 16
_lock: Final = Lock()

#: Told of what has happened to a machine: ``created``, ``started``, ``green``.
Listener = Callable[[Scene, RunMachine, str], None]
#: Says what to make of a machine's name.
Maker = Callable[[str], MachineCreateParams]


def nothing(_scene: Scene, _machine: RunMachine, _event: str) -> None:
    """Listen to nothing."""


def create(scene: Scene, make: Maker, listen: Listener = nothing) -> bool:
    """Make machines until one may be powered on: the others are made while :func:`start` starts what is there.

    Raises:
        FarshoreError: a machine of a critical group could not be made; nothing more is made then.
    """
    found = _go_on_making(scene, make, listen)
    order = _order(scene, found)
    # Where the story is told anew some may have been started already: then it is for :func:`start` to wait for them.
    if order.halted(_states(found)) and not any(state in _STARTED for state in found.values()):
        if any(state in _MAKING for state in found.values()):
            return False
        _halt(scene, order, found)
    return any(state not in _UNMADE for state in found.values())


def _go_on_making(scene: Scene, make: Maker, listen: Listener) -> dict[str, str]:
    """Make machines, powered off, in the order of their start, as many at once as plan, site and nodes take.

    Returns the states of the run's machines. Nothing more is made once a machine of a critical group has failed.
    However many may be made, only so many are ordered ahead of the nodes: what was made goes on before the rest.
    """
    tx, run = scene.tx, scene.run
    found = ledger.states(tx, run.run_id)
    if not any(state in _UNMADE for state in found.values()):
        return found
    making = story.idle(scene, *_MAKING)
    ledger.gather(tx, run, making)
    for name in making:
        machine = ledger.machine(tx, run.run_id, name)
        _make(scene, machine, make, listen)
        found[name] = machine.state
    order, room = _order(scene, found), MOST_QUEUED - _queued(scene)
    while True:
        waiting = {name for name, state in found.items() if state == "pending"}
        if not waiting or run.pause or order.halted(_states(found)):
            break
        chosen = order.to_make(waiting, sum(state in _MAKING for state in found.values()))
        if not chosen:
            break
        if room <= 0:
            run.wake_at = time.time() + _TAKEN_AFTER_S
            break
        ledger.gather(tx, run, chosen[:room])
        for name in chosen[:room]:  # those that an earlier run has made take no room
            machine = ledger.machine(tx, run.run_id, name)
            machine.state = "creating"
            _make(scene, machine, make, listen)
            found[name] = machine.state
            room -= machine.state == "creating"
    return found


def _queued(scene: Scene) -> int:
    """Return how many creations of the run no node has begun with."""
    query = select(func.count()).where(
        Task.run_id == scene.run.run_id, Task.kind == "machine-create", Task.state == "queued"
    )
    return scene.tx.scalar(query) or 0


def _make(scene: Scene, machine: RunMachine, make: Maker, listen: Listener) -> None:
    """Take one machine from its order to a machine that may be powered on."""
    name, site = machine.name, scene.site()
    task = story.order(scene, "create", "machine-create", site, partial(make, name), machine=name)
    if task is None:
        return
    if task.state != "succeeded":
        _failed(scene, machine, tasks.failure(task))
        return
    if machine.state == "creating":
        made = MachineCreateResult.model_validate(task.result)
        machine.target_machine_id, machine.target_name, machine.state = made.machine_id, made.name, "preparing"
        story.detail(scene, "create", made.name, name)
        listen(scene, machine, "created")
    params = preparation(scene.definition, name, make(name), str(machine.target_machine_id))
    if params is not None:
        task = story.order(scene, "prepare", "machine-prepare", site, params, machine=name)
        if task is None:
            return
        if task.state != "succeeded":
            _failed(scene, machine, tasks.failure(task))
            return
        _prepared(scene, machine, MachinePrepareResult.model_validate(task.result))
    if machine.state == "preparing":
        machine.state = "created"


def _prepared(scene: Scene, machine: RunMachine, result: MachinePrepareResult) -> None:
    """Record what was found in a guest and done to it; what the policy stops at fails the machine."""
    row = ledger.begin(scene.tx, scene.run.run_id, "prepare", machine.name)
    if story.taken_over(scene, row):
        return
    row.evidence = result.model_dump(mode="json")
    said = [change.what for change in result.changes] + [finding.code for finding in result.findings]
    row.detail = ", ".join(said)[: ledger.LONGEST_DETAIL] or "nothing to do"
    if result.stopped:
        error = Permanent(
            f"machine {machine.name!r} is not started: {result.stopped}",
            code="guest-check-failed",
            hint="Choose another checkpoint, or let the plan's guest policy pass.",
            machine=machine.name,
        )
        row.state, row.detail, row.error = "failed", error.message, error.to_dict()
        _failed(scene, machine, error)


def start(scene: Scene, make: Maker, purpose: Purpose, epoch: int, since: float, listen: Listener = nothing) -> bool:
    """Start the machines group by group, each when it is made and its dependencies' probes are green.

    ``since``: when the clock of a machine's RTO began, if it was not stopped by this run.

    Raises:
        FarshoreError: a machine of a critical group did not come up, nothing more is made or started then; or none did.
    """
    tx, run = scene.tx, scene.run
    found = _go_on_making(scene, make, listen)
    order = _order(scene, found)
    look = story.idle(scene, "starting")
    while True:
        ledger.gather(tx, run, look)
        for name in look:
            machine = ledger.machine(tx, run.run_id, name)
            _follow(scene, machine, purpose, epoch, since, listen)
            found[name] = machine.state
        for name in order.blocked(_states(found)):
            _skip(scene, ledger.machine(tx, run.run_id, name))
            found[name] = "skipped"
        if run.pause:
            break
        look = _next(scene, order, found, _VERB[purpose])
        if not look:
            break
        for machine in ledger.machines(tx, run.run_id, look):
            machine.state = found[machine.name] = "starting"
    if not order.settled(_states(found)):
        return False
    if run.pause or not _close_groups(scene, order, found, _VERB[purpose]):
        return False
    _halt(scene, order, found)
    if "green" not in found.values():
        raise _none_up(scene)
    return _after(scene, _VERB[purpose], "plan", "")


def _next(scene: Scene, order: Order, found: dict[str, str], verb: Verb) -> list[str]:
    """Return the machines whose start may be ordered now, once what their group has to wait for is through."""
    states = _states(found)
    if not order.ready(states) or not _close_groups(scene, order, found, verb):
        return []
    chosen, opens_at = order.to_start(states, _settled(scene, order), time.time())
    scene.run.wake_at = min((at for at in (scene.run.wake_at, opens_at) if at is not None), default=None)
    current = order.current(states)
    if not chosen or current is None:
        return []
    try:
        return chosen if hooks.order(scene, verb, "pre", "group", order.groups[current]) else []
    except FarshoreError as error:
        for member in order.members:
            if member.group == current and states[member.name] in {"unmade", "pending"}:
                _failed(scene, ledger.machine(scene.tx, scene.run.run_id, member.name), error)
                found[member.name] = "failed"
        return _next(scene, order, found, verb)


def _settled(scene: Scene, order: Order) -> Mapping[str, float | None]:
    """Return when each machine has settled, where a group waits for that."""
    if not any(order.delays):
        return {}
    query = select(RunMachine.name, RunMachine.settled_at).where(RunMachine.run_id == scene.run.run_id)
    return {row.name: row.settled_at for row in scene.tx.execute(query)}


def _close_groups(scene: Scene, order: Order, found: Mapping[str, str], verb: Verb) -> bool:
    """Say whether what comes after the groups that have settled is through.

    Raises:
        FarshoreError: it failed for a critical group, and others were to follow.
    """
    current = order.current(_states(found))
    asked = {group.name for group in scene.definition.groups() if group.hooks}
    for index, name in enumerate(order.groups):
        if name not in asked or (current is not None and index >= current):
            continue
        members = [member for member in order.members if member.group == index]
        if not any(found[member.name] == "green" for member in members):
            continue
        must = current is not None and any(member.critical for member in members)
        if not _after(scene, verb, "group", name, must=must):
            return False
    return True


def _after(scene: Scene, verb: Verb, level: str, name: str, *, must: bool = False) -> bool:
    """Have the hook run that comes after a group or the verb; say whether it is through.

    The machines are up: unless it ``must``, a failure of it makes the run partial and stops nothing.
    """
    key = f"hook post_{verb} {name}".rstrip()
    moment: Moment = "post"
    try:
        return hooks.order(scene, verb, moment, "group" if level == "group" else "plan", name)
    except FarshoreError as error:
        if must:
            raise
        if key not in scene.run.facts.get("failures", {}):
            _note(scene, key, error)
        return True


def _follow(scene: Scene, machine: RunMachine, purpose: Purpose, epoch: int, since: float, listen: Listener) -> None:
    """Take one machine from power-on to green probes."""
    try:
        ended = _up(scene, machine, purpose, epoch, listen)
    except FarshoreError as error:
        _failed(scene, machine, error)
        return
    if ended is None or not names.update(scene, machine, purpose, epoch):
        return
    machine.state, machine.settled_at = "green", time.time()
    machine.rto_s = round(ended - (machine.stop_ordered_at or since), 3)
    scene.tx.changed("run", scene.run.run_id)
    listen(scene, machine, "green")


def _up(scene: Scene, machine: RunMachine, purpose: Purpose, epoch: int, listen: Listener) -> float | None:
    """Return when the machine's last probe was green; None while it is on its way.

    Raises:
        FarshoreError: it does not come up.
    """
    site, machine_id, name = scene.site(), str(machine.target_machine_id), machine.name
    machine.address = preview.address(scene.definition, name, purpose)
    if not hooks.order(scene, _VERB[purpose], "pre", "machine", name):
        return None
    params = MachineParams(machine_id=machine_id, epoch=epoch)
    task = story.order(scene, "power on", "machine-power-on", site, params, machine=name)
    if task is None:
        return None
    if task.state != "succeeded":
        raise tasks.failure(task)
    listen(scene, machine, "started")
    # The node has just reported; its own tries are in the outcome's seconds.
    ended = task.ended_at or time.time()
    probes = scene.definition.machine(name).probes
    if probes:
        wanted = ProbeParams(
            machine_id=machine_id,
            address=machine.address,
            probes=probes,
            **hooks.for_probes(scene, _VERB[purpose], name),
        )
        task = story.order(scene, "validate", "machine-probe", site, wanted, machine=name)
        if task is None:
            return None
        if task.state != "succeeded":
            raise tasks.failure(task)
        _judge(scene, machine, ProbeResult.model_validate(task.result))
        ended = task.ended_at or time.time()
    if not hooks.order(scene, _VERB[purpose], "post", "machine", name):
        return None
    return ended


def _judge(scene: Scene, machine: RunMachine, result: ProbeResult) -> None:
    """Record what the probes saw.

    Raises:
        Permanent: not all of them are green.
    """
    machine.probes = [outcome.model_dump(mode="json") for outcome in result.outcomes]
    red = [outcome for outcome in result.outcomes if not outcome.green]
    if not red and result.green:
        story.detail(scene, "validate", f"{len(result.outcomes)} green", machine.name)
        return
    error = Permanent(
        f"machine {machine.name!r}: "
        + ("; ".join(f"{item.type} {item.target}: {item.detail}" for item in red) or "not green"),
        code="probe-failed",
        hint="Its console text is in the run's evidence.",
        machine=machine.name,
        console=result.console[-2000:],
    )
    row = ledger.begin(scene.tx, scene.run.run_id, "validate", machine.name)
    row.state, row.detail, row.error = "failed", error.message, error.to_dict()
    raise error


def _states(found: Mapping[str, str]) -> dict[str, State]:
    return {name: _STATE[state] for name, state in found.items()}


def _order(scene: Scene, names: Mapping[str, str]) -> Order:
    """Return the order of the plan's machines that the run has; a run has the same ones from its first phase on."""
    run_id = scene.run.run_id
    with _lock:
        found = _orders.get(run_id)
    if found is None:
        found = Order.of(scene.definition).only(names)
        with _lock:
            _orders[run_id] = found
            while len(_orders) > _ORDERS_KEPT:
                del _orders[next(iter(_orders))]
    return found


def _skip(scene: Scene, machine: RunMachine) -> None:
    machine.state, machine.settled_at = "skipped", time.time()
    row = ledger.begin(scene.tx, scene.run.run_id, "power on", machine.name)
    ledger.end(scene.tx, row, "skipped", "not started: what it needs did not come up")


def _failed(scene: Scene, machine: RunMachine, error: FarshoreError) -> None:
    machine.state, machine.settled_at = "failed", time.time()
    _note(scene, machine.name, error)


def _note(scene: Scene, what: str, error: FarshoreError) -> None:
    failures = {**scene.run.facts.get("failures", {}), what: error.to_dict()}
    ledger.note(scene.tx, scene.run, failures=failures)


def _halt(scene: Scene, order: Order, found: Mapping[str, str]) -> None:
    """Raise the error of a failed machine of a critical group, if there is one."""
    name = order.halted(_states(found))
    if name is not None:
        raise errors.from_dict(scene.run.facts["failures"][name])


def _none_up(scene: Scene) -> Permanent:
    """Return the error of a run whose groups are not critical, and of which no machine came up all the same."""
    name, first = next(iter(scene.run.facts["failures"].items()))
    return Permanent(
        f"no machine came up; {name}: {first['message']}",
        code="no-machine-up",
        hint=f"Each machine says why: `farshore run show {scene.run.run_id}`. Then: `farshore run retry`.",
    )


def end_state(scene: Scene) -> str:
    """Return how a run ended, from its machines: ``succeeded``, ``partial`` or ``failed``."""
    states = set(ledger.states(scene.tx, scene.run.run_id).values())
    if states <= {"green"}:
        return "partial" if scene.run.facts.get("failures") else "succeeded"
    return "partial" if "green" in states else "failed"
