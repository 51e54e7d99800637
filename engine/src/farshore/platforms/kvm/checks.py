"""What a site has to offer, tried one by one; each check tells what it found in words for people."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from farshore import durable
from farshore.errors import FarshoreError
from farshore.model.machine import Finding
from farshore.platforms.kvm import firewall, images
from farshore.platforms.kvm.connection import Hypervisor, asking
from farshore.platforms.nbd import launcher
from farshore.units import GIB, format_size

_PACKAGES: Final = {
    images.TOOL: "qemu-utils",
    launcher.TOOL: "qemu-system-common",
    **dict.fromkeys(firewall.TOOLS, "iptables"),
}
#: libvirt has pull-mode backups with checkpoints, in the form that is used here, since 7.2; tried with 9.0.
_OLDEST: Final = (7, 2)
_LOW_BYTES: Final = 2 * GIB


def hypervisor(at: Hypervisor) -> list[Finding]:
    """Try to reach libvirt."""
    try:
        connection = at.connection()
        with asking("reading versions"):
            number, qemu = connection.getLibVersion(), connection.getVersion()
    except FarshoreError as error:
        return [
            Finding(
                code="libvirt-unreachable", severity="error", subject=at.uri, message=error.message, remedy=error.hint
            )
        ]
    version = (number // 1_000_000, number // 1000 % 1000)
    said = f"libvirt {version[0]}.{version[1]}, QEMU {qemu // 1_000_000}.{qemu // 1000 % 1000}"
    if version < _OLDEST:
        return [
            Finding(
                code="libvirt-too-old",
                severity="error",
                subject=at.uri,
                message=f"{said}: too old for backups with checkpoints",
                remedy=f"Install libvirt {_OLDEST[0]}.{_OLDEST[1]} or newer.",
            )
        ]
    return [Finding(code="libvirt", severity="info", subject=at.uri, message=said)]


def tools() -> list[Finding]:
    """Look for the tools that are run."""
    return [
        Finding(
            code="missing-tool",
            severity="error",
            subject=tool,
            message=f"{tool} is not installed",
            remedy=f"As root: apt-get install {package}",
        )
        for tool, package in _PACKAGES.items()
        if firewall.which(tool) is None
    ]


def folder(path: Path, what: str) -> list[Finding]:
    """Try to write in a folder, and look at its room."""
    probe = path / f".probe-{os.getpid()}"
    try:
        durable.write(probe, b"")
        durable.remove(probe)
    except OSError as error:
        return [
            Finding(
                code=f"{what}-not-writable",
                severity="error",
                subject=str(path),
                message=f"the {what} {path} cannot be written: {error.strerror}",
                remedy="Make room, or give the node's user the right to write there.",
            )
        ]
    free = shutil.disk_usage(path).free
    if free < _LOW_BYTES:
        return [
            Finding(
                code=f"{what}-low",
                severity="warning",
                subject=str(path),
                message=f"the {what} {path} has only {format_size(free)} free",
                remedy="Make room before a full one stops replication.",
            )
        ]
    return []


def accelerator(chosen: str) -> Finding:
    """Tell what recovered machines run with."""
    if chosen == "kvm":
        return Finding(code="accelerator", severity="info", message="recovered machines run with KVM")
    return Finding(
        code="accelerator",
        severity="warning",
        message="recovered machines are emulated (TCG), which is many times slower than KVM",
        remedy="Set platform.accelerator to kvm where a guest is known to run with it.",
    )
