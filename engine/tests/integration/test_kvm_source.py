"""Points of domains on a private hypervisor: what is read is what the disk was, bit by bit."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from doubles.kvm_machines import Machine, Replica, qemu_img, same, wait_for
from farshore.errors import Invalid, NotFound, RestartFromCheckpoint, Retry
from farshore.platforms.contract import Snapshot
from farshore.platforms.kvm.connection import Hypervisor
from farshore.platforms.kvm.source import KvmSource
from farshore.platforms.nbd.launcher import Launcher
from farshore.testing.lab import Lab
from farshore.units import KIB, MIB

pytestmark = pytest.mark.lab
GROUP = "grp-test"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "s"


def open_source(lab: Lab, scratch: Path) -> KvmSource:
    return KvmSource(Hypervisor(lab.alpha.uri), scratch, Launcher(scratch / "d"))


@pytest.fixture
def source(lab: Lab, scratch: Path) -> Iterator[KvmSource]:
    source = open_source(lab, scratch)
    yield source
    source.sweep([])


Make = Callable[..., Machine]


@pytest.fixture
def make(lab: Lab, tmp_path: Path, source: KvmSource) -> Iterator[Make]:  # noqa: ARG001  machines go before it
    made: list[Machine] = []

    def machine(name: str = "m", **options: object) -> Machine:
        made.append(Machine(lab.alpha, tmp_path, name, **options))  # type: ignore[arg-type]
        return made[-1]

    yield machine
    for one in made:
        one.remove()


class Cycle:
    """Cycles of one machine as the engine would run them, each compared with an independent image."""

    def __init__(self, source: KvmSource, machine: Machine, folder: Path) -> None:
        self.source = source
        self.machine = machine
        self.replica = Replica(folder)
        self.base: str | None = None
        self._ids = (f"pt-{n}" for n in itertools.count(1))

    def take(self) -> Snapshot:
        bases = {self.machine.key(target): self.base for target in self.machine.disks}
        return self.source.snapshot(GROUP, next(self._ids), [self.machine.machine_id], bases, "machine")

    def pull(self, snapshot: Snapshot, images: dict[str, Path]) -> None:
        for target, image in images.items():
            key = self.machine.key(target)
            base = self.base if snapshot.disk(key).incremental else None
            same(self.replica.pull(self.source, snapshot, key, base), image)

    def run(self, *, expect_incremental: bool | None = None) -> Snapshot:
        """One whole cycle."""
        images = {target: self.machine.image(target) for target in self.machine.disks}
        snapshot = self.take()
        if expect_incremental is not None:
            assert {disk.incremental for disk in snapshot.disks} == {expect_incremental}, snapshot.disks
        self.pull(snapshot, images)
        self.release(snapshot)
        return snapshot

    def release(self, snapshot: Snapshot, *, applied: bool = True) -> None:
        self.source.release(GROUP, snapshot.point_id, [self.machine.machine_id], applied=applied)
        if applied:
            self.base = snapshot.point_id


@pytest.fixture
def machine(make: Make) -> Machine:
    machine = make()
    machine.write("vda", 0, 300 * KIB, 1)
    machine.write("vdb", 5 * MIB, MIB, 2)
    return machine


@pytest.fixture
def cycle(source: KvmSource, machine: Machine, tmp_path: Path) -> Cycle:
    return Cycle(source, machine, tmp_path)


def test_running_machine_full_then_what_changed(cycle: Cycle, machine: Machine, scratch: Path) -> None:
    machine.start()
    first = cycle.run(expect_incremental=False)
    assert first.level == "machine"
    assert [disk.reason for disk in first.disks] == ["no-base", "no-base"]
    assert cycle.replica.moved[machine.key("vda")] < MIB
    assert [disk.tracked for disk in first.machines[0].disks] == [True, True]
    machine.write("vda", 4 * MIB, 64 * KIB, 3)
    machine.zero("vdb", 5 * MIB, 512 * KIB)
    cycle.run(expect_incremental=True)
    assert cycle.replica.moved == {machine.key("vda"): 64 * KIB, machine.key("vdb"): 0}
    cycle.run(expect_incremental=True)
    assert cycle.replica.moved == {machine.key("vda"): 0, machine.key("vdb"): 0}
    assert machine.checkpoints() == {"farshore-pt-3"}
    assert list((scratch / "jobs").iterdir()) == []
    assert list((scratch / "points").iterdir()) == []


def test_a_point_stands_still_while_the_machine_writes(cycle: Cycle, machine: Machine) -> None:
    machine.start()
    cycle.run()
    machine.write("vda", MIB, 64 * KIB, 3)
    images = {target: machine.image(target) for target in machine.disks}
    snapshot = cycle.take()
    machine.write("vda", 0, MIB + 64 * KIB, 4)
    machine.write("vdb", 5 * MIB, MIB, 5)
    cycle.pull(snapshot, images)
    cycle.release(snapshot)
    cycle.run(expect_incremental=True)


def test_lineage_goes_on_over_stops_and_starts(cycle: Cycle, machine: Machine) -> None:
    machine.start()
    cycle.run()
    machine.write("vda", MIB, 64 * KIB, 3)
    machine.off()
    machine.write("vdb", 2 * MIB, 64 * KIB, 4)
    cycle.run(expect_incremental=True)  # stopped
    assert sum(cycle.replica.moved.values()) == 128 * KIB
    assert machine.bitmaps("vda") == machine.bitmaps("vdb") == {"farshore-pt-2"}
    cycle.run(expect_incremental=True)  # stopped, nothing changed
    assert sum(cycle.replica.moved.values()) == 0
    machine.write("vda", 3 * MIB, 64 * KIB, 5)
    machine.start()
    machine.write("vda", 7 * MIB, 64 * KIB, 6)
    cycle.run(expect_incremental=True)  # running on a point that was taken while stopped
    assert sum(cycle.replica.moved.values()) == 128 * KIB
    machine.off()
    cycle.run(expect_incremental=True)
    assert machine.bitmaps("vda") == machine.checkpoints() == {"farshore-pt-5"}


def test_a_stopped_machine_full_through_its_chain(cycle: Cycle, machine: Machine) -> None:
    overlay = machine.folder / "overlay.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", machine.path("vda"), "-F", "qcow2", overlay)
    xml = machine.handle.XMLDesc(0).replace(str(machine.path("vda")), str(overlay))
    machine.connection.defineXML(xml)
    machine.write("vda", 64 * KIB, 64 * KIB, 9)
    cycle.run(expect_incremental=False)
    machine.start()
    machine.write("vda", 2 * MIB, 64 * KIB, 8)
    cycle.run(expect_incremental=True)
    assert sum(cycle.replica.moved.values()) == 64 * KIB
    assert "farshore" not in str(machine.path("vda").read_bytes()[: 64 * KIB])


def test_an_external_snapshot_does_not_break_the_lineage(cycle: Cycle, machine: Machine) -> None:
    machine.start()
    cycle.run()
    machine.write("vda", MIB, 64 * KIB, 3)
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    machine.handle.snapshotCreateXML("<domainsnapshot><name>user</name></domainsnapshot>", flags)
    assert machine.active("vda") != str(machine.path("vda"))
    machine.write("vda", 2 * MIB, 64 * KIB, 4)
    machine.off()
    cycle.run(expect_incremental=True)  # both images' bitmaps count
    assert cycle.replica.moved[machine.key("vda")] == 128 * KIB
    machine.start()
    machine.write("vdb", 2 * MIB, 64 * KIB, 4)
    cycle.run(expect_incremental=True)


def test_an_overlay_that_nobody_tracked_is_read_whole(cycle: Cycle, machine: Machine) -> None:
    cycle.run()
    overlay = machine.folder / "overlay.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", machine.path("vda"), "-F", "qcow2", overlay)
    machine.connection.defineXML(machine.handle.XMLDesc(0).replace(str(machine.path("vda")), str(overlay)))
    machine.write("vda", MIB, 64 * KIB, 3)
    images = {target: machine.image(target) for target in machine.disks}
    snapshot = cycle.take()
    assert [disk.incremental for disk in snapshot.disks] == [False, True]
    assert snapshot.disks[0].reason.startswith("bitmap-broken")
    cycle.pull(snapshot, images)


def test_a_killed_guest_loses_its_bitmaps_and_is_read_whole(cycle: Cycle, machine: Machine) -> None:
    machine.start()
    cycle.run()
    machine.write("vda", MIB, 64 * KIB, 3)
    machine.kill()
    # Stopped: the image itself says that the bitmap was not stored.
    stopped = cycle.run(expect_incremental=False)
    assert stopped.disks[0].reason.startswith("bitmap-broken")
    machine.start()
    cycle.run(expect_incremental=True)
    machine.write("vda", 2 * MIB, 64 * KIB, 4)
    machine.kill()
    machine.start()
    # Running: libvirt refuses the base, and a full one begins at once.
    running = cycle.run(expect_incremental=False)
    assert running.disks[0].reason.startswith("bitmap-broken")
    machine.write("vda", 3 * MIB, 64 * KIB, 5)
    cycle.run(expect_incremental=True)
    assert len(machine.checkpoints()) == 1
    machine.off()
    assert machine.bitmaps("vda") == machine.checkpoints()


def test_a_bitmap_deleted_behind_our_back_costs_only_its_disk(cycle: Cycle, machine: Machine) -> None:
    cycle.run()
    qemu_img("bitmap", "--remove", machine.path("vdb"), "farshore-pt-1")
    machine.start()
    machine.write("vda", MIB, 64 * KIB, 3)
    images = {target: machine.image(target) for target in machine.disks}
    snapshot = cycle.take()
    assert [disk.incremental for disk in snapshot.disks] == [True, False]
    cycle.pull(snapshot, images)
    cycle.release(snapshot)
    cycle.run(expect_incremental=True)


def test_a_point_that_was_never_applied_is_no_base(cycle: Cycle, machine: Machine) -> None:
    machine.start()
    cycle.run()
    machine.write("vda", MIB, 64 * KIB, 3)
    given_up = cycle.take()
    cycle.release(given_up, applied=False)
    assert machine.checkpoints() == {"farshore-pt-1"}
    machine.write("vda", 2 * MIB, 64 * KIB, 4)
    forgotten = cycle.take()  # and never released at all
    machine.write("vda", 3 * MIB, 64 * KIB, 5)
    cycle.run(expect_incremental=True)
    assert cycle.replica.moved[machine.key("vda")] == 192 * KIB
    assert cycle.source.find(forgotten.point_id) is None
    assert machine.checkpoints() == {"farshore-pt-4"}
    machine.off()
    machine.write("vda", 4 * MIB, 64 * KIB, 6)
    cycle.take()  # and never released
    cycle.release(cycle.take(), applied=False)
    assert machine.bitmaps("vda") == machine.checkpoints() == {"farshore-pt-4"}
    cycle.run(expect_incremental=True)
    assert cycle.replica.moved[machine.key("vda")] == 64 * KIB


@pytest.mark.parametrize("running", [True, False])
def test_a_point_outlives_our_process(cycle: Cycle, machine: Machine, lab: Lab, scratch: Path, running: bool) -> None:
    if running:
        machine.start()
    cycle.run()
    machine.write("vda", MIB, 64 * KIB, 3)
    images = {target: machine.image(target) for target in machine.disks}
    snapshot = cycle.take()
    if not running:
        # The daemons of the life before are gone too.
        launcher = Launcher(scratch / "d")
        for key in list(launcher.keys()):
            launcher.stop(key)
    cycle.source = open_source(lab, scratch)
    assert cycle.source.find(snapshot.point_id) == snapshot
    again = cycle.source.snapshot(GROUP, snapshot.point_id, [machine.machine_id], {}, "machine")
    assert again == snapshot
    cycle.pull(snapshot, images)
    assert cycle.source.sweep([snapshot.point_id]) == []
    cycle.release(snapshot)
    cycle.release(snapshot)
    assert cycle.source.find(snapshot.point_id) is None
    assert machine.checkpoints() == {snapshot.point_id.join(["farshore-", ""])}
    cycle.run(expect_incremental=True)


def test_sweep_ends_what_nobody_reads_and_keeps_the_tracking(cycle: Cycle, machine: Machine, scratch: Path) -> None:
    machine.start()
    cycle.run()
    machine.write("vda", MIB, 64 * KIB, 3)
    snapshot = cycle.take()
    assert cycle.source.sweep([]) == [snapshot.point_id]
    assert cycle.source.find(snapshot.point_id) is None
    assert machine.handle.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE
    assert list((scratch / "jobs").iterdir()) == []
    with pytest.raises(RestartFromCheckpoint):
        cycle.source.snapshot(GROUP, snapshot.point_id, [machine.machine_id], {}, "machine")
    cycle.run(expect_incremental=True)


def test_a_machine_that_is_started_while_it_is_read_is_not_held_up(cycle: Cycle, machine: Machine) -> None:
    cycle.run()
    machine.write("vda", MIB, 64 * KIB, 3)
    snapshot = cycle.take()
    reader = cycle.source.reader(snapshot, machine.key("vda"))
    reader.read_into(0, memoryview(bytearray(512)))
    machine.start()
    with pytest.raises(RestartFromCheckpoint) as caught:
        reader.read_into(0, memoryview(bytearray(512)))
    assert caught.value.code == "source-point-gone"
    reader.close()
    with pytest.raises(RestartFromCheckpoint):
        list(cycle.source.changed(snapshot, machine.key("vda"), None))
    assert cycle.source.find(snapshot.point_id) is None
    cycle.release(snapshot, applied=False)
    assert machine.checkpoints() == {"farshore-pt-1"}
    cycle.run(expect_incremental=True)
    assert cycle.replica.moved[machine.key("vda")] == 64 * KIB


def test_a_machine_that_is_powered_off_while_it_is_read_ends_the_point(cycle: Cycle, machine: Machine) -> None:
    machine.start()
    cycle.run()
    machine.write("vda", MIB, 64 * KIB, 3)
    snapshot = cycle.take()
    reader = cycle.source.reader(snapshot, machine.key("vda"))
    reader.read_into(0, memoryview(bytearray(512)))
    machine.off()
    with pytest.raises(RestartFromCheckpoint):
        reader.read_into(0, memoryview(bytearray(512)))
    reader.close()
    with pytest.raises(RestartFromCheckpoint):
        list(cycle.source.changed(snapshot, machine.key("vda"), "pt-1"))
    assert cycle.source.find(snapshot.point_id) is None
    cycle.release(snapshot, applied=False)
    cycle.run(expect_incremental=True)
    assert cycle.replica.moved[machine.key("vda")] == 64 * KIB


def test_libvirt_restarts_while_a_point_is_read(cycle: Cycle, machine: Machine, lab: Lab) -> None:
    machine.start()
    cycle.run()
    machine.write("vda", MIB, 64 * KIB, 3)
    images = {target: machine.image(target) for target in machine.disks}
    snapshot = cycle.take()
    pid = (lab.alpha.folder / "run" / "libvirtd.pid").read_text().strip()
    lab.alpha.run("kill", "-9", pid)
    cycle.pull(snapshot, images)

    def answers() -> bool:
        try:
            lab.alpha.connect().close()
        except Exception:  # noqa: BLE001  whatever it says while it starts
            return False
        return True

    wait_for(answers)
    machine.connection = lab.alpha.connect()
    assert cycle.source.find(snapshot.point_id) == snapshot
    cycle.release(snapshot)
    cycle.run(expect_incremental=True)


def test_raw_disks_are_read_whole_beside_tracked_ones(source: KvmSource, make: Make, tmp_path: Path) -> None:
    machine = make("raw", disks={"vda": "qcow2", "vdb": "raw"})
    machine.write("vdb", MIB, 64 * KIB, 1)
    cycle = Cycle(source, machine, tmp_path)
    machine.start()
    first = cycle.run()
    assert [(f.code, f.subject) for f in first.machines[0].findings] == [("no-change-tracking", "raw/vdb")]
    for stopped in (False, True):
        if stopped:
            machine.off()
        machine.write("vda", MIB, 64 * KIB, 3)
        machine.write("vdb", 2 * MIB, 64 * KIB, 3)
        assert [disk.incremental for disk in cycle.run().disks] == [True, False]
    only = make("only", disks={"vda": "raw"})
    only.start()
    other = Cycle(source, only, tmp_path)
    other._ids = iter(["pt-raw"])
    other.run(expect_incremental=False)


def test_a_new_disk_is_read_whole(source: KvmSource, make: Make, tmp_path: Path) -> None:
    machine = make("grown", disks={"vda": "qcow2"})
    cycle = Cycle(source, machine, tmp_path)
    cycle.run()
    qemu_img("create", "-q", "-f", "qcow2", machine.path("vdb"), str(2 * MIB))
    machine.disks["vdb"] = "qcow2"
    machine.define()
    machine.start()
    snapshot = cycle.run()
    assert [disk.incremental for disk in snapshot.disks] == [True, False]
    assert snapshot.disks[1].reason.startswith("disk-added")
    cycle.run(expect_incremental=True)


def test_untrack_leaves_nothing(cycle: Cycle, machine: Machine, scratch: Path) -> None:
    cycle.run()
    machine.start()
    cycle.run()
    cycle.take()
    cycle.source.untrack(machine.machine_id)
    cycle.source.untrack(machine.machine_id)
    assert machine.checkpoints() == set()
    machine.off()
    assert machine.bitmaps("vda") == machine.bitmaps("vdb") == set()
    assert [path for path in scratch.rglob("*") if path.is_file()] == []
    # Bitmaps that libvirt does not know, stopped and running.
    for running in (False, True):
        qemu_img("bitmap", "--add", machine.path("vda"), "farshore-old")
        if running:
            machine.start()
        cycle.source.untrack(machine.machine_id)
        if running:
            machine.off()
        assert machine.bitmaps("vda") == set()


def test_a_machine_is_left_as_it_was_found(
    cycle: Cycle, source: KvmSource, machine: Machine, scratch: Path, tmp_path: Path
) -> None:
    """What a hypervisor shows of a machine before it was ever protected, and after that has ended, is the same."""

    def shown() -> dict[str, Any]:
        """Everything that a listing tells: definition, checkpoints, snapshots, images with bitmaps, files beside."""
        images = {target: Path(machine.path(target)) for target in ("vda", "vdb")}
        return {
            "xml": machine.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE),
            "checkpoints": sorted(item.getName() for item in machine.handle.listAllCheckpoints(0)),
            "snapshots": machine.handle.snapshotListNames(0),
            "autostart": machine.handle.autostart(),
            "images": {target: described(path) for target, path in images.items()},
            "beside": sorted(path.name for path in tmp_path.glob("*.img*")),
            "scratch": sorted(str(path) for path in scratch.rglob("*") if path.is_file()),
        }

    def described(path: Path) -> dict[str, Any]:
        done = subprocess.run(["qemu-img", "info", "--output=json", path], check=True, capture_output=True)
        found = json.loads(done.stdout)
        bitmaps = found.get("format-specific", {}).get("data", {}).get("bitmaps", [])
        return {"backing": found.get("backing-filename"), "size": found["virtual-size"], "bitmaps": bitmaps}

    qemu_img("bitmap", "--add", machine.path("vda"), "theirs")
    before = shown()
    assert source.traces(machine.machine_id) == []
    cycle.run()  # stopped
    machine.start()
    cycle.run()  # running
    cycle.take()  # and in the middle of another one
    traces = source.traces(machine.machine_id)
    assert {trace.split()[0] for trace in traces} >= {"checkpoint", "point", "backup"}
    source.untrack(machine.machine_id)
    assert source.traces(machine.machine_id) == []
    machine.off()
    assert source.traces(machine.machine_id) == []
    assert shown() == before


def test_somebody_elses_backup_and_checkpoints_are_left_alone(cycle: Cycle, machine: Machine, tmp_path: Path) -> None:
    machine.start()
    cycle.run()
    socket = tmp_path / "theirs.sock"
    theirs = f"<domainbackup mode='pull'><server transport='unix' socket='{socket}'/></domainbackup>"
    machine.handle.backupBegin(theirs, "<domaincheckpoint><name>theirs</name></domaincheckpoint>", 0)
    with pytest.raises(Retry) as caught:
        cycle.take()
    assert caught.value.code == "machine-busy"
    assert machine.handle.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE
    machine.handle.abortJob()
    wait_for(lambda: machine.handle.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE)
    cycle.run(expect_incremental=True)
    cycle.source.untrack(machine.machine_id)
    assert machine.checkpoints() == {"theirs"}


def test_a_group_is_one_instant_and_says_how_long_it_paused(source: KvmSource, make: Make) -> None:
    one, two, three = make("one"), make("two"), make("three")
    one.start()
    two.start()
    ids = [one.machine_id, two.machine_id, three.machine_id]
    group = source.snapshot(GROUP, "pt-g", ids, {}, "group")
    assert group.level == "group"
    assert set(group.evidence["paused_s"]) == {one.machine_id, two.machine_id}
    assert group.evidence["longest_pause_s"] == max(group.evidence["paused_s"].values())
    assert {machine.handle.state(0)[0] for machine in (one, two)} == {libvirt.VIR_DOMAIN_RUNNING}
    source.release(GROUP, "pt-g", ids, applied=True)
    apart = source.snapshot(
        GROUP, "pt-h", ids, {machine.key("vda"): "pt-g" for machine in (one, two, three)}, "machine"
    )
    assert apart.level == "machine"
    assert "longest_pause_s" not in apart.evidence
    assert [disk.incremental for disk in apart.disks] == [True, False] * 3
    source.release(GROUP, "pt-h", ids, applied=False)
    alone = source.snapshot(GROUP, "pt-i", [one.machine_id], {}, "group")
    assert alone.level == "machine", "one machine is no group"
    source.release(GROUP, "pt-i", [one.machine_id], applied=False)


def test_a_group_that_fails_leaves_nothing_paused_and_nothing_begun(
    source: KvmSource, make: Make, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make("one"), make("two")
    one.start()
    two.start()
    theirs = two.folder / "theirs.sock"
    job = f"<domainbackup mode='pull'><server transport='unix' socket='{theirs}'/></domainbackup>"

    real = KvmSource._clear_left_overs

    def then_another_tool_begins(self: KvmSource, handles: dict[str, object]) -> None:
        real(self, handles)
        two.handle.backupBegin(job, None, 0)

    monkeypatch.setattr(KvmSource, "_clear_left_overs", then_another_tool_begins)
    monkeypatch.setattr(libvirt.virDomain, "backupBegin", _refused_for(two.machine_id))
    with pytest.raises(Retry):
        source.snapshot(GROUP, "pt-g", [one.machine_id, two.machine_id], {}, "group")
    for machine in (one, two):
        assert machine.handle.state(0)[0] == libvirt.VIR_DOMAIN_RUNNING
        assert machine.checkpoints() == set()
        assert machine.handle.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


def test_a_machine_left_paused_by_a_life_before_is_resumed(
    source: KvmSource, make: Make, lab: Lab, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make("one"), make("two")
    one.start()
    two.start()

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("farshore.platforms.kvm.backup.begin", killed)
        patch.setattr(libvirt.virDomain, "resume", killed)
        patch.setattr(KvmSource, "_discard", lambda *_: None)
        with pytest.raises(Killed):
            source.snapshot(GROUP, "pt-g", [one.machine_id, two.machine_id], {}, "group")
    assert one.handle.state(0)[0] == libvirt.VIR_DOMAIN_PAUSED
    later = open_source(lab, scratch)
    assert later.sweep([]) == ["pt-g"]
    assert {machine.handle.state(0)[0] for machine in (one, two)} == {libvirt.VIR_DOMAIN_RUNNING}


def test_names_what_is_wrong(cycle: Cycle, machine: Machine) -> None:
    with pytest.raises(NotFound):
        cycle.source.snapshot(GROUP, "pt-x", ["6f9c9b0a-0000-4f0e-9d0f-5a5b4b1a7c11"], {}, "machine")
    with pytest.raises(NotFound):
        cycle.source.snapshot(GROUP, "pt-x", ["no-such"], {}, "machine")
    with pytest.raises(Invalid):
        cycle.source.snapshot(GROUP, "pt-x", [], {}, "machine")
    snapshot = cycle.take()
    with pytest.raises(Invalid) as caught:
        cycle.source.changed(snapshot, machine.key("vda"), "pt-none")
    assert caught.value.code == "base-unusable"
    with pytest.raises(NotFound):
        cycle.source.reader(snapshot, f"{machine.machine_id}/vdz")
    cycle.release(snapshot, applied=False)
    assert cycle.source.find("pt-none") is None
    cycle.source.release(GROUP, "pt-none", [machine.machine_id], applied=False)
    assert machine.bitmaps("vda") == set()


def _refused_for(machine_id: str) -> Callable[..., int]:
    real = libvirt.virDomain.backupBegin

    def begin(self: libvirt.virDomain, job: str, checkpoint: str | None, flags: int = 0) -> int:
        if checkpoint and self.UUIDString() == machine_id:
            raise libvirt.libvirtError("refused by the test")
        return int(real(self, job, checkpoint, flags)) if checkpoint else 0

    return begin
