"""Linux guests on logical volumes, by metadata that lvm2 itself has written: in one piece, in two, over two disks."""

from __future__ import annotations

from pathlib import Path

import pytest
from doubles import guest_disks
from doubles.guest_disks import VERSION, codes, job, linux, lvm_disks, run
from farshore.model.guest import GuestPolicy
from farshore.recovery.guest.trees import Tree, open_volume
from farshore.recovery.guest.volumes import RawDisk, look

LOOK = job(policy=GuestPolicy(fix=False))
FSTAB = "/dev/mapper/shop-root / ext4 errors=remount-ro 0 1\n"
BROKEN = {"/etc/fstab": FSTAB + "/dev/sda1 /srv ext4 defaults 0 2\n"}


def text(disks: list[Path], path: str) -> str | None:
    """Read a file of the root volume anew."""
    layout = look([RawDisk(f"vd{number}", disk) for number, disk in enumerate(disks)])
    [root] = [volume for volume in layout.volumes if volume.name == "shop/root"]
    system = open_volume(root)
    assert system is not None
    return Tree(root, system).text(path)


@pytest.mark.parametrize("group", guest_disks.GROUPS)
def test_a_sound_guest_has_no_findings(group: str, tmp_path: Path) -> None:
    result = run(LOOK, *lvm_disks(tmp_path, group, linux(**{"/etc/fstab": FSTAB})))
    assert codes(result) == {}
    assert result.system == "Debian GNU/Linux 12 (bookworm)"


@pytest.mark.parametrize("group", guest_disks.GROUPS)
def test_what_is_broken_is_named(group: str, tmp_path: Path) -> None:
    broken = {**BROKEN, f"/boot/initrd.img-{VERSION}": guest_disks.initramfs(())}
    result = run(LOOK, *lvm_disks(tmp_path, group, linux(**broken)))
    assert codes(result) == {"driver-disk-missing": "error", "fstab-by-path": "error"}
    assert result.stopped


def test_a_volume_in_one_piece_is_written(tmp_path: Path) -> None:
    disks = lvm_disks(tmp_path, "one", linux(**{"/etc/fstab": FSTAB}))
    result = run(job(hostname="shop-copy"), *disks)
    assert codes(result) == {}
    assert text(disks, "/etc/hostname") == "shop-copy\n"
    start = guest_disks.START + guest_disks.MIB
    assert guest_disks.sound(disks[0], start)


@pytest.mark.parametrize("group", ["pieces", "two"])
def test_one_in_several_pieces_is_left_alone_and_that_is_said(group: str, tmp_path: Path) -> None:
    disks = lvm_disks(tmp_path, group, linux(**{"/etc/fstab": FSTAB}))
    result = run(job(hostname="shop-copy"), *disks)
    [finding] = [one for one in result.findings if one.code == "volume-not-writable"]
    assert (finding.severity, finding.subject) == ("error", "shop/root")
    assert "several pieces" in finding.message
    assert text(disks, "/etc/hostname") == "shop\n"


def test_a_group_that_lacks_a_disk_is_said_to_be_unread(tmp_path: Path) -> None:
    disks = lvm_disks(tmp_path, "two", linux(**{"/etc/fstab": FSTAB}))
    for disk in disks:
        assert codes(run(LOOK, disk))["lvm-unread"] == "warning"
