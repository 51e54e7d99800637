"""Checks and fixes of Windows guests, on fabricated disks: good ones, and broken in each way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from doubles import guest_disks, windows_disk
from doubles.guest_disks import MAC, codes, job, run
from doubles.windows_disk import GOOD, files, hive, software, system
from farshore.model.guest import GuestPolicy
from farshore.recovery.guest.hives import Hive

SYSTEM = "/Windows/System32/config/SYSTEM"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists() or bool(guest_disks.missing("mkntfs", "ntfs-3g", "losetup")),
    reason="needs root, ntfs-3g, FUSE and loop devices",
)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk.raw"


def _values(disk: Path) -> Hive:
    found = Hive.load(windows_disk.read(disk, SYSTEM))
    assert found is not None
    return found


def test_a_sound_windows_keeps_its_fixed_address_by_a_script(disk: Path) -> None:
    windows_disk.disk(disk, files())
    result = run(job(), disk)
    assert codes(result) == {}
    assert result.system == "Windows Server 2019 Standard (17763)"
    script = (windows_disk.read(disk, "/Farshore/firstboot.ps1") or b"").decode()
    mac = MAC.upper().replace(":", "-")
    assert f"Give '{mac}' '10.1.1.5' 24 '10.1.1.1' @('10.1.1.53')" in script
    service = "ControlSet001\\Services\\FarshoreFirstBoot"
    assert _values(disk).number(service, "Start") == 2
    assert "C:\\Farshore\\firstboot.cmd" in str(_values(disk).value(service, "ImagePath"))


def test_a_windows_gets_the_address_of_its_purpose_and_its_own_back(disk: Path) -> None:
    windows_disk.disk(disk, files())
    run(job(nic={"address": "10.9.0.11", "prefix": 16, "gateway": "10.9.0.1"}, hostname="SHOP-DR"), disk)
    script = (windows_disk.read(disk, "/Farshore/firstboot.ps1") or b"").decode()
    assert "'10.9.0.11' 16 '10.9.0.1' @()" in script
    assert "Rename-Computer -NewName 'SHOP-DR'" in script
    run(job("failback"), disk)
    script = (windows_disk.read(disk, "/Farshore/firstboot.ps1") or b"").decode()
    assert "'10.1.1.5' 24 '10.1.1.1'" in script
    assert "Rename-Computer" not in script


def test_a_driver_that_is_there_is_made_to_start_at_boot(disk: Path) -> None:
    windows_disk.disk(disk, files({**GOOD, "viostor": 4}))
    assert codes(run(job(policy=GuestPolicy(fix=False)), disk)) == {"driver-disk-missing": "error"}
    assert _values(disk).number("ControlSet001\\Services\\viostor", "Start") == 4
    result = run(job(), disk)
    assert codes(result) == {"driver-disk-missing": "warning"}
    assert _values(disk).number("ControlSet001\\Services\\viostor", "Start") == 0
    assert codes(run(job(), disk)) == {}


def test_a_driver_that_is_not_there_stops_the_machine(disk: Path) -> None:
    services = {name: start for name, start in GOOD.items() if name not in {"viostor", "netkvm"}}
    windows_disk.disk(disk, files(services))
    result = run(job(), disk)
    assert codes(result) == {"driver-disk-missing": "error", "driver-network-missing": "warning"}
    assert "viostor" in result.stopped


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"/Windows/System32/config/SYSTEM": b"regf" + bytes(8192)}, {"hive-broken": "error"}),
        ({"/Windows/System32/config/SOFTWARE": None}, {"hive-broken": "error"}),
        ({"/Boot/BCD": None}, {"boot-configuration-missing": "error"}),
        ({"/Boot/BCD": b"rubbish"}, {"boot-configuration-broken": "error"}),
        ({"/hiberfil.sys": b"HIBR" + bytes(4092)}, {"hibernated": "error"}),
        ({"/Windows/System32/config/SOFTWARE": hive(software(pending=True))}, {"restart-pending": "warning"}),
        (
            {SYSTEM: hive(system(GOOD, {"PendingFileRenameOperations": ["\\??\\C:\\a", "\\??\\C:\\b"]}))},
            {"rename-pending": "warning"},
        ),
        (
            {SYSTEM: hive(system(GOOD, {"BootExecute": ["autocheck autochk *", "lsdelete"]}))},
            {"boot-execute": "warning"},
        ),
        ({SYSTEM: hive(system({**GOOD, "partmgr": 3}))}, {"driver-not-at-boot": "error"}),
    ],
)
def test_what_keeps_a_windows_from_starting_is_found(
    disk: Path, more: dict[str, bytes | None], found: dict[str, str]
) -> None:
    windows_disk.disk(disk, files(**more))
    assert codes(run(job(policy=GuestPolicy(fix=False)), disk)) == found


def test_a_volume_that_was_not_closed_is_found(disk: Path) -> None:
    windows_disk.disk(disk, files(), dirty=True)
    assert codes(run(job(policy=GuestPolicy(fix=False)), disk)) == {"ntfs-dirty": "warning"}
