"""Domain XML: what we read of a machine's, and the machines that we write (https://libvirt.org/formatdomain.html).

Built with elements, never with strings: a name from a plan cannot become markup.
"""

from __future__ import annotations

import string
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from farshore.model.task import MachineCreateParams

#: Namespaces of what we note in a domain's metadata.
OWNER: Final = "https://farshore.dr/xmlns/owner/1"
FENCE: Final = "https://farshore.dr/xmlns/fence/1"
#: Of libvirt's way to hand QEMU arguments that it has no words for (https://libvirt.org/drvqemu.html).
QEMU: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
#: A floppy whose image can never exist: libvirt refuses to start the machine and its message names the path.
FENCE_PATH: Final = "/farshore-fenced"
#: Buses and models of QEMU; what has others comes from another platform, and gets virtio.
_BUSES: Final = frozenset({"virtio", "scsi", "sata", "ide", "usb"})
_MODELS: Final = frozenset(
    {"virtio", "virtio-net", "e1000", "e1000e", "rtl8139", "vmxnet3", "igb", "pcnet", "ne2k_pci", "i82551", "i82557b"}
)
#: Machine types that we carry over; all else becomes the first.
_MACHINES: Final = ("pc", "q35")


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """A disk (not a CD-ROM or floppy) of a domain. ``path`` is empty for what is neither a file nor a device."""

    target: str
    kind: str
    path: str
    format: str
    bus: str
    boot: bool
    read_only: bool

    @property
    def tracked(self) -> bool:
        """Whether its image can carry a persistent bitmap."""
        return self.format == "qcow2" and not self.read_only


@dataclass(frozen=True, slots=True)
class DomainNic:
    """A network interface; ``network`` is a network's or a bridge's name."""

    mac: str
    network: str
    model: str


@dataclass(frozen=True, slots=True)
class Owner:
    """What we note about a machine that we made."""

    tag: str
    purpose: str
    epoch: int
    bios_id: str = ""


@dataclass(frozen=True, slots=True)
class Fence:
    """What keeps a machine from starting. ``barred``: the device that makes libvirt refuse is there."""

    epoch: int
    autostart: bool
    barred: bool


@dataclass(frozen=True, slots=True)
class Domain:
    """What we need of a domain's XML."""

    machine_id: str
    name: str
    kind: str
    cpus: int
    memory_bytes: int
    firmware: Literal["bios", "uefi"]
    architecture: str
    machine: str
    disks: tuple[DomainDisk, ...]
    other_targets: tuple[str, ...]
    nics: tuple[DomainNic, ...]
    console_log: str
    owner: Owner | None
    fence: Fence | None

    def disk(self, target: str) -> DomainDisk | None:
        """Return the disk at ``target``."""
        return next((disk for disk in self.disks if disk.target == target), None)


def element(text: str) -> ET.Element:
    """Parse what libvirt told."""
    return ET.fromstring(text)  # noqa: S314  libvirt is trusted with all our data


def text(root: ET.Element) -> str:
    """Return XML text."""
    return ET.tostring(root, encoding="unicode")


def parse(xml: str) -> Domain:
    """Read a domain's XML as :func:`virDomainGetXMLDesc` gives it."""
    root = element(xml)
    system = _must(root, "os")
    system_type = _must(system, "type")
    loader = system.find("loader")
    uefi = system.get("firmware") == "efi" or (loader is not None and loader.get("type") == "pflash")
    devices = _must(root, "devices")
    found = [(item, _target(item)) for item in devices.findall("disk")]
    disks = [_disk(item) for item, _ in found if item.get("device", "disk") in {"disk", "lun"}]
    chosen = _boots_from([item for item, _ in found if item.get("device", "disk") in {"disk", "lun"}])
    machine = system_type.get("machine", "")
    log = devices.find("serial/log")
    return Domain(
        machine_id=root.findtext("uuid", ""),
        name=root.findtext("name", ""),
        kind=root.get("type", ""),
        cpus=int(_must(root, "vcpu").get("current", "") or root.findtext("vcpu", "1")),
        memory_bytes=int(root.findtext("memory", "0")) * 1024,  # libvirt always tells KiB
        firmware="uefi" if uefi else "bios",
        architecture=system_type.get("arch", ""),
        machine="q35" if "q35" in machine.split("-") else "pc",  # "pc-q35-7.2", "pc-i440fx-7.2"
        disks=tuple(
            DomainDisk(disk.target, disk.kind, disk.path, disk.format, disk.bus, index == chosen, disk.read_only)
            for index, disk in enumerate(disks)
        ),
        other_targets=tuple(t for item, t in found if item.get("device", "disk") not in {"disk", "lun"}),
        nics=tuple(_nic(item) for item in devices.findall("interface") if item.find("mac") is not None),
        console_log=log.get("file", "") if log is not None else "",
        owner=_owner(root.find(f"metadata/{{{OWNER}}}owner")),
        fence=_fence(root.find(f"metadata/{{{FENCE}}}fence"), barred=any(_bar_of(item) for item, _ in found)),
    )


def _must(root: ET.Element, path: str) -> ET.Element:
    found = root.find(path)
    if found is None:
        raise ValueError(f"domain XML without <{path}>")
    return found


def _target(item: ET.Element) -> str:
    return _must(item, "target").get("dev", "")


def _disk(item: ET.Element) -> DomainDisk:
    source, driver = item.find("source"), item.find("driver")
    target = _must(item, "target")
    path = ""
    if source is not None:
        path = source.get("file") or source.get("dev") or ""
    return DomainDisk(
        target=target.get("dev", ""),
        kind=item.get("type", ""),
        path=path,
        format=driver.get("type", "raw") if driver is not None else "raw",
        bus=target.get("bus", "virtio"),
        boot=False,
        read_only=item.find("readonly") is not None,
    )


def _boots_from(items: Sequence[ET.Element]) -> int:
    """Return the index of the disk that is booted first: the lowest order, else the first disk."""
    orders = [
        (int(boot.get("order", "0")), n) for n, item in enumerate(items) if (boot := item.find("boot")) is not None
    ]
    return min(orders)[1] if orders else 0


def _nic(item: ET.Element) -> DomainNic:
    source, model = item.find("source"), item.find("model")
    network = ""
    if source is not None:
        network = source.get("network") or source.get("bridge") or source.get("dev") or ""
    return DomainNic(
        mac=_must(item, "mac").get("address", "").lower(),
        network=network,
        model=model.get("type", "virtio") if model is not None else "virtio",
    )


def _owner(item: ET.Element | None) -> Owner | None:
    if item is None:
        return None
    return Owner(item.get("tag", ""), item.get("purpose", ""), int(item.get("epoch", "0")), item.get("bios_id", ""))


def _fence(item: ET.Element | None, *, barred: bool) -> Fence | None:
    if item is None:
        return None
    return Fence(int(item.get("epoch", "0")), item.get("autostart") == "yes", barred)


# --- fencing -----------------------------------------------------------------------------------------------------


def fenced(xml: str, epoch: int, *, autostart: bool) -> str:
    """Return the domain marked as fenced, with a device that keeps libvirt from starting it.

    ``autostart`` is noted, so that it can be given back.
    """
    root = element(unfenced(xml))
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    ET.register_namespace("farshore-fence", FENCE)
    note = {"epoch": str(epoch), "autostart": "yes" if autostart else "no"}
    ET.SubElement(metadata, f"{{{FENCE}}}fence", note)
    disk = ET.SubElement(_must(root, "devices"), "disk", {"type": "file", "device": "floppy"})
    ET.SubElement(disk, "source", {"file": f"{FENCE_PATH}/epoch-{epoch}", "startupPolicy": "mandatory"})
    ET.SubElement(disk, "target", {"dev": "fda", "bus": "fdc"})
    ET.SubElement(disk, "readonly")
    return text(root)


def unfenced(xml: str) -> str:
    """Return the domain without the mark, the device, and the controller that libvirt added for it."""
    root = element(xml)
    metadata = root.find("metadata")
    if metadata is not None:
        for item in metadata.findall(f"{{{FENCE}}}fence"):
            metadata.remove(item)
        if not len(metadata):
            root.remove(metadata)
    devices = _must(root, "devices")
    bars = [item for item in devices.findall("disk") if _bar_of(item)]
    for item in bars:
        devices.remove(item)
    if bars and not any(item.get("device") == "floppy" for item in devices.findall("disk")):
        for item in devices.findall("controller[@type='fdc']"):
            devices.remove(item)
    return text(root)


def _bar_of(item: ET.Element) -> bool:
    source = item.find("source")
    return source is not None and source.get("file", "").startswith(f"{FENCE_PATH}/")


# --- machines that we make ---------------------------------------------------------------------------------------


def build(
    spec: MachineCreateParams,
    *,
    machine_id: str,
    disks: Mapping[str, Path],
    console_log: Path,
    accelerator: Literal["tcg", "kvm"],
) -> str:
    """Return the XML of a machine as ``spec`` says: the source's hardware on the target's networks.

    Args:
        spec: what is to be made.
        machine_id: its UUID.
        disks: the writable image of each disk id.
        console_log: where the text of its first serial port goes.
        accelerator: what runs it.
    """
    facts = spec.facts
    root = ET.Element("domain", {"type": "kvm" if accelerator == "kvm" else "qemu"})
    ET.SubElement(root, "name").text = spec.name
    ET.SubElement(root, "uuid").text = machine_id
    ET.register_namespace("farshore", OWNER)
    metadata = ET.SubElement(root, "metadata")
    note = {"tag": spec.tag, "purpose": spec.purpose, "epoch": str(spec.epoch)}
    keeps_id = bool(spec.bios_id) and spec.bios_id.lower() != machine_id.lower()
    ET.SubElement(metadata, f"{{{OWNER}}}owner", {**note, "bios_id": spec.bios_id} if keeps_id else note)
    ET.SubElement(root, "memory", {"unit": "b"}).text = str(spec.memory_bytes)
    ET.SubElement(root, "vcpu").text = str(spec.cpus)
    machine = facts.tags.get("machine", "")
    if machine not in _MACHINES:
        machine = _MACHINES[0]
    if facts.firmware == "uefi":
        machine = "q35"  # Debian's OVMF supports no other
    system = ET.SubElement(root, "os", {"firmware": "efi"} if facts.firmware == "uefi" else {})
    ET.SubElement(system, "type", {"arch": facts.architecture, "machine": machine}).text = "hvm"
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(root, "cpu", {"mode": "host-model" if accelerator == "kvm" else "maximum"})
    ET.SubElement(root, "clock", {"offset": "utc"})
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        ET.SubElement(root, event).text = action
    devices = ET.SubElement(root, "devices")
    _add_disks(devices, spec, disks)
    _add_nics(devices, spec)
    serial = ET.SubElement(devices, "serial", {"type": "pty"})
    ET.SubElement(serial, "log", {"file": str(console_log), "append": "off"})
    channel = ET.SubElement(devices, "channel", {"type": "unix"})
    ET.SubElement(channel, "target", {"type": "virtio", "name": "org.qemu.guest_agent.0"})
    video = ET.SubElement(devices, "video")
    ET.SubElement(video, "model", {"type": "vga"})
    rng = ET.SubElement(devices, "rng", {"model": "virtio"})
    ET.SubElement(rng, "backend", {"model": "random"}).text = "/dev/urandom"
    if keeps_id:
        _add_bios_id(root, spec.bios_id)
    return text(root)


def _add_bios_id(root: ET.Element, bios_id: str) -> None:
    """Have the firmware tell another UUID than libvirt's, which is taken where the machine's predecessor still is."""
    ET.register_namespace("qemu", QEMU)
    command = ET.SubElement(root, f"{{{QEMU}}}commandline")
    for value in ("-smbios", f"type=1,uuid={uuid.UUID(bios_id)}"):
        ET.SubElement(command, f"{{{QEMU}}}arg", {"value": value})


def _add_disks(devices: ET.Element, spec: MachineCreateParams, images: Mapping[str, Path]) -> None:
    # The source's order, so that a bus without stable names shows the disks as the guest knew them.
    order = {disk.disk_id: index for index, disk in enumerate(spec.facts.disks)}
    boots = next((disk.disk_id for disk in spec.facts.disks if disk.boot), None)
    ordered = sorted(spec.disks, key=lambda disk: order.get(disk.disk_id, len(order)))
    places = _places(spec, [disk.disk_id for disk in ordered])
    for wanted in ordered:
        device, bus = places[wanted.disk_id]
        item = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
        ET.SubElement(item, "driver", {"name": "qemu", "type": "qcow2", "discard": "unmap"})
        ET.SubElement(item, "source", {"file": str(images[wanted.disk_id])})
        ET.SubElement(item, "target", {"dev": device, "bus": bus})
        if wanted.disk_id == boots or (boots is None and wanted is spec.disks[0]):
            ET.SubElement(item, "boot", {"order": "1"})


def _places(spec: MachineCreateParams, disks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the device name and the bus of each disk: the source's own, or places of virtio where it has no such."""
    buses = {disk.disk_id: disk.bus for disk in spec.facts.disks}
    kept = {disk: (disk, bus) for disk in disks if (bus := buses.get(disk, "virtio")) in _BUSES}
    free = (f"vd{letter}" for letter in string.ascii_lowercase if f"vd{letter}" not in kept)
    return {disk: kept.get(disk) or (next(free), "virtio") for disk in disks}


def _add_nics(devices: ET.Element, spec: MachineCreateParams) -> None:
    models = {nic.mac.lower(): nic.model for nic in spec.facts.nics}
    for nic in spec.nics:
        item = ET.SubElement(devices, "interface", {"type": "network"})
        known = (nic.source_mac or nic.mac).lower()
        ET.SubElement(item, "mac", {"address": nic.mac})
        ET.SubElement(item, "source", {"network": nic.network})
        model = models.get(known, "virtio")
        ET.SubElement(item, "model", {"type": model if model in _MODELS else "virtio"})
