"""Which instance type a machine gets."""

from __future__ import annotations

import pytest
from farshore.model.machine import DiskFacts, MachineFacts
from farshore.model.task import DiskSpec, MachineCreateParams
from farshore.platforms.aws.machines import devices
from farshore.platforms.aws.types import InstanceType, smallest
from farshore.units import GIB


def kind(
    name: str, cpus: int, gib: int, *, arm: bool = False, modes: tuple[str, ...] = ("legacy-bios", "uefi")
) -> InstanceType:
    return InstanceType(name, cpus, gib * GIB, ("arm64",) if arm else ("x86_64",), modes, 3, True, False)


OFFERED = (
    kind("t3.medium", 2, 4),
    kind("c6i.large", 2, 4),
    kind("m6i.large", 2, 8),
    kind("m6i.2xlarge", 8, 32),
    kind("r6i.large", 2, 16, modes=("uefi",)),
    kind("t4g.medium", 2, 4, arm=True),
)


@pytest.mark.parametrize(
    ("cpus", "gib", "more", "wanted"),
    [
        (1, 1, {}, "t3.medium"),
        (2, 4, {"families": ("c6i", "t3")}, "c6i.large"),
        (2, 5, {}, "m6i.large"),
        (3, 4, {}, "m6i.2xlarge"),
        (2, 16, {"firmware": "uefi"}, "r6i.large"),
        (2, 16, {"firmware": "bios"}, "m6i.2xlarge"),
        (2, 4, {"architecture": "aarch64", "families": ("t4g",)}, "t4g.medium"),
        (2, 4, {"architecture": "aarch64"}, None),
        (2, 4, {"interfaces": 4}, None),
        (16, 4, {}, None),
    ],
)
def test_it_is_the_smallest_that_the_machine_fits(
    cpus: int, gib: int, more: dict[str, object], wanted: str | None
) -> None:
    given: dict[str, object] = {
        "families": ("t3", "m6i", "c6i", "r6i"),
        "architecture": "x86_64",
        "firmware": "bios",
        "interfaces": 1,
        **more,
    }
    families = given.pop("families")
    found = smallest(OFFERED, families, cpus=cpus, memory_bytes=gib * GIB, **given)  # type: ignore[arg-type]
    assert (found.name if found else None) == wanted


@pytest.mark.parametrize(
    ("disks", "root", "places"),
    [
        (("vda", "vdb"), "/dev/sda1", ("/dev/sda1", "/dev/sdf")),
        (("vdb", "vda*"), "/dev/sda1", ("/dev/sdf", "/dev/sda1")),
        (("xvda*", "sdf", "vdb"), "/dev/xvda", ("/dev/xvda", "/dev/sdf", "/dev/sdg")),
        (("sda1*", "xvdf", "new"), "/dev/sda1", ("/dev/sda1", "/dev/xvdf", "/dev/sdg")),
    ],
)
def test_each_disk_has_a_place_of_its_own(disks: tuple[str, ...], root: str, places: tuple[str, ...]) -> None:
    names = [name.rstrip("*") for name in disks]
    spec = MachineCreateParams(
        tag="t",
        purpose="drill",
        name="m",
        facts=MachineFacts(
            machine_id="i",
            name="m",
            disks=tuple(DiskFacts(disk_id=name.rstrip("*"), size_bytes=GIB, boot="*" in name) for name in disks),
        ),
        cpus=1,
        memory_bytes=GIB,
        disks=tuple(DiskSpec(disk_id=name, point="snap-1", size_bytes=GIB) for name in names),
        nics=(),
        epoch=1,
    )
    assert tuple(devices(spec, root)[name] for name in names) == places
