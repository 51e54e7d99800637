"""Machines, disks, networks and pools as a platform reports them."""

from __future__ import annotations

from typing import Literal

from farshore.model.base import Report
from farshore.model.prices import Prices

Power = Literal["on", "off", "paused", "unknown"]


def disk_key(machine_id: str, disk_id: str) -> str:
    """Return the key that names one disk everywhere: ``"<machine id>/<disk id>"``."""
    return f"{machine_id}/{disk_id}"


class Finding(Report):
    """Something that a person should know or do. ``error`` stops what asked for the check."""

    code: str
    severity: Literal["info", "warning", "error"]
    message: str
    remedy: str = ""
    subject: str = ""


class DiskFacts(Report):
    """One disk of a machine, in the order in which the machine sees it.

    ``disk_id`` is the platform's name of the slot (``vda``), stable over the machine's life.
    ``tracked`` says that the platform can name changed blocks of this disk.
    """

    disk_id: str
    size_bytes: int
    path: str = ""
    format: str = "raw"
    bus: str = "virtio"
    boot: bool = False
    tracked: bool = True


class NicFacts(Report):
    """One network interface. ``network`` is the platform's name of what it is plugged into."""

    mac: str
    network: str
    model: str = "virtio"
    addresses: tuple[str, ...] = ()


class MachineFacts(Report):
    """A machine as its platform reports it. ``machine_id`` is the platform's own stable id (a UUID).

    ``on_points``: we made it, and its disks are not whole without checkpoints.
    """

    machine_id: str
    name: str
    power: Power = "unknown"
    cpus: int = 1
    memory_bytes: int = 0
    firmware: Literal["bios", "uefi"] = "bios"
    architecture: str = "x86_64"
    disks: tuple[DiskFacts, ...] = ()
    nics: tuple[NicFacts, ...] = ()
    tags: dict[str, str] = {}
    findings: tuple[Finding, ...] = ()
    on_points: bool = False


def same_disks(machine: MachineFacts, other: MachineFacts) -> dict[str, str]:
    """Return, by the ids of disks of ``machine``, the ids of the disks of ``other`` that hold, or held, the same.

    By their names; where platforms name disks each in their own way, by their order, the one that boots first. What
    one of both has not is left out.
    """
    named = {(disk.disk_id, disk.boot) for disk in machine.disks} & {(disk.disk_id, disk.boot) for disk in other.disks}
    if named:
        return {disk_id: disk_id for disk_id, _ in named}
    mine, others = (sorted(one.disks, key=lambda disk: not disk.boot) for one in (machine, other))
    return {disk.disk_id: twin.disk_id for disk, twin in zip(mine, others, strict=False)}


class NetworkFacts(Report):
    """A network that machines of a site can be plugged into."""

    name: str
    subnet: str = ""
    isolated: bool = False
    active: bool = True


class PoolFacts(Report):
    """Where a site keeps replicas."""

    path: str
    capacity_bytes: int
    free_bytes: int
    filesystem: str = ""


class ComputeLimits(Report):
    """What a provider takes at once from one account, over all nodes; None where it does not say.

    ``account`` names what the following count for, over all sites that have the same: by the provider's names of
    operations how many calls a second, of those that copies are written with and of those that points are read with;
    and ``drafts``, how many disks may be written at once. A disk has ``disk_bytes`` at most, and a machine one of the
    ``instance_types``, where there are such.
    """

    creates: int | None = None
    starts: int | None = None
    calls_per_s: float | None = None
    account: str = ""
    writes: dict[str, float] = {}
    reads: dict[str, float] = {}
    drafts: int | None = None
    disk_bytes: int | None = None
    instance_types: tuple[str, ...] | None = None


class Quota(Report):
    """How many machines and processors an account may have, and has."""

    machines: int | None = None
    machines_used: int = 0
    cpus: int | None = None
    cpus_used: int = 0


class Inventory(Report):
    """All that a node found at its site.

    ``drill_probes`` are the kinds of probes that see something of machines in isolated networks; None: all do.
    ``probe_helper`` names who is admitted to those networks to try them; empty: nobody. ``one_address_space``: they may
    not have addresses that one of ``networks`` has.
    """

    platform: str
    machines: tuple[MachineFacts, ...] = ()
    networks: tuple[NetworkFacts, ...] = ()
    pool: PoolFacts | None = None
    accelerator: str = ""
    limits: ComputeLimits = ComputeLimits()
    quota: Quota | None = None
    prices: Prices | None = None
    drill_probes: tuple[str, ...] | None = None
    probe_helper: str = ""
    one_address_space: bool = False
    findings: tuple[Finding, ...] = ()
