"""Checks and fixes of Linux guests, on disks made for the purpose: good ones, and broken in each way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from doubles import guest_disks
from doubles.guest_disks import MAC, ROOT_UUID, START, VERSION, codes, job, linux, read, run, sound
from farshore.model.guest import GuestPolicy
from farshore.recovery.guest import initramfs, supplement

needs_loop = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="needs root and loop devices"
)
INTERFACES = "auto eth0\niface eth0 inet static\n  address 10.1.1.5/24\n  gateway 10.1.1.1\n"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk.raw"


def test_a_sound_guest_has_no_findings_and_is_left_as_it_is(disk: Path) -> None:
    guest_disks.ext4_disk(disk, linux())
    before = disk.read_bytes()
    result = run(job(), disk)
    assert codes(result) == {}
    assert result.changes == ()
    assert result.system == "Debian GNU/Linux 12 (bookworm)"
    assert disk.read_bytes() == before


def test_devices_named_by_their_place_are_named_by_what_they_hold(disk: Path) -> None:
    table = "# made by hand\n/dev/sda1  /   ext4\tdefaults 0 1\nproc /proc proc defaults 0 0\n"
    loader = f"linux /boot/vmlinuz-{VERSION} root=/dev/sda1 ro\n"
    guest_disks.ext4_disk(disk, linux(**{"/etc/fstab": table, "/boot/grub/grub.cfg": loader}))
    result = run(job(), disk)
    assert codes(result) == {"fstab-by-path": "warning", "boot-root-by-path": "warning"}
    assert read(disk, "/etc/fstab") == table.replace("/dev/sda1", f"UUID={ROOT_UUID}").encode()
    assert read(disk, "/boot/grub/grub.cfg") == loader.replace("/dev/sda1", f"UUID={ROOT_UUID}").encode()
    assert sound(disk)
    assert not result.stopped
    assert run(job(), disk).changes == ()


def test_without_fixes_a_name_that_will_not_be_there_stops_the_machine(disk: Path) -> None:
    guest_disks.ext4_disk(disk, linux(**{"/etc/fstab": "/dev/sda1 / ext4 defaults 0 1\n"}))
    before = disk.read_bytes()
    result = run(job(policy=GuestPolicy(fix=False)), disk)
    assert codes(result) == {"fstab-by-path": "error"}
    assert "/dev/sda1" in result.stopped
    assert disk.read_bytes() == before
    assert not run(job(policy=GuestPolicy(fix=False, stop_on="never")), disk).stopped


@pytest.mark.parametrize(
    ("bus", "modules", "found"),
    [
        ("virtio", ("ahci", "sd_mod"), {"driver-disk-missing": "error"}),
        ("scsi", ("virtio_pci", "sd_mod"), {"driver-disk-missing": "error"}),
        ("sata", ("virtio_pci", "virtio_blk"), {"driver-disk-missing": "error"}),
        ("nvme", guest_disks.MODULES, {}),
    ],
)
def test_a_kernel_needs_the_driver_of_the_disk_that_it_will_be_on(
    disk: Path, bus: str, modules: tuple[str, ...], found: dict[str, str]
) -> None:
    guest_disks.ext4_disk(disk, linux(**{f"/boot/initrd.img-{VERSION}": guest_disks.initramfs(modules)}))
    assert codes(run(job(bus=bus), disk)) == found


@pytest.mark.parametrize(
    "where",
    [
        {f"/lib/modules/{VERSION}/modules.builtin": "kernel/drivers/virtio/virtio_pci.ko\nkernel/b/virtio_blk.ko\n"},
        {f"/boot/config-{VERSION}": "CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_BLK=y\n"},
    ],
)
def test_a_driver_in_the_kernel_itself_counts(disk: Path, where: dict[str, str]) -> None:
    guest_disks.ext4_disk(disk, linux(**{f"/boot/initrd.img-{VERSION}": guest_disks.initramfs(()), **where}))
    assert codes(run(job(), disk)) == {}


def test_a_damaged_initramfs_a_missing_network_driver_and_a_missing_loader_are_found(disk: Path) -> None:
    files = linux(
        **{
            f"/boot/initrd.img-{VERSION}": b"\x1f\x8b\x08rubbish",
            f"/lib/modules/{VERSION}/modules.dep": "kernel/x.ko:\n",
            "/boot/grub/grub.cfg": None,
        }
    )
    guest_disks.ext4_disk(disk, files)
    expected = {"initramfs-unreadable", "driver-network-missing", "boot-loader-missing"}
    assert set(codes(run(job(), disk))) == expected


def test_a_disk_without_boot_code_stops_a_machine_with_a_bios(disk: Path) -> None:
    guest_disks.ext4_disk(disk, linux(), boot_code=False)
    assert codes(run(job(), disk)) == {"boot-code-missing": "error"}


def test_firmware_that_knows_no_boot_entry_finds_the_loader_at_its_fallback(disk: Path, tmp_path: Path) -> None:
    guest_disks.ext4_disk(disk, linux())
    esp = guest_disks.fat_disk(tmp_path / "esp.raw", {"/EFI/debian/shimx64.efi": b"shim", "/EFI/debian/grub.cfg": b"x"})
    result = run(job(firmware="uefi"), disk, esp)
    assert codes(result) == {"uefi-fallback-missing": "warning"}
    image = f"{esp}@@{START}"
    assert guest_disks.tool("mtype", "-i", image, "::/EFI/BOOT/BOOTX64.EFI") == b"shim"
    assert guest_disks.tool("mtype", "-i", image, "::/EFI/BOOT/grub.cfg") == b"x"
    assert codes(run(job(firmware="uefi"), disk, esp)) == {}
    assert codes(run(job(firmware="uefi"), disk)) == {"uefi-partition-missing": "error"}


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"LUKS\xba\xbe\0\x02", {"encrypted-luks": "warning", "system-unknown": "info"}),
        (b"\xeb\x58\x90-FVE-FS-", {"encrypted-bitlocker": "warning", "system-unknown": "info"}),
        (b"whatever", {"system-unknown": "info"}),
    ],
)
def test_an_encrypted_guest_has_a_finding_of_its_own(disk: Path, head: bytes, found: dict[str, str]) -> None:
    guest_disks.headed_disk(disk, head)
    assert codes(run(job(), disk)) == found
    assert bool(run(job(policy=GuestPolicy(stop_on="warning")), disk).stopped) == ("warning" in found.values())


@pytest.mark.parametrize("content", [b"", b"no table and no file system"])
def test_a_disk_without_a_partition_table_stops_where_it_is_started_from(disk: Path, content: bytes) -> None:
    with disk.open("wb") as made:
        made.truncate(4 << 20)
        made.seek(1 << 20)
        made.write(content)
    assert codes(run(job(), disk)) == {"no-partition-table": "error", "system-unknown": "info"}


@needs_loop
def test_a_journal_that_waits_is_replayed_before_anything_is_written(disk: Path) -> None:
    guest_disks.ext4_disk(disk, linux(**{"/etc/fstab": "/dev/sda1 / ext4 defaults 0 1\n"}))
    guest_disks.tool("debugfs", "-w", "-R", "feature needs_recovery", f"{disk}?offset={START}")
    assert "needs_recovery" in guest_disks.features(disk)
    run(job(), disk)
    assert "needs_recovery" not in guest_disks.features(disk)
    assert read(disk, "/etc/fstab") == f"UUID={ROOT_UUID} / ext4 defaults 0 1\n".encode()
    assert sound(disk)


def test_a_guest_gets_the_address_of_its_purpose_and_its_own_back(disk: Path) -> None:
    guest_disks.ext4_disk(disk, linux(**{"/etc/network/interfaces": INTERFACES}))
    there = {"address": "10.9.0.11", "prefix": 16, "gateway": "10.9.0.1", "dns": ["10.9.0.53"]}
    result = run(job(nic=there, hostname="shop-dr"), disk)
    assert codes(result) == {}
    changed = read(disk, "/etc/network/interfaces")
    assert changed is not None
    assert b"address 10.9.0.11/16" in changed
    assert b"gateway 10.9.0.1\n" in changed
    assert read(disk, "/etc/hostname") == b"shop-dr\n"
    assert b"127.0.1.1 shop-dr.example.org shop-dr" in (read(disk, "/etc/hosts") or b"")
    assert MAC.encode() in (read(disk, "/etc/udev/rules.d/70-farshore-net.rules") or b"")
    assert run(job(nic=there, hostname="shop-dr"), disk).changes == ()

    run(job("drill", nic={"address": "10.77.0.9", "prefix": 24}), disk)
    assert b"address 10.77.0.9/24" in (read(disk, "/etc/network/interfaces") or b"")
    assert b"gateway" not in (read(disk, "/etc/network/interfaces") or b"")

    run(job("failback"), disk)
    assert read(disk, "/etc/network/interfaces") == INTERFACES.encode()
    assert read(disk, "/etc/hostname") == b"shop\n"
    assert read(disk, "/etc/hosts") == linux()["/etc/hosts"]
    assert read(disk, "/etc/udev/rules.d/70-farshore-net.rules") is None
    assert read(disk, "/var/lib/farshore/guest.json") is None
    assert sound(disk)


def test_what_somebody_has_changed_since_is_theirs(disk: Path) -> None:
    guest_disks.ext4_disk(disk, linux(**{"/etc/network/interfaces": INTERFACES}))
    run(job(nic={"address": "10.9.0.11", "prefix": 16}), disk)
    theirs = INTERFACES.replace("10.1.1.5", "10.9.0.77")
    source = disk.with_name("theirs")
    source.write_text(theirs)
    for command in ("rm /etc/network/interfaces", f"write {source} /etc/network/interfaces"):
        guest_disks.tool("debugfs", "-w", "-R", command, f"{disk}?offset={START}")
    assert codes(run(job("failback"), disk)) == {"network-changed-since": "info"}
    assert read(disk, "/etc/network/interfaces") == theirs.encode()


def test_an_interface_that_cannot_be_told_apart_is_left_alone(disk: Path) -> None:
    both = INTERFACES + INTERFACES.replace("eth0", "eth1").replace("10.1.1.5", "10.2.2.5")
    guest_disks.ext4_disk(disk, linux(**{"/etc/network/interfaces": both}))
    result = run(job(nic={"address": "10.9.0.11", "prefix": 16}), disk)
    assert codes(result) == {"interface-unmatched": "warning"}
    assert read(disk, "/etc/network/interfaces") == both.encode()
    known = run(job(nic={"address": "10.9.0.11", "prefix": 16, "known": ["10.2.2.5"]}), disk)
    assert codes(known) == {"interface-unmatched": "warning"}
    assert b"10.9.0.11/16" in (read(disk, "/etc/network/interfaces") or b"")
    assert b"10.1.1.5/24" in (read(disk, "/etc/network/interfaces") or b"")


def test_links_of_a_guest_lead_nowhere_but_into_it(disk: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("/dev/sda1 / ext4 defaults 0 1\n")
    guest_disks.ext4_disk(disk, linux(**{"/etc/fstab": None}))
    guest_disks.tool("debugfs", "-w", "-R", f"symlink /etc/fstab {outside}", f"{disk}?offset={START}")
    assert codes(run(job(), disk)) == {}
    assert outside.read_text() == "/dev/sda1 / ext4 defaults 0 1\n"


def test_drivers_of_the_guests_own_are_put_behind_its_initial_file_system_and_taken_away_again(disk: Path) -> None:
    base, path = f"/lib/modules/{VERSION}", f"/boot/initrd.img-{VERSION}"
    packed = guest_disks.initramfs(("virtio_pci", "virtio_blk"))
    more = {
        path: packed,
        f"{base}/modules.dep": "kernel/nvme.ko.xz: kernel/core.ko.xz\nkernel/core.ko.xz:\n",
        f"{base}/kernel/nvme.ko.xz": "nvme",
        f"{base}/kernel/core.ko.xz": "core",
    }
    guest_disks.ext4_disk(disk, linux(**more))
    unfixed = run(job(bus="nvme", nics=(), policy=GuestPolicy(fix=False)), disk)
    assert (codes(unfixed), unfixed.changes) == ({"driver-disk-missing": "error"}, ())
    result = run(job(bus="nvme", nics=()), disk)
    assert codes(result) == {"driver-disk-added": "warning"}
    assert not result.stopped
    assert [change.detail for change in result.changes][:1] == [f"{path}: core, nvme"]
    made = read(disk, path) or b""
    assert made.startswith(packed)
    contents = initramfs.read(made)
    assert contents is not None
    assert {f"usr/lib/modules/{VERSION}/{name}" for name in ("kernel/core.ko.xz", "modules.dep")} <= set(contents.names)
    assert codes(run(job(bus="nvme", nics=(), policy=GuestPolicy(fix=False)), disk)) == {}
    assert run(job(bus="nvme", nics=()), disk).changes == ()
    # On its way home it is what it was.
    assert codes(run(job(nics=()), disk)) == {}
    assert (read(disk, path), read(disk, supplement.RECORD)) == (packed, None)
    assert sound(disk)


def test_an_initial_file_system_that_the_guest_has_made_since_is_its_own(disk: Path, tmp_path: Path) -> None:
    base, path = f"/lib/modules/{VERSION}", f"/boot/initrd.img-{VERSION}"
    more = {
        path: guest_disks.initramfs(("virtio_pci", "virtio_blk")),
        f"{base}/modules.dep": "kernel/nvme.ko.xz:\n",
        f"{base}/kernel/nvme.ko.xz": "nvme",
    }
    guest_disks.ext4_disk(disk, linux(**more))
    run(job(bus="nvme", nics=()), disk)
    its_own = guest_disks.initramfs()
    (tmp_path / "new").write_bytes(its_own)
    for command in (f"rm {path}", f"write {tmp_path / 'new'} {path}"):
        guest_disks.tool("debugfs", "-w", "-R", command, f"{disk}?offset={START}")
    assert codes(run(job(nics=()), disk)) == {}
    assert read(disk, path) == its_own


def test_an_encrypted_volume_named_by_its_place_is_named_by_what_it_is(disk: Path, tmp_path: Path) -> None:
    table = "# name device key\nsafe  /dev/sdb1 none luks\nswap /dev/sda7 /dev/urandom swap\n"
    guest_disks.ext4_disk(disk, linux(**{"/etc/crypttab": table}))
    number = "99998888-7777-4666-8555-444433332222"
    head = (b"LUKS\xba\xbe\0\x02").ljust(168, b"\0") + number.encode().ljust(40, b"\0")
    safe = guest_disks.headed_disk(tmp_path / "safe.raw", head)
    found = {"encrypted-luks": "warning", "crypttab-by-path": "warning"}
    assert codes(run(job(policy=GuestPolicy(fix=False)), disk, safe)) == found
    assert read(disk, "/etc/crypttab") == table.encode()
    assert codes(run(job(), disk, safe)) == found
    assert read(disk, "/etc/crypttab") == table.replace("/dev/sdb1", f"UUID={number}").encode()
    assert sound(disk)
