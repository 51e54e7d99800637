"""A recovered machine's guest is prepared on its own layers, on a private hypervisor; the checkpoint stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import guest_disks
from doubles.guest_disks import MAC, ROOT_UUID, codes, linux
from doubles.kvm_inside import inside
from farshore.errors import Conflict
from farshore.model.guest import GuestDisk, MachinePrepareParams
from farshore.model.machine import DiskFacts, MachineFacts, NicFacts
from farshore.model.task import DiskSpec, MachineCreateParams, NicSpec
from farshore.platforms.contract import Platform
from farshore.platforms.kvm import open_kvm
from farshore.recovery.steps import prepare
from farshore.testing.lab import Lab
from farshore.units import MIB

pytestmark = pytest.mark.lab
SIZE = 48 * MIB
TAG = "run-guest"
SOURCE = "6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c22"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"), Path(".cache/lab"))
    lab.up(sites_only=True)
    yield lab
    lab.down()


@pytest.fixture(scope="module")
def settings(lab: Lab) -> dict[str, Any]:
    folder = lab.beta.folder
    return {"uri": lab.beta.uri, "pool": str(folder / "storage" / "pool"), "scratch": str(folder / "s")}


@pytest.fixture(scope="module")
def platform(settings: dict[str, Any]) -> Platform:
    return open_kvm(settings)


@pytest.fixture
def point(platform: Platform, tmp_path: Path) -> str:
    """A checkpoint of a guest that mounts its root by a name that it will not have."""
    disk = guest_disks.ext4_disk(tmp_path / "disk.raw", linux(**{"/etc/fstab": "/dev/sda1 / ext4 defaults 0 1\n"}))
    draft = platform.target.open(f"{SOURCE}/vda", SIZE, None, "guest-test")
    data = disk.read_bytes()
    for offset in range(0, SIZE, MIB):
        if any(data[offset : offset + MIB]):
            draft.write(offset, memoryview(data)[offset : offset + MIB])
    draft.flush()
    return draft.seal()


def order(point: str) -> MachineCreateParams:
    facts = MachineFacts(
        machine_id=SOURCE,
        name="web",
        disks=(DiskFacts(disk_id="vda", size_bytes=SIZE, boot=True),),
        nics=(NicFacts(mac=MAC, network="app"),),
    )
    return MachineCreateParams(
        tag=TAG,
        purpose="drill",
        name="web-drill-2",
        facts=facts,
        cpus=1,
        memory_bytes=64 * MIB,
        disks=(DiskSpec(disk_id="vda", point=point, size_bytes=SIZE),),
        nics=(NicSpec(mac=MAC, network="recovery"),),
        epoch=1,
        bios_id=SOURCE,
    )


def test_a_guest_is_repaired_on_its_own_layer(
    lab: Lab, settings: dict[str, Any], platform: Platform, point: str
) -> None:
    assert platform.compute
    checkpoint = Path(settings["pool"]) / f"{point}.qcow2"
    before = checkpoint.read_bytes()
    with inside(lab.beta, lab.beta.folder, settings) as compute:
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
        assert checkpoint.read_bytes() == before
        assert compute.sweep(TAG)[1] == []
    assert not any((Path(settings["scratch"]) / "guests").iterdir())
