"""Whether each machine has something good to come back from, and is what its checkpoint says. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from farshore.model.machine import Finding
from farshore.recovery.readiness.facts import Facts, MachineState, finding
from farshore.units import format_duration, format_size


def machines(facts: Facts) -> Iterator[Finding]:
    """Say what is wrong with each machine."""
    for machine in facts.machines:
        if not machine.active:
            yield finding(
                "machine-unprotected",
                "warning",
                machine.name,
                f"machine {machine.name!r} is in the plan and is not copied",
                f"`farshore plan protect {facts.plan.name} --machine {machine.name}`",
            )
            continue
        yield from _freshness(facts, machine)
        yield from _drift(machine)
        if not facts.plan.machine(machine.name).probes:
            yield finding(
                "probe-missing",
                "warning",
                machine.name,
                f"nothing tells whether machine {machine.name!r} works once it is on",
                "Write probes for it: the next group starts when they are green.",
            )
        yield from _blind(facts, machine.name)


def _blind(facts: Facts, name: str) -> Iterator[Finding]:
    """Name the probes that cannot turn green in a drill: nothing of the site gets to what they ask."""
    seeing = facts.target.drill_probes
    if seeing is None:
        return
    # Tasks that a node plays may look at anything.
    asked = {probe.type for probe in facts.plan.machine(name).probes if getattr(probe, "on", "") != "node"}
    if blind := sorted(asked - set(seeing)):
        yield finding(
            "probe-blind-in-drill",
            "warning",
            name,
            f"in a drill at {facts.target.name!r}, probes of type {', '.join(blind)} of machine {name!r} see nothing",
            f"Write probes of type {', '.join(seeing)}, or give the site a helper: platform.probe_helper.",
        )


def _freshness(facts: Facts, machine: MachineState) -> Iterator[Finding]:
    target = facts.plan.rpo
    if machine.captured is None:
        yield finding(
            "no-checkpoint",
            "error",
            machine.name,
            f"machine {machine.name!r} has no checkpoint to come back from",
            f"`farshore replicate {facts.plan.name}`",
        )
    elif machine.rpo_s is not None and machine.rpo_s > target:
        yield finding(
            "rpo-exceeded",
            "error" if machine.rpo_s > 3 * target else "warning",
            machine.name,
            f"the newest checkpoint of {machine.name!r} is {format_duration(machine.rpo_s)} old; the plan allows"
            f" {format_duration(target)}",
            f"`farshore machine show {machine.name}` tells what holds it up.",
        )
    if machine.suspect_newest:
        yield finding(
            "checkpoint-suspect",
            "error",
            machine.name,
            f"the newest checkpoint of {machine.name!r} is suspect",
            "Look at it: `farshore checkpoint list`. Replicate anew, or recover from an older one.",
        )
    elif machine.suspect_older:
        yield finding(
            "checkpoint-suspect-older",
            "warning",
            machine.name,
            f"{machine.suspect_older} older checkpoints of {machine.name!r} are suspect",
            "They are passed over; scrub the others: `farshore checkpoint scrub`.",
        )


def _drift(machine: MachineState) -> Iterator[Finding]:
    now, then, name = machine.now, machine.captured, machine.name
    if now is None:
        if machine.seen:
            yield finding(
                "machine-gone",
                "error",
                name,
                f"machine {name!r} is not at its site any more",
                "Take it out of the plan, or find out where it went.",
            )
        return
    for disk in now.disks:
        if not disk.tracked:
            yield finding(
                "disk-untracked",
                "info",
                f"{name}/{disk.disk_id}",
                f"changes of disk {disk.disk_id!r} ({disk.format}) of {name!r} are not tracked: each cycle compares it",
                "Convert it to a format that can, such as qcow2.",
            )
    if then is None:
        return
    sizes = {disk.disk_id: disk.size_bytes for disk in then.disks}
    for disk in now.disks:
        if disk.disk_id not in machine.copied:
            yield finding(
                "disk-unprotected",
                "warning",
                f"{name}/{disk.disk_id}",
                f"disk {disk.disk_id!r} of {name!r} is in no checkpoint yet",
                "It is copied by the next cycle; if it stays so, look at the machine's findings.",
            )
        elif sizes.get(disk.disk_id) != disk.size_bytes:
            yield finding(
                "disk-resized",
                "warning",
                f"{name}/{disk.disk_id}",
                f"disk {disk.disk_id!r} of {name!r} has {format_size(disk.size_bytes)}, in its checkpoint"
                f" {format_size(sizes[disk.disk_id])}",
                "The next cycle takes it over.",
            )
    for disk_id in sorted(set(sizes) - {disk.disk_id for disk in now.disks}):
        yield finding(
            "disk-removed",
            "warning",
            f"{name}/{disk_id}",
            f"disk {disk_id!r} of {name!r} is in its checkpoint and not in the machine any more",
            "The next checkpoint is without it.",
        )
    if now.name != then.name:
        yield finding(
            "machine-renamed",
            "info",
            name,
            f"machine {name!r} is called {now.name!r} now; in its checkpoint {then.name!r}",
            "Call it by its new name in the plan, or by its id.",
        )
    networks = ({nic.network for nic in now.nics}, {nic.network for nic in then.nics})
    if networks[0] != networks[1]:
        yield finding(
            "machine-replugged",
            "warning",
            name,
            f"machine {name!r} is plugged into {', '.join(sorted(networks[0])) or 'nothing'}, in its checkpoint into"
            f" {', '.join(sorted(networks[1])) or 'nothing'}",
            "Map the new network in the plan.",
        )
    if (now.cpus, now.memory_bytes, now.firmware) != (then.cpus, then.memory_bytes, then.firmware):
        yield finding(
            "machine-resized",
            "info",
            name,
            f"machine {name!r} has {now.cpus} processors, {format_size(now.memory_bytes)} and {now.firmware}, in its"
            f" checkpoint {then.cpus}, {format_size(then.memory_bytes)} and {then.firmware}",
            "The next checkpoint holds what it has now.",
        )
