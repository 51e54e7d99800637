"""Machines as libvirt has them, turned into facts."""

from __future__ import annotations

import contextlib
from typing import Any

from farshore.errors import FarshoreError
from farshore.model.machine import DiskFacts, Finding, MachineFacts, NicFacts, Power
from farshore.platforms.kvm import domain as domains
from farshore.platforms.kvm.connection import asking, libvirt
from farshore.platforms.kvm.domain import Domain


def read(handle: Any) -> Domain:
    """Return what a domain is: as it runs, else as it is defined."""
    with asking("reading a machine's definition"):
        return domains.parse(handle.XMLDesc(0))


def defined(handle: Any) -> Domain:
    """Return what a domain will be when it starts next."""
    return domains.parse(defined_xml(handle))


def defined_xml(handle: Any) -> str:
    """Return the text of :func:`defined`, fit to be defined again."""
    with asking("reading a machine's definition"):
        return str(handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))


def power(handle: Any) -> Power:
    """Return a domain's state as libvirt has it now."""
    with asking("reading a machine's state"):
        state = handle.state(0)[0]
    if state in {libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED, libvirt.VIR_DOMAIN_SHUTDOWN}:
        return "on"
    if state in {libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED}:
        return "paused"
    if state in {libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED}:
        return "off"
    return "unknown"


def is_shut_down(handle: Any) -> bool:
    """Say whether a guest has powered itself off, and libvirt has not noticed yet that nothing of it runs any more."""
    with contextlib.suppress(libvirt.libvirtError):
        return bool(handle.state(0)[0] == libvirt.VIR_DOMAIN_SHUTDOWN)
    return False


def size_bytes(handle: Any, disk: domains.DomainDisk) -> int:
    """Return the size that the guest sees of a disk."""
    with asking(f"reading the size of disk {disk.target}"):
        return int(handle.blockInfo(disk.target if handle.isActive() else disk.path)[0])


def facts(handle: Any) -> MachineFacts:
    """Return the facts of a machine; what could not be read becomes a finding."""
    found = read(handle)
    findings = list(_findings(found))
    disks = []
    for disk in found.disks:
        size = 0
        try:
            size = size_bytes(handle, disk)
        except FarshoreError as error:
            findings.append(
                Finding(
                    code="disk-unreadable",
                    severity="error",
                    subject=f"{found.name}/{disk.target}",
                    message=error.message,
                    remedy="Make the disk's image available again.",
                )
            )
        disks.append(
            DiskFacts(
                disk_id=disk.target,
                size_bytes=size,
                path=disk.path,
                format=disk.format,
                bus=disk.bus,
                boot=disk.boot,
                tracked=disk.tracked,
            )
        )
    leases = _leases(handle)
    tags = {"machine": found.machine}
    if found.owner:
        tags |= {"farshore.tag": found.owner.tag, "farshore.purpose": found.owner.purpose}
        if found.owner.bios_id:
            tags["bios_id"] = found.owner.bios_id
    fence = defined(handle).fence
    if fence:
        tags["farshore.fenced"] = str(fence.epoch)
    return MachineFacts(
        machine_id=found.machine_id,
        name=found.name,
        power=power(handle),
        cpus=found.cpus,
        memory_bytes=found.memory_bytes,
        firmware=found.firmware,
        architecture=found.architecture,
        disks=tuple(disks),
        nics=tuple(
            NicFacts(mac=nic.mac, network=nic.network, model=nic.model, addresses=tuple(leases.get(nic.mac, ())))
            for nic in found.nics
        ),
        tags=tags,
        findings=tuple(findings),
    )


def _findings(found: Domain) -> list[Finding]:
    findings = []
    for disk in found.disks:
        subject = f"{found.name}/{disk.target}"
        if disk.read_only:
            continue
        if not disk.tracked:
            findings.append(
                Finding(
                    code="no-change-tracking",
                    severity="warning",
                    subject=subject,
                    message=f"disk {disk.target} of {found.name} is {disk.format}, which carries no persistent bitmap: "
                    "each cycle reads the whole disk",
                    remedy="Convert the disk to qcow2.",
                )
            )
        if disk.kind not in {"file", "block"}:
            findings.append(
                Finding(
                    code="disk-network",
                    severity="warning",
                    subject=subject,
                    message=f"disk {disk.target} of {found.name} is of type {disk.kind}: it can be replicated while "
                    "the machine runs, but not while it is stopped",
                    remedy="A planned failover needs the last changes of the stopped machine: keep disks in files.",
                )
            )
    return findings


def _leases(handle: Any) -> dict[str, list[str]]:
    """Return the addresses that libvirt's DHCP gave, by MAC; empty where it knows none."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(libvirt.libvirtError):
        for interface in handle.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE, 0).values():
            for address in interface.get("addrs") or ():
                found.setdefault(str(interface["hwaddr"]).lower(), []).append(str(address["addr"]))
    return found
