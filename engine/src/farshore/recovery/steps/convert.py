"""virt-v2v-in-place: puts the drivers of the target's platform into a guest, where a node has it (virt-v2v(1))."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from farshore.model.guest import GuestChange, MachinePrepareParams, MachinePrepareResult
from farshore.model.machine import Finding
from farshore.platforms.contract import OpenDisk

TOOL: Final = "virt-v2v-in-place"
#: It starts a small machine of its own to work in; without hardware virtualisation that takes minutes.
TIMEOUT_S: Final = 3600.0
#: What it is there for.
_CURES: Final = frozenset({"driver-disk-missing", "driver-network-missing"})


def wanted(params: MachinePrepareParams, result: MachinePrepareResult) -> bool:
    """Say whether a guest is to be converted: the plan allows it, and something is missing."""
    return params.policy.convert != "off" and any(found.code in _CURES for found in result.findings)


def convert(
    params: MachinePrepareParams, disks: Sequence[OpenDisk], run: Callable[[list[str], float], tuple[int, str]]
) -> tuple[GuestChange | None, Finding | None]:
    """Convert a guest; ``run`` runs a program for so many seconds and returns its status and what it said."""
    if shutil.which(TOOL) is None:
        return None, Finding(
            code="converter-missing",
            severity="warning",
            subject=params.name,
            message=f"{TOOL} is not installed on this node: the guest was not converted",
            remedy="As root: apt-get install virt-v2v (and virtio-win for Windows).",
        )
    with tempfile.TemporaryDirectory(prefix="farshore-guest-") as folder:
        described = Path(folder) / "machine.xml"
        described.write_text(_described(params, disks))
        status, said = run([TOOL, "-i", "libvirtxml", os.fspath(described)], TIMEOUT_S)
    if status:
        return None, Finding(
            code="converter-failed",
            severity="error",
            subject=params.name,
            message=f"{TOOL} ended with status {status}: {said.strip()[-300:]}",
            remedy="Install the drivers in the machine at the source.",
        )
    return GuestChange(what="converted", detail=TOOL), None


def _described(params: MachinePrepareParams, disks: Sequence[OpenDisk]) -> str:
    root = ET.Element("domain", {"type": "kvm"})
    ET.SubElement(root, "name").text = params.name
    ET.SubElement(root, "memory", {"unit": "MiB"}).text = "1024"
    ET.SubElement(root, "vcpu").text = "1"
    system = ET.SubElement(root, "os", {"firmware": "efi"} if params.firmware == "uefi" else {})
    ET.SubElement(system, "type", {"arch": "x86_64"}).text = "hvm"
    devices = ET.SubElement(root, "devices")
    for disk in disks:
        item = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
        ET.SubElement(item, "driver", {"name": "qemu", "type": "raw"})
        ET.SubElement(item, "source", {"file": str(disk.path)})
        ET.SubElement(item, "target", {"dev": disk.disk_id, "bus": disk.bus})
    for nic in params.nics:
        item = ET.SubElement(devices, "interface", {"type": "network"})
        ET.SubElement(item, "mac", {"address": nic.mac})
        ET.SubElement(item, "source", {"network": "default"})
    return ET.tostring(root, encoding="unicode")


def run(argv: list[str], timeout_s: float) -> tuple[int, str]:
    """Run a program; one that does not end in time has failed."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, f"did not end in {timeout_s:g} s"
    return done.returncode, done.stderr or done.stdout
