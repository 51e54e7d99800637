"""A real Debian: what is sound is found sound, what is broken is named, what is written is there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from doubles import debian_tree, guest_disks
from doubles.guest_disks import START, codes, job, read, run, tool
from farshore.model.guest import GuestPolicy

pytestmark = pytest.mark.skipif(
    not debian_tree.DISK.exists(), reason="python -m doubles.debian_tree (in engine/tests, as root) makes the disk"
)
LOOK = job(policy=GuestPolicy(fix=False))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    copy = tmp_path / "disk.raw"
    subprocess.run(["cp", "--sparse=always", debian_tree.DISK, copy], check=True)
    return copy


def kernel() -> str:
    """Return the version of the one kernel that is installed."""
    names = tool("debugfs", "-R", "ls -p /boot", f"{debian_tree.DISK}?offset={START}").decode().split("/")
    return next(name for name in names if name.startswith("vmlinuz-")).removeprefix("vmlinuz-")


def put(disk: Path, path: str, content: bytes | None, folder: Path) -> None:
    """Write a file of the disk anew, or take it away."""
    commands = [f"rm {path}"]
    if content is not None:
        (folder / "file").write_bytes(content)
        commands.append(f"write {folder / 'file'} {path}")
    for command in commands:
        tool("debugfs", "-w", "-R", command, f"{disk}?offset={START}")


def test_a_fix_makes_it_fit_the_new_disk_and_harms_nothing(disk: Path) -> None:
    # grub-mkconfig found no link by UUID where it was made, so the menu names the disk by its path, as some guests do.
    assert codes(run(LOOK, disk)) == {"boot-root-by-path": "error"}
    result = run(job(hostname="shop-copy"), disk)
    assert (result.system, codes(result)) == ("Debian GNU/Linux 12 (bookworm)", {"boot-root-by-path": "warning"})
    assert read(disk, "/etc/hostname") == b"shop-copy\n"
    assert b"/dev/sda1" not in (read(disk, "/boot/grub/grub.cfg") or b"/dev/sda1")
    assert codes(run(LOOK, disk)) == {}
    assert guest_disks.sound(disk)


@pytest.mark.parametrize(
    ("path", "content", "code"),
    [
        ("/boot/initrd.img-{}", None, "driver-disk-missing"),
        ("/boot/initrd.img-{}", guest_disks.initramfs(()), "driver-disk-missing"),
        ("/etc/fstab", b"/dev/sda1 / ext4 defaults 0 1\n", "fstab-by-path"),
        ("/boot/grub/grub.cfg", None, "boot-loader-missing"),
        ("/boot/vmlinuz-{}", None, "kernel-missing"),
    ],
)
def test_what_is_broken_is_named(path: str, content: bytes | None, code: str, disk: Path, tmp_path: Path) -> None:
    put(disk, path.format(kernel()), content, tmp_path)
    assert code in codes(run(LOOK, disk))
