"""Initial file systems in every form that they come in, and what is put behind them."""

from __future__ import annotations

import pytest
from doubles.guest_disks import cpio
from farshore.recovery.guest import initramfs, supplement

EARLY = cpio({"kernel/x86/microcode/GenuineIntel.bin": b"\0" * 32})
MAIN = cpio({"usr/lib/modules/6.1/kernel/ahci.ko": b"x" * 70_001, "init": b"#!"})
TABLE = """\
kernel/nvme/host/nvme.ko: kernel/nvme/host/nvme-core.ko kernel/lib/crc.ko
kernel/nvme/host/nvme-core.ko: kernel/lib/crc.ko
kernel/lib/crc.ko:
kernel/lib/crc-fast.ko:
"""


@pytest.mark.parametrize("form", initramfs.WRITTEN)
@pytest.mark.parametrize("early", [b"", EARLY + bytes(512)])
def test_what_is_put_behind_is_read_with_what_was_there(form: initramfs.Form, early: bytes) -> None:
    before = early + initramfs.packed(MAIN, form)
    contents = initramfs.read(before)
    assert contents is not None
    assert contents.form == form
    assert "usr/lib/modules/6.1/kernel/ahci.ko" in contents.names
    path = "usr/lib/modules/6.1/kernel/nvme/nvme.ko"
    more = initramfs.archive({path: b"y" * 90_001}, contents.names, form)
    after = initramfs.read(before + more)
    assert after is not None
    # A folder that was there is not made again, for it could be a link.
    assert after.names == (*contents.names, "usr/lib/modules/6.1/kernel/nvme", path)
    assert after.form == form


def test_zeros_at_the_end_leave_room_for_an_archive_that_is_not_packed() -> None:
    contents = initramfs.read(initramfs.packed(MAIN, "gzip") + bytes(100))
    assert contents is not None
    assert contents.form == "plain"


@pytest.mark.parametrize("data", [b"rubbish", b"\x1f\x8b\x08rubbish", b"\x28\xb5\x2f\xfdrubbish", b"\xfd7zXZ\0rubbish"])
def test_rubbish_is_no_initial_file_system(data: bytes) -> None:
    assert initramfs.read(data) is None


@pytest.mark.parametrize(
    ("soft", "paths"),
    [
        ({}, ["kernel/nvme/host/nvme.ko", "kernel/nvme/host/nvme-core.ko", "kernel/lib/crc.ko"]),
        (
            {"crc": ["crc_fast", "crc_of_other_hardware"]},
            [
                "kernel/nvme/host/nvme.ko",
                "kernel/nvme/host/nvme-core.ko",
                "kernel/lib/crc.ko",
                "kernel/lib/crc-fast.ko",
            ],
        ),
    ],
)
def test_a_module_brings_what_it_needs(soft: dict[str, list[str]], paths: list[str]) -> None:
    assert supplement.closure(TABLE, soft, ["nvme"]) == paths
    assert supplement.closure(TABLE.replace("kernel/", "/lib/modules/6.1/kernel/"), soft, ["nvme"]) == paths
    assert supplement.closure(TABLE, soft, ["nvme", "ena"]) is None
