"""What is done to a guest before it is switched on: from the plan and from what is made of its machine. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from farshore.model.guest import GuestDisk, GuestNetwork, GuestNic, MachinePrepareParams
from farshore.model.machine import MachineFacts, NicFacts
from farshore.model.plan import Plan, Purpose
from farshore.model.task import MachineCreateParams, NicSpec

_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
#: After these a machine may go by another name.
_RENAMES: Final[tuple[Purpose, ...]] = ("failover", "migration")


def preparation(plan: Plan, name: str, order: MachineCreateParams, machine_id: str) -> MachinePrepareParams | None:
    """Return what is done to the guest of the machine that ``order`` made; None if nothing is.

    Args:
        plan: the protection plan.
        name: the machine's in the plan.
        order: what was made of it.
        machine_id: its id at the target.
    """
    settings = plan.machine(name)
    hostname = settings.recovery.hostname if order.purpose in _RENAMES else None
    said = any(settings.recovery.chosen()) or settings.recovery.hostname is not None
    if settings.guest.checks == "off" and not said:
        return None
    wanted = {disk.disk_id for disk in order.disks}
    return MachinePrepareParams(
        machine_id=machine_id,
        name=name,
        purpose=order.purpose,
        firmware=order.facts.firmware,
        disks=tuple(
            GuestDisk(disk_id=disk.disk_id, bus=disk.bus, boot=disk.boot)
            for disk in order.facts.disks
            if disk.disk_id in wanted
        ),
        nics=tuple(_nic(plan, order, nic, facts) for nic, facts in zip(order.nics, order.facts.nics, strict=False)),
        hostname=hostname,
        policy=settings.guest,
        epoch=order.epoch,
    )


def _nic(plan: Plan, order: MachineCreateParams, nic: NicSpec, facts: NicFacts) -> GuestNic:
    network = _network(plan, order.purpose, nic, facts)
    return GuestNic(
        mac=nic.mac,
        source_mac=facts.mac,
        model=facts.model,
        address=nic.address,
        prefix=network.subnet.prefixlen if network else None,
        gateway=str(network.gateway) if network and network.gateway else None,
        dns=tuple(str(server) for server in network.dns) if network else (),
        known=facts.addresses,
    )


def _network(plan: Plan, purpose: Purpose, nic: NicSpec, facts: NicFacts) -> GuestNetwork | None:
    """Return how machines are addressed in the network that an interface is plugged into."""
    for mapping in plan.networks:
        if purpose == "drill":
            if mapping.source == facts.network or len(plan.networks) == 1:
                return mapping.guest.get(purpose) or GuestNetwork(subnet=mapping.drill.subnet)
        elif nic.network in {mapping.source, mapping.failover, mapping.failback, mapping.migration}:
            return mapping.guest.get(purpose)
    return None


def new_mac(machine_id: str, mac: str, purpose: Purpose) -> str:
    """Return another hardware address for an interface: of QEMU's range, the same each time."""
    digest = hashlib.sha256(f"{machine_id}/{mac.lower()}/{purpose}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def bios_id(facts: MachineFacts) -> str:
    """Return the UUID that a machine's firmware has told so far; empty if its platform tells none."""
    found = facts.tags.get("bios_id") or facts.machine_id
    return found if _UUID.fullmatch(found) else ""
