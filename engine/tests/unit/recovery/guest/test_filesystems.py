"""Linux guests on XFS and btrfs, and what cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from doubles import guest_disks
from doubles.guest_disks import ROOT_UUID, VERSION, codes, job, linux, run
from farshore.model.guest import GuestPolicy

LOOK = job(policy=GuestPolicy(fix=False))
MAKERS: dict[str, Callable[..., Path]] = {"xfs": guest_disks.xfs_disk, "btrfs": guest_disks.btrfs_disk}


def on(kind: str, path: Path, **changes: bytes | str | None) -> Path:
    if guest_disks.missing(f"mkfs.{kind}"):
        pytest.skip(f"needs mkfs.{kind}")
    table = f"UUID={ROOT_UUID} / {kind} defaults 0 0\n"
    return MAKERS[kind](path, linux(**{"/etc/fstab": table, **changes}))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_sound_guest_has_no_findings(kind: str, tmp_path: Path) -> None:
    result = run(LOOK, on(kind, tmp_path / "disk.raw"))
    assert codes(result) == {}
    assert result.system == "Debian GNU/Linux 12 (bookworm)"


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_broken_is_named(kind: str, tmp_path: Path) -> None:
    broken = {
        f"/boot/initrd.img-{VERSION}": guest_disks.initramfs(()),
        "/etc/fstab": f"/dev/sda1 / {kind} defaults 0 0\n",
    }
    result = run(LOOK, on(kind, tmp_path / "disk.raw", **broken))
    assert codes(result) == {"driver-disk-missing": "error", "fstab-by-path": "error"}
    assert result.stopped


@pytest.mark.parametrize(
    ("code", "head"),
    [
        ("filesystem-unread", b"XFSB" + bytes(508)),
        ("filesystem-unread", bytes(1080) + b"\x53\xef" + bytes(2000)),
        ("lvm-unread", bytes(512) + b"LABELONE" + bytes(8) + b"\xff" * 480),
    ],
)
def test_what_cannot_be_read_is_said_to_be_not_checked(code: str, head: bytes, tmp_path: Path) -> None:
    found = run(LOOK, guest_disks.headed_disk(tmp_path / "disk.raw", head)).findings
    assert [one.subject for one in found if one.code == code] == ["vda1"]
    assert "was not checked" in next(one.message for one in found if one.code == code)
