"""Guests whose initial file system lacks the disk's driver: not started before they were looked into, started after."""

from __future__ import annotations

import gzip
import os
import subprocess
import zlib
from pathlib import Path

import pytest
from doubles import debian_tree, small_guest
from doubles.guest_disks import START, codes, job, read, run, sound, tool

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="the laboratory's guest is built as root"),
    pytest.mark.timeout(600),
]
CACHE = Path(os.environ.get("FARSHORE_LAB_CACHE", ".cache/lab"))


def test_a_guest_without_the_drivers_of_its_disk_is_given_its_own(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    version = small_guest.make(disk, small_guest.laboratorys(CACHE))
    path = f"/boot/initrd.img-{version}"
    before = read(disk, path)
    marks = (small_guest.UP, small_guest.LOST)
    assert small_guest.LOST in small_guest.boot(disk, version, "virtio-blk-pci", "quiet", tmp_path, marks)
    result = run(job(bus="virtio"), disk)
    assert (codes(result)["driver-disk-added"], result.stopped) == ("warning", "")
    assert small_guest.UP in small_guest.boot(disk, version, "virtio-blk-pci", "quiet", tmp_path, marks)
    # Where its disk needs no driver it is what it was.
    run(job(bus="elsewhere"), disk)
    assert read(disk, path) == before
    assert sound(disk)


@pytest.mark.skipif(
    not debian_tree.DISK.exists(), reason="python -m doubles.debian_tree (in engine/tests, as root) makes the disk"
)
@pytest.mark.skipif(not os.environ.get("FARSHORE_CROSSING"), reason="two starts of a Debian take more than a minute")
def test_a_debian_of_virtio_disks_starts_from_nvme(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    subprocess.run(["cp", "--sparse=always", debian_tree.DISK, disk], check=True)
    names = tool("debugfs", "-R", "ls -p /boot", f"{disk}?offset={START}").decode().split("/")
    version = next(name for name in names if name.startswith("vmlinuz-")).removeprefix("vmlinuz-")
    path = f"/boot/initrd.img-{version}"
    # What MODULES=dep makes of a guest on virtio: an initramfs that has never heard of NVMe.
    (tmp_path / "few").write_bytes(gzip.compress(_without(zlib.decompress(read(disk, path) or b"", 31), "/nvme"), 1))
    for command in (f"rm {path}", f"write {tmp_path / 'few'} {path}"):
        tool("debugfs", "-w", "-R", command, f"{disk}?offset={START}")
    # It comes as far as its own first program, which ends: the kernel says so, and starts again.
    append, marks = "rootdelay=1 init=/bin/true", ("Gave up waiting for root", "Attempted to kill init")
    assert marks[0] in small_guest.boot(disk, version, "nvme,serial=root", append, tmp_path, marks)
    assert codes(run(job(bus="nvme"), disk)) == {"driver-disk-added": "warning", "boot-root-by-path": "warning"}
    assert marks[1] in small_guest.boot(disk, version, "nvme,serial=root", append, tmp_path, marks)
    assert sound(disk)


def _without(archive: bytes, part: str) -> bytes:
    """Return an archive without the modules whose path has ``part``."""
    kept, at = bytearray(), 0
    while archive[at : at + 6] == b"070701":
        size, length = (int(archive[at + place : at + place + 8], 16) for place in (54, 94))
        name = archive[at + 110 : at + 110 + length - 1].decode()
        data = -(-(at + 110 + length) // 4) * 4
        end = -(-(data + size) // 4) * 4
        if not (part in name and name.endswith(".ko")):
            kept += archive[at:end]
        at = end
    return bytes(kept)
