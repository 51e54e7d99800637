"""Recovered machines that leave the chain of checkpoints while they run, on a private hypervisor."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt_qemu
import pytest
from doubles.kvm_inside import inside
from doubles.kvm_machines import qemu_img, same
from farshore.errors import Conflict, Invalid
from farshore.model.machine import DiskFacts, MachineFacts
from farshore.model.task import DetachResult, DiskSpec, MachineCreateParams
from farshore.platforms.contract import Platform
from farshore.platforms.kvm import images, open_kvm
from farshore.platforms.kvm.connection import Hypervisor
from farshore.platforms.kvm.source import KvmSource
from farshore.platforms.nbd.launcher import Launcher
from farshore.testing.lab import Lab
from farshore.units import KIB, MIB

pytestmark = pytest.mark.lab
SIZE = 8 * MIB
TAG = "failover-shop-1"
#: So slow that no test sees its end: a disk would take a quarter of an hour.
SLOW = "10 KiB/s"
FAST = "1 GiB/s"
LIMIT_S = 120.0


class Stand:
    """One machine with two disks on two points each, and nodes of its site that copy slowly or fast."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.settings = {
            "uri": lab.beta.uri,
            "pool": str(lab.beta.folder / "storage" / "pool"),
            "scratch": str(lab.beta.folder / "s"),
        }
        self.platform: Platform = open_kvm(self.settings)
        self.old_id = str(uuid.uuid4())
        self.expected = {disk: bytearray(os.urandom(SIZE)) for disk in ("vda", "vdb")}
        self.points = {disk: self._fill(disk) for disk in self.expected}
        self.machine_id = ""

    def _fill(self, disk: str) -> list[str]:
        found = self.expected[disk]
        below = self.platform.target.open(f"{self.old_id}/{disk}", SIZE, None, f"{disk}-1")
        for offset in range(0, SIZE, MIB):
            below.write(offset, memoryview(found)[offset : offset + MIB])
        base = below.seal()
        above = self.platform.target.open(f"{self.old_id}/{disk}", SIZE, base, f"{disk}-2")
        found[MIB : 2 * MIB] = os.urandom(MIB)
        above.write(MIB, memoryview(found)[MIB : 2 * MIB])
        above.write_zeroes(3 * MIB, MIB)
        found[3 * MIB : 4 * MIB] = bytes(MIB)
        return [base, above.seal()]

    def create(self, compute: Any) -> None:
        facts = MachineFacts(
            machine_id=self.old_id,
            name="web",
            disks=tuple(DiskFacts(disk_id=disk, size_bytes=SIZE) for disk in self.expected),
        )
        for _, newest in self.points.values():
            self.platform.target.lease(newest, TAG)
        self.machine_id = compute.create(
            MachineCreateParams(
                tag=TAG,
                purpose="failover",
                name="web",
                facts=facts,
                cpus=1,
                memory_bytes=64 * MIB,
                disks=tuple(
                    DiskSpec(disk_id=disk, point=points[-1], size_bytes=SIZE) for disk, points in self.points.items()
                ),
                nics=(),
                epoch=1,
            )
        )
        compute.start(self.machine_id)

    def node(self, rate: str) -> Any:
        """Return a context with the platform as a node of the site has it, each a process of its own."""
        folder = self.lab.beta.folder / f"n{uuid.uuid4().hex[:6]}"
        folder.mkdir()
        return inside(self.lab.beta, folder, {**self.settings, "detach_rate": rate})

    def path(self, disk: str) -> Path:
        return Path(self.settings["pool"]) / "recovered" / TAG / f"web-{disk}.qcow2"

    def write(self, disk: str, offset: int, pattern: int) -> None:
        """Let the guest write 64 KiB."""
        connection = self.lab.beta.connect()
        device = f"/machine/peripheral/virtio-disk{list(self.expected).index(disk)}/virtio-backend"
        said = libvirt_qemu.qemuMonitorCommand(
            connection.lookupByUUIDString(self.machine_id),
            f'qemu-io -d {device} "write -P {pattern} {offset} {64 * KIB}"',
            libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP,
        )
        connection.close()
        assert not said, said
        self.expected[disk][offset : offset + 64 * KIB] = bytes([pattern]) * (64 * KIB)

    def compare(self, folder: Path) -> None:
        """Read the machine's disks with nothing of ours; it has to be off."""
        for disk, content in self.expected.items():
            (folder / "expected").write_bytes(content)
            qemu_img("convert", "-f", "qcow2", "-O", "raw", self.path(disk), folder / "found")
            same(folder / "expected", folder / "found")


@pytest.fixture
def stand(lab: Lab) -> Iterator[Stand]:
    stand = Stand(lab)
    with stand.node(FAST) as compute:
        stand.create(compute)
    yield stand
    with stand.node(FAST) as compute:
        assert compute.sweep(TAG)[1] == []
    stand.platform.target.release(TAG)
    for point in stand.platform.target.points():
        stand.platform.target.drop(point)


def until(ask: Callable[[], DetachResult], state: str) -> DetachResult:
    deadline = time.monotonic() + LIMIT_S
    while (result := ask()).state != state:
        assert time.monotonic() < deadline, result
        time.sleep(0.05)
    return result


def test_a_running_machine_leaves_the_chain_whoever_dies_meanwhile(stand: Stand, tmp_path: Path) -> None:
    target = stand.platform.target
    with stand.node(SLOW) as compute:
        assert compute.facts(stand.machine_id).on_points
        assert compute.detach(stand.machine_id).state == "copying"
        begun = until(lambda: compute.detach(stand.machine_id), "copying")
        assert begun.disks_left == 2
        assert begun.total_bytes == SIZE
        for points in stand.points.values():
            with pytest.raises(Conflict) as caught:
                target.check_drop(points[-1])
            assert caught.value.code == "point-leased"
    # The node is gone; the hypervisor goes on, and so does the guest: here where nothing was copied yet.
    stand.write("vda", SIZE - MIB, 0x5A)
    stand.write("vdb", 0, 0x5B)
    with stand.node(FAST) as compute:
        again = compute.detach(stand.machine_id)
        assert again.state == "copying"
        assert again.done_bytes >= begun.done_bytes, "the same copying goes on"
        done = until(lambda: compute.detach(stand.machine_id), "done")
        assert done.disks_left == 0
        assert not compute.facts(stand.machine_id).on_points
        assert compute.detach(stand.machine_id) == done
        assert compute.power(stand.machine_id) == "on"
        for disk, points in stand.points.items():
            assert images.header(stand.path(disk)).backing is None
            for point in reversed(points):
                target.drop(point)
        assert target.points() == []
        compute.power_off(stand.machine_id)
        stand.compare(tmp_path)
        compute.start(stand.machine_id)
        assert compute.power(stand.machine_id) == "on"


def test_copying_makes_way_for_a_point_and_for_power_off(stand: Stand, tmp_path: Path) -> None:
    source = KvmSource(Hypervisor(stand.lab.beta.uri), tmp_path / "s", Launcher(tmp_path / "s" / "d"))
    machine = stand.machine_id
    with stand.node(SLOW) as compute:
        assert compute.detach(machine).state == "copying"
        snapshot = source.snapshot("grp", "pt-1", [machine], {}, "machine")
        waits = compute.detach(machine)
        assert (waits.state, waits.disks_left) == ("waiting", 2)
        assert "is being read" in waits.detail
        buffer = bytearray(MIB)
        source.reader(snapshot, f"{machine}/vda").read_into(MIB, memoryview(buffer))
        assert buffer == stand.expected["vda"][MIB : 2 * MIB]
        source.release("grp", "pt-1", [machine], applied=True)
        assert compute.detach(machine).state == "copying"
        compute.power_off(machine)
        waits = compute.detach(machine)
        assert (waits.state, waits.disks_left) == ("waiting", 2)
        compute.start(machine)
    with stand.node(FAST) as compute:
        until(lambda: compute.detach(machine), "done")
    # What was copied is no change: a point after it finds the machine as it was at the one before.
    bases = {f"{machine}/{disk}": "pt-1" for disk in stand.expected}
    stand.write("vda", 2 * MIB, 0x33)
    snapshot = source.snapshot("grp", "pt-2", [machine], bases, "machine")
    assert all(disk.incremental for disk in snapshot.disks), snapshot.disks
    changed = {
        disk: sum(one.length for one in source.changed(snapshot, f"{machine}/{disk}", "pt-1"))
        for disk in stand.expected
    }
    source.release("grp", "pt-2", [machine], applied=True)
    source.untrack(machine)
    assert changed == {"vda": 64 * KIB, "vdb": 0}
    with stand.node(FAST) as compute:
        compute.power_off(machine)
    stand.compare(tmp_path)


def test_a_rate_is_one(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        open_kvm({"pool": str(tmp_path / "pool"), "scratch": str(tmp_path / "s"), "detach_rate": "much"})
    assert caught.value.field == "platform.detach_rate"
