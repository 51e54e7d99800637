"""What a guest is given on another platform, and what it is again on its way home."""

from __future__ import annotations

from pathlib import Path

import pytest
from doubles.guest_disks import MAC, ROOT_UUID, VERSION, codes, ext4_disk, job, linux, read, run, sound
from farshore.model.guest import GuestDisk, GuestNic, GuestPolicy
from farshore.model.machine import DiskFacts, MachineFacts, NicFacts
from farshore.recovery.guest import console
from farshore.recovery.guest.cloud_init import DROP_IN
from farshore.recovery.readdress import record
from farshore.recovery.steps.prepare import as_made

GRUB = "/boot/grub/grub.cfg"
RULES = "/etc/udev/rules.d/70-farshore-net.rules"
ELSEWHERE = "02:aa:bb:cc:dd:01"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk.raw"


def test_a_kernel_writes_to_the_serial_port_on_aws_alone(disk: Path) -> None:
    menu = f"linux /boot/vmlinuz-{VERSION} root=/dev/sda1 ro quiet\ninitrd /boot/initrd.img\n"
    sound_menu = menu.replace("/dev/sda1", f"UUID={ROOT_UUID}")
    ext4_disk(disk, linux(**{GRUB: menu, console.DEFAULTS: 'GRUB_CMDLINE_LINUX=""\n'}))
    result = run(job(platform="aws"), disk)
    assert codes(result) == {"boot-root-by-path": "warning"}
    with_serial = sound_menu.replace("quiet\n", "quiet console=tty0 console=ttyS0,115200\n")
    assert read(disk, GRUB) == with_serial.encode()
    assert read(disk, console.DEFAULTS) == b'GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"\n'
    assert run(job(platform="aws"), disk).changes == ()
    # At home the root stays named by what it holds: that is right anywhere.
    run(job(platform="kvm"), disk)
    assert (read(disk, GRUB), read(disk, console.DEFAULTS)) == (sound_menu.encode(), b'GRUB_CMDLINE_LINUX=""\n')
    assert read(disk, record.PATH) is None
    assert sound(disk)


@pytest.mark.parametrize(
    ("line", "made"),
    [
        ("\tlinux16 /vmlinuz ro console=tty1", "\tlinux16 /vmlinuz ro console=tty1 console=ttyS0,115200"),
        ("linux /vmlinuz console=ttyS0,9600n8 ro", "linux /vmlinuz console=ttyS0,9600n8 ro"),
        (" APPEND root=LABEL=x", " APPEND root=LABEL=x console=tty0 console=ttyS0,115200"),
        ("KERNEL vmlinuz", "KERNEL vmlinuz"),
        ("kernel /vmlinuz ro", "kernel /vmlinuz ro console=tty0 console=ttyS0,115200"),
        ("options root=LABEL=x $kernelopts", "options root=LABEL=x $kernelopts console=tty0 console=ttyS0,115200"),
        ("GRUB_CMDLINE_LINUX='net.ifnames=0'", 'GRUB_CMDLINE_LINUX="net.ifnames=0 console=tty0 console=ttyS0,115200"'),
        ("# linux /vmlinuz", "# linux /vmlinuz"),
        ("initrd /initrd.img", "initrd /initrd.img"),
    ],
)
def test_each_boot_loader_has_its_own_line(line: str, made: str) -> None:
    assert console.with_serial(f"{line}\nset timeout=5") == f"{made}\nset timeout=5"


@pytest.mark.parametrize(
    ("platform", "has", "looks_for"),
    [
        ("aws", "datasource_list: [NoCloud, None]\n", "datasource_list: [Ec2, None]"),
        ("aws", "datasource_list: [NoCloud, Ec2]\n", "preserve_hostname: true"),
        ("kvm", "datasource_list: [ Ec2, None ]\n", "datasource_list: [NoCloud, None]"),
        ("kvm", "datasource_list: [NoCloud, Ec2]\n", None),
        ("kvm", "users: [default]\n", None),
        ("kvm", "a: : broken\n", None),
    ],
)
def test_cloud_init_looks_for_what_is_there(disk: Path, platform: str, has: str, looks_for: str | None) -> None:
    main = "datasource_list: [Azure]\n" if platform == "aws" else "users: [default]\n"
    files = linux(**{"/etc/cloud/cloud.cfg": main, "/etc/cloud/cloud.cfg.d/90_dpkg.cfg": has})
    ext4_disk(disk, files)
    run(job(platform=platform), disk)
    made = read(disk, DROP_IN)
    assert (None if made is None else made.decode().split("\n")[0]) == looks_for
    assert run(job(platform=platform), disk).changes == ()


def test_cloud_init_is_what_it_was_where_it_fits(disk: Path) -> None:
    files = {"/etc/cloud/cloud.cfg": "datasource_list: [NoCloud, None]\n", GRUB: "linux /vmlinuz console=ttyS0\n"}
    ext4_disk(disk, linux(**files))
    assert [change.what for change in run(job(platform="aws"), disk).changes] == ["cloud-init", "record"]
    assert read(disk, DROP_IN) is not None
    run(job(platform="kvm"), disk)
    assert (read(disk, DROP_IN), read(disk, record.PATH)) == (None, None)


def test_a_guest_without_cloud_init_is_left_alone(disk: Path) -> None:
    ext4_disk(disk, linux(**{GRUB: "linux /vmlinuz console=ttyS0\n"}))
    assert run(job(platform="aws"), disk).changes == ()


def test_without_fixes_nothing_is_written(disk: Path) -> None:
    ext4_disk(disk, linux(**{"/etc/cloud/cloud.cfg": "datasource_list: [NoCloud]\n"}))
    assert run(job(platform="aws", policy=GuestPolicy(fix=False)), disk).changes == ()


def test_interfaces_keep_the_names_that_their_configuration_has(disk: Path) -> None:
    files = linux(**{"/etc/network/interfaces": "auto ens3\niface ens3 inet dhcp\n"})
    ext4_disk(disk, files)
    nic = {"mac": ELSEWHERE, "source_mac": MAC}
    assert run(job(nic=nic), disk).changes == ()
    assert codes(run(job(nic=nic, crossed=True), disk)) == {}
    assert (
        read(disk, RULES) == f'SUBSYSTEM=="net", ACTION=="add", ATTR{{address}}=="{ELSEWHERE}", NAME="ens3"\n'.encode()
    )
    run(job(), disk)
    assert (read(disk, RULES), read(disk, record.PATH)) == (None, None)


def test_an_interface_that_cannot_be_told_from_another_is_named(disk: Path) -> None:
    table = "iface ens3 inet dhcp\niface ens4 inet dhcp\n"
    ext4_disk(disk, linux(**{"/etc/network/interfaces": table}))
    nics = [GuestNic(mac=ELSEWHERE, source_mac=MAC), GuestNic(mac="02:aa:bb:cc:dd:02")]
    assert codes(run(job(nics=nics, crossed=True), disk)) == {"interface-unmatched": "warning"}
    assert read(disk, RULES) is None


def test_devices_are_those_that_the_machine_has_now() -> None:
    order = job(disks=[GuestDisk(disk_id="sda1", bus="nvme", boot=True)], nic={"model": "ena"})
    home = MachineFacts(
        machine_id="m-1",
        name="shop",
        disks=(DiskFacts(disk_id="vda", size_bytes=1, path="", bus="virtio", boot=True),),
        nics=(NicFacts(mac=MAC, network="app", model="virtio"),),
    )
    seen = as_made(order, "kvm", home)
    assert (seen.platform, seen.crossed) == ("kvm", True)
    assert ([disk.bus for disk in seen.disks], [nic.model for nic in seen.nics]) == (["virtio"], ["virtio"])
    assert not as_made(seen, "kvm", home).crossed
    away = home.model_copy(update={"nics": (NicFacts(mac=ELSEWHERE, network="subnet-1", model="ena"),)})
    assert [(nic.mac, nic.source_mac) for nic in as_made(seen, "aws", away).nics] == [(ELSEWHERE, MAC)]
