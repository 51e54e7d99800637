"""Domains without a guest: what one would write is written by the qemu-io command of the running QEMU itself."""

from __future__ import annotations

import subprocess
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
from farshore.platforms.contract import Kind, Snapshot
from farshore.platforms.kvm import images
from farshore.platforms.kvm.domain import element
from farshore.platforms.kvm.source import KvmSource
from farshore.testing.lab.site import Site
from farshore.units import MIB

SIZE = 8 * MIB


class Machine:
    """A domain with disks ``vda`` and ``vdb`` (or as ``disks`` says) that boots nothing."""

    def __init__(
        self, site: Site, folder: Path, name: str, disks: Mapping[str, str] | None = None, size_bytes: int = SIZE
    ) -> None:
        self.site = site
        self.folder = folder
        self.name = name
        self.connection = site.connect()
        self.disks = dict(disks or {"vda": "qcow2", "vdb": "qcow2"})
        self.machine_id = str(uuid.uuid4())
        for target, kind in self.disks.items():
            qemu_img("create", "-q", "-f", kind, self.path(target), str(size_bytes))
        self.define()

    def path(self, target: str) -> Path:
        return self.folder / f"{self.name}-{target}.img"

    def key(self, target: str) -> str:
        return f"{self.machine_id}/{target}"

    def define(self) -> None:
        root = ET.Element("domain", {"type": "qemu"})
        ET.SubElement(root, "name").text = self.name
        ET.SubElement(root, "uuid").text = self.machine_id
        ET.SubElement(root, "memory", {"unit": "MiB"}).text = "32"
        system = ET.SubElement(root, "os")
        ET.SubElement(system, "type", {"arch": "x86_64", "machine": "pc"}).text = "hvm"
        ET.SubElement(ET.SubElement(root, "features"), "acpi")
        devices = ET.SubElement(root, "devices")
        for target, kind in self.disks.items():
            item = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
            ET.SubElement(item, "driver", {"name": "qemu", "type": kind, "discard": "unmap"})
            ET.SubElement(item, "source", {"file": str(self.path(target))})
            ET.SubElement(item, "target", {"dev": target, "bus": "virtio"})
        cdrom = ET.SubElement(devices, "disk", {"type": "file", "device": "cdrom"})
        ET.SubElement(cdrom, "target", {"dev": "hdc", "bus": "ide"})
        self.connection.defineXML(ET.tostring(root, encoding="unicode"))

    @property
    def handle(self) -> Any:
        return self.connection.lookupByUUIDString(self.machine_id)

    def start(self) -> None:
        self.handle.create()

    def kill(self) -> None:
        """Kill -9 of its QEMU: bitmaps are not stored."""
        pid = (self.site.folder / "run" / "libvirt" / "qemu" / f"{self.name}.pid").read_text().strip()
        self.site.run("kill", "-9", pid)
        wait_for(lambda: not self.handle.isActive())

    def off(self) -> None:
        self.handle.destroy()

    def write(self, target: str, offset: int, length: int, pattern: int) -> None:
        self.io(target, f"write -P {pattern} {offset} {length}")

    def put(self, target: str, offset: int, data: bytes) -> None:
        content = self.folder / f"{self.name}-written"
        content.write_bytes(data)
        self.io(target, f"write -s {content} {offset} {len(data)}")

    def zero(self, target: str, offset: int, length: int) -> None:
        self.io(target, f"write -z -u {offset} {length}")

    def io(self, target: str, command: str) -> None:
        if not self.handle.isActive():
            subprocess.run(
                ["qemu-io", "-f", self.disks[target], "-c", command, self.active(target)],
                check=True,
                capture_output=True,
            )
            return
        device = f"/machine/peripheral/virtio-disk{list(self.disks).index(target)}/virtio-backend"
        said = libvirt_qemu.qemuMonitorCommand(
            self.handle, f'qemu-io -d {device} "{command}"', libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        )
        assert not said, said  # what qemu-io itself says goes to the log of QEMU

    def active(self, target: str) -> str:
        root = element(self.handle.XMLDesc(0))
        source = root.find(f"devices/disk/target[@dev='{target}']/../source")
        assert source is not None
        return source.get("file", "")

    def image(self, target: str) -> Path:
        """Return a raw image of the disk as it is now, made without anything of ours: paused, read by qemu-img."""
        out = self.folder / f"{self.name}-{target}-{uuid.uuid4().hex[:6]}.raw"
        active = self.handle.isActive()
        if active:
            self.handle.suspend()
        try:
            qemu_img("convert", "-U", "-f", self.disks[target], "-O", "raw", self.active(target), out)
        finally:
            if active:
                self.handle.resume()
        return out

    def checkpoints(self) -> set[str]:
        return {item.getName() for item in self.handle.listAllCheckpoints(0)}

    def bitmaps(self, target: str) -> set[str]:

        return {bitmap.name for layer in images.chain(Path(self.active(target))) for bitmap in layer.bitmaps}

    def remove(self) -> None:
        if self.handle.isActive():
            self.handle.destroy()
        self.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
        self.connection.close()


class Replica:
    """What a target would hold: raw images that each cycle brings up to date."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.point: str | None = None
        self.moved: dict[str, int] = {}

    def pull(self, source: KvmSource, snapshot: Snapshot, key: str, base: str | None) -> Path:
        size = snapshot.disk(key).size_bytes
        path = self.folder / f"replica-{key.replace('/', '-')}.raw"
        if base is None:
            path.write_bytes(b"")
        with path.open("r+b") as image:
            image.truncate(size)
            reader = source.reader(snapshot, key)
            self.moved[key] = 0
            for extent in source.changed(snapshot, key, base):
                for offset, length in pieces(extent.offset, extent.length):
                    buffer = bytearray(length)
                    if extent.kind is Kind.DATA:
                        reader.read_into(offset, memoryview(buffer))
                        self.moved[key] += length
                    image.seek(offset)
                    image.write(buffer)
            reader.close()
        return path


def pieces(offset: int, length: int) -> Iterator[tuple[int, int]]:
    for at in range(offset, offset + length, MIB):
        yield at, min(MIB, offset + length - at)


def qemu_img(*argv: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True)


def same(first: Path, second: Path) -> None:
    done = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "raw", first, second], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def wait_for(condition: Any, limit_s: float = 90) -> None:

    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)
