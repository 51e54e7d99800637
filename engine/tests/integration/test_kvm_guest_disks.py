"""A recovered machine's guest is prepared on its own layers, on a private hypervisor; the checkpoint stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import guest_disks
from doubles.guest_disks import MAC, ROOT_UUID, codes, linux
from doubles.kvm_inside import inside
from doubles.kvm_machines import qemu_img, wait_for
from farshore.errors import Conflict
from farshore.model.guest import GuestDisk, GuestNic, MachinePrepareParams
from farshore.model.machine import DiskFacts, MachineFacts, NicFacts
from farshore.model.task import DiskSpec, MachineCreateParams, NicSpec
from farshore.platforms.contract import Platform
from farshore.platforms.kvm import open_kvm
from farshore.recovery.guest import writing
from farshore.recovery.guest.volumes import RawDisk, look
from farshore.recovery.steps import prepare
from farshore.testing.lab import Lab, guest
from farshore.units import MIB

pytestmark = pytest.mark.lab
SIZE = 48 * MIB
TAG = "run-guest"
SOURCE = "6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c22"


@pytest.fixture(scope="module")
def settings(lab: Lab) -> dict[str, Any]:
    folder = lab.beta.folder
    return {"uri": lab.beta.uri, "pool": str(folder / "storage" / "pool"), "scratch": str(folder / "s")}


@pytest.fixture(scope="module")
def platform(settings: dict[str, Any]) -> Platform:
    return open_kvm(settings)


@pytest.fixture(scope="module")
def compute(lab: Lab, settings: dict[str, Any], platform: Platform) -> Iterator[Any]:
    assert platform.compute
    with inside(lab.beta, lab.beta.folder, settings) as compute:
        yield compute


@pytest.fixture
def point(platform: Platform, tmp_path: Path) -> str:
    """A checkpoint of a guest that mounts its root by a name that it will not have."""
    table = "/dev/sda1 / ext4 defaults 0 1\n"
    disk = guest_disks.ext4_disk(tmp_path / "disk.raw", linux(**{"/etc/fstab": table}))
    return sealed(platform, disk, "guest-test")


def sealed(platform: Platform, disk: Path, key: str) -> str:
    """Make a checkpoint of a raw disk."""
    data = disk.read_bytes()
    draft = platform.target.open(f"{SOURCE}/vda", len(data), None, key)
    for offset in range(0, len(data), MIB):
        if any(data[offset : offset + MIB]):
            draft.write(offset, memoryview(data)[offset : offset + MIB])
    draft.flush()
    return draft.seal()


def order(point: str, size: int = SIZE) -> MachineCreateParams:
    facts = MachineFacts(
        machine_id=SOURCE,
        name="web",
        disks=(DiskFacts(disk_id="vda", size_bytes=size, boot=True),),
        nics=(NicFacts(mac=MAC, network="app"),),
    )
    return MachineCreateParams(
        tag=TAG,
        purpose="drill",
        name="web-drill-2",
        facts=facts,
        cpus=1,
        memory_bytes=192 * MIB,
        disks=(DiskSpec(disk_id="vda", point=point, size_bytes=size),),
        nics=(NicSpec(mac=MAC, network="recovery"),),
        epoch=1,
        bios_id=SOURCE,
    )


def test_a_guest_is_repaired_on_its_own_layer(
    settings: dict[str, Any], platform: Platform, compute: Any, point: str
) -> None:
    assert platform.compute
    checkpoint = Path(settings["pool"]) / f"{point}.qcow2"
    before = checkpoint.read_bytes()
    machine_id = compute.create(order(point))
    assert compute.facts(machine_id).tags["bios_id"] == SOURCE
    params = MachinePrepareParams(
        machine_id=machine_id, name="web", purpose="drill", disks=(GuestDisk(disk_id="vda", boot=True),)
    )
    result = prepare.machine(platform.compute, params, lambda: None)
    assert codes(result) == {"fstab-by-path": "warning"}
    assert [change.what for change in result.changes] == ["fstab"]
    assert prepare.machine(platform.compute, params, lambda: None).changes == ()
    with platform.compute.open_disks(machine_id) as disks:
        assert disks[0].size_bytes == SIZE
        table = guest_disks.read(disks[0].path, "/etc/fstab")
        with pytest.raises(Conflict):
            compute.start(machine_id)  # one that is looked into does not start
    assert table == f"UUID={ROOT_UUID} / ext4 defaults 0 1\n".encode()
    compute.start(machine_id)
    with pytest.raises(Conflict):
        prepare.machine(platform.compute, params, lambda: None)
    assert checkpoint.read_bytes() == before
    assert compute.sweep(TAG)[1] == []
    assert not any((Path(settings["scratch"]) / "guests").iterdir())


def test_a_guest_comes_up_with_the_address_that_it_was_given(platform: Platform, compute: Any, tmp_path: Path) -> None:
    assert platform.compute
    disk = tmp_path / "system.raw"
    qemu_img("convert", "-O", "raw", guest.build(Path(".cache/lab")).system["web"], disk)
    own = "auto eth0\niface eth0 inet static\n  address 10.1.1.5/24\n  gateway 10.1.1.1\n"
    [system] = [volume for volume in look([RawDisk("vda", disk)]).volumes if volume.content == "ext"]
    writing.write(system, [writing.Write(system, "/etc/network/interfaces", own.encode())])
    point = sealed(platform, disk, "address-test")
    nic = GuestNic(mac=MAC, source_mac=MAC, address="10.99.8.77", prefix=24)
    machine_id = compute.create(order(point, disk.stat().st_size))
    params = MachinePrepareParams(
        machine_id=machine_id,
        name="web",
        purpose="drill",
        disks=(GuestDisk(disk_id="vda", boot=True),),
        nics=(nic,),
    )
    result = prepare.machine(platform.compute, params, lambda: None)
    assert codes(result) == {}
    assert result.system == "Farshore laboratory"
    compute.start(machine_id)
    wait_for(lambda: "MARKER role=web" in compute.console(machine_id), 180.0)
    assert "address=10.99.8.77 " in compute.console(machine_id)
    assert compute.sweep(TAG)[1] == []
