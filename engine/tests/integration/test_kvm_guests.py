"""Real guests under load: a group replicated, stopped as planned, made again elsewhere, bit by bit the same."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest
from doubles.kvm_machines import pieces, qemu_img, same, wait_for
from farshore.errors import FarshoreError
from farshore.model.machine import MachineFacts
from farshore.model.plan import Quiesce
from farshore.model.task import DiskSpec, MachineCreateParams, NicSpec
from farshore.platforms.contract import Kind, Platform, Snapshot
from farshore.platforms.kvm import backup, freezing, looking, open_kvm
from farshore.platforms.nbd.launcher import Launcher
from farshore.testing.lab import Lab
from farshore.testing.lab.site import Site
from farshore.units import MIB

pytestmark = pytest.mark.lab
GROUP = "grp-shop"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"), Path(".cache/lab"))
    lab.up()
    yield lab
    for site in (lab.alpha, lab.beta):
        launcher = Launcher(site.folder / "s" / "daemons")
        for key in list(launcher.keys()):
            launcher.stop(key)
    lab.down()


def open_site(site: Site) -> Platform:
    return open_kvm({"uri": site.uri, "pool": str(site.storage / "pool"), "scratch": str(site.folder / "s")})


class Domain:
    """A guest's domain at the first site, and independent images of its disks."""

    def __init__(self, lab: Lab, facts: MachineFacts, folder: Path) -> None:
        self.facts = facts
        self.handle = lab.alpha.connect().lookupByUUIDString(facts.machine_id)
        self.folder = folder

    def image(self, path: str) -> Path:
        out = self.folder / f"{uuid.uuid4().hex}.raw"
        qemu_img("convert", "-U", "-f", "qcow2", "-O", "raw", path, out)
        return out


@contextlib.contextmanager
def held(domains: list[Domain]) -> Iterator[dict[str, Path]]:
    """Pause all by other hands than the platform's, yield an image of every disk."""
    for domain in domains:
        domain.handle.suspend()
    try:
        yield {
            f"{domain.facts.machine_id}/{disk.disk_id}": domain.image(disk.path)
            for domain in domains
            for disk in domain.facts.disks
        }
    finally:
        for domain in domains:
            if domain.handle.state(0)[0] == 3:  # paused
                domain.handle.resume()


class Copy:
    """What the engine does in a cycle, without its network."""

    def __init__(self, source: Platform, target: Platform) -> None:
        self.source = source.source
        self.target = target.target
        self.points: dict[str, str] = {}
        self.base: str | None = None
        self.moved = 0

    def bases(self, keys: list[str]) -> dict[str, str | None]:
        return dict.fromkeys(keys, self.base)

    def cycle(self, snapshot: Snapshot) -> None:
        self.moved = 0
        for disk in snapshot.disks:
            base = self.base if disk.incremental else None
            on = self.points.get(disk.disk_key) if base else None
            draft = self.target.open(disk.disk_key, disk.size_bytes, on, f"{snapshot.point_id}-1")
            reader = self.source.reader(snapshot, disk.disk_key)
            buffer = memoryview(bytearray(MIB))
            for extent in self.source.changed(snapshot, disk.disk_key, base):
                if extent.kind is Kind.ZERO:
                    draft.write_zeroes(extent.offset, extent.length)
                    continue
                for offset, length in pieces(extent.offset, extent.length):
                    reader.read_into(offset, buffer[:length])
                    draft.write(offset, buffer[:length])
                    self.moved += length
            reader.close()
            self.points[disk.disk_key] = draft.seal()
        ids = [machine.machine_id for machine in snapshot.machines]
        self.source.release(snapshot.group_id, snapshot.point_id, ids, applied=True)
        self.base = snapshot.point_id

    def equals(self, images: dict[str, Path]) -> None:
        for key, image in images.items():
            path = self.target.path(self.points[key])  # type: ignore[attr-defined]
            done = subprocess.run(
                ["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", path, image],
                check=False,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{key}: {done.stdout}{done.stderr}"


CUT_SHORT = """\
import json, os, signal, sys
from farshore.platforms.kvm import backup, open_kvm
backup.begin = lambda plan: os.kill(os.getpid(), signal.SIGKILL)
settings, machine_ids = map(json.loads, sys.argv[1:])
open_kvm(settings).source.snapshot("grp-shop", "pt-cut-short", machine_ids, {}, "application")
"""


def needs_recovery(platform: Platform, snapshot: Snapshot, disk_key: str) -> bool:
    """Say whether the file system of a whole disk would have to replay its journal (ext4's INCOMPAT_RECOVER)."""
    buffer = memoryview(bytearray(4096))
    reader = platform.source.reader(snapshot, disk_key)
    reader.read_into(0, buffer)
    reader.close()
    assert int.from_bytes(buffer[1024 + 0x38 :][:2], "little") == 0xEF53
    return bool(int.from_bytes(buffer[1024 + 0x60 :][:4], "little") & 4)


def test_guests_are_frozen_for_a_point_and_let_go_again(lab: Lab) -> None:
    alpha = open_site(lab.alpha)
    db, web = sorted(alpha.inventory().machines, key=lambda machine: machine.name)
    ids = [db.machine_id, web.machine_id]
    handles = {one: lab.alpha.connect().lookupByUUIDString(one) for one in ids}
    data = f"{db.machine_id}/vdb"

    def status(machine_id: str) -> str:
        return str(freezing.ask(handles[machine_id], "guest-fsfreeze-status", 20))

    for machine_id in ids:
        wait_for(lambda machine_id=machine_id: answers(handles[machine_id]), limit_s=90)

    snapshot = alpha.source.snapshot(GROUP, "pt-crash", ids, {}, "group")
    assert snapshot.level == "group"
    assert needs_recovery(alpha, snapshot, data)
    alpha.source.release(GROUP, "pt-crash", ids, applied=False)

    commands = {db.machine_id: Quiesce(before=("/bin/touch", "/system/before"), after=("/bin/rm", "/system/before"))}
    snapshot = alpha.source.snapshot(GROUP, "pt-app", ids, {}, "application", commands)
    assert snapshot.level == "application", snapshot.evidence
    assert not needs_recovery(alpha, snapshot, data)
    frozen = snapshot.evidence["frozen"]
    assert frozen[db.machine_id]["file_systems"] == 2
    assert frozen[db.machine_id]["ran"] == {"before": "exit 0", "after": "exit 0"}
    assert frozen[web.machine_id]["file_systems"] == 1
    assert 0 < snapshot.evidence["longest_pause_s"] <= snapshot.evidence["longest_freeze_s"]
    assert [status(machine_id) for machine_id in ids] == ["thawed", "thawed"]
    alpha.source.release(GROUP, "pt-app", ids, applied=False)

    # A command that fails keeps its guest from counting, and says why; nobody stays frozen.
    commands = {web.machine_id: Quiesce(before=("/bin/false",))}
    snapshot = alpha.source.snapshot(GROUP, "pt-less", ids, {}, "application", commands)
    assert snapshot.level == "group"
    assert snapshot.evidence["below_application"] == ["farshore-lab-web: /bin/false: exit 1"]
    assert frozen.keys() == {*ids}
    alpha.source.release(GROUP, "pt-less", ids, applied=False)

    # Killed while all are frozen and paused: the next life of the node lets them go.
    scratch = {"uri": lab.alpha.uri, "pool": str(lab.alpha.storage / "pool"), "scratch": str(lab.alpha.folder / "s")}
    cut = subprocess.run(
        [sys.executable, "-c", CUT_SHORT, json.dumps(scratch), json.dumps(ids)], check=False, capture_output=True
    )
    assert cut.returncode == -signal.SIGKILL, cut.stderr
    assert {handle.state(0)[0] for handle in handles.values()} == {libvirt.VIR_DOMAIN_PAUSED}
    alpha = open_site(lab.alpha)
    alpha.source.sweep([])
    assert {handle.state(0)[0] for handle in handles.values()} == {libvirt.VIR_DOMAIN_RUNNING}
    assert [status(machine_id) for machine_id in ids] == ["thawed", "thawed"]
    for machine_id in ids:
        alpha.source.untrack(machine_id)


def answers(handle: Any) -> bool:
    with contextlib.suppress(FarshoreError):
        freezing.ask(handle, "guest-ping", 5)
        return True
    return False


def agent_is_there(handle: Any) -> bool:
    """Say whether QEMU sees the agent's port open in the guest."""
    said = json.loads(libvirt_qemu.qemuMonitorCommand(handle, '{"execute": "query-chardev"}', 0))
    return any(one["frontend-open"] for one in said["return"] if one["label"].startswith("charchannel"))


def test_an_agent_that_restarts_does_not_hold_up_the_end_of_a_point(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    # libvirt would come round by itself after half a minute or more, and other machines of the site would wait too.
    monkeypatch.setattr(backup, "END_S", 15.0)
    alpha = open_site(lab.alpha)
    db = min(alpha.inventory().machines, key=lambda machine: machine.name)
    handle = lab.alpha.connect().lookupByUUIDString(db.machine_id)
    wait_for(lambda: answers(handle), limit_s=90)
    alpha.source.snapshot(GROUP, "pt-open", [db.machine_id], {}, "machine")
    kill = {"execute": "guest-exec", "arguments": {"path": "/bin/killall", "arg": ["agent.sh"]}}
    looking.ask_agent(handle, kill, 20)
    wait_for(lambda: not agent_is_there(handle), limit_s=60)
    alpha.source.release(GROUP, "pt-open", [db.machine_id], applied=True)
    assert not any("backup" in trace for trace in alpha.source.traces(db.machine_id))
    wait_for(lambda: answers(handle), limit_s=90)
    alpha.source.untrack(db.machine_id)


def test_a_group_goes_to_the_other_site_and_lives_there(lab: Lab, tmp_path: Path) -> None:
    alpha, beta = open_site(lab.alpha), open_site(lab.beta)
    assert alpha.compute
    assert beta.compute
    machines = sorted(alpha.inventory().machines, key=lambda machine: machine.name)
    assert [machine.name for machine in machines] == ["farshore-lab-db", "farshore-lab-web"]
    domains = [Domain(lab, machine, tmp_path) for machine in machines]
    ids = [machine.machine_id for machine in machines]
    keys = [f"{machine.machine_id}/{disk.disk_id}" for machine in machines for disk in machine.disks]
    copy = Copy(alpha, beta)

    # Two cycles while the guests run and write; the second names what changed.
    for number in (1, 2):
        with held(domains) as images:
            snapshot = alpha.source.snapshot(GROUP, f"pt-{number}", ids, copy.bases(keys), "group")
        copy.cycle(snapshot)
        copy.equals(images)
        assert {disk.incremental for disk in snapshot.disks} == {number == 2}
    assert copy.moved < sum(disk.size_bytes for disk in snapshot.disks) / 4

    # One that the platform pauses for by itself.
    snapshot = alpha.source.snapshot(GROUP, "pt-3", ids, copy.bases(keys), "group")
    assert snapshot.level == "group"
    assert 0 < snapshot.evidence["longest_pause_s"] < 10
    assert {alpha.compute.power(machine_id) for machine_id in ids} == {"on"}
    copy.cycle(snapshot)

    # The planned stop: clean, then the last changes from the resting disks.
    stop_behind_an_open_point(
        alpha, domains[1], domains[0], copy.bases([key for key in keys if key.startswith(ids[0])])
    )
    for machine_id in ids:
        assert alpha.compute.stop(machine_id, 60)
    snapshot = alpha.source.snapshot(GROUP, "pt-4", ids, copy.bases(keys), "machine")
    assert {disk.incremental for disk in snapshot.disks} == {True}
    copy.cycle(snapshot)
    stopped = {f"{d.facts.machine_id}/{disk.disk_id}": d.image(disk.path) for d in domains for disk in d.facts.disks}
    copy.equals(stopped)
    for machine_id in ids:
        assert alpha.compute.fence(machine_id, 2)

    # The machines at the other site show the same disks, through the chain of layers.
    facts = {machine.machine_id: machine for machine in snapshot.machines}
    made = {machine_id: beta.compute.create(recovered(facts[machine_id], copy)) for machine_id in ids}
    back = Copy(beta, alpha)
    for number in (1, 2):
        for machine_id in ids:
            target_keys = [f"{made[machine_id]}/{disk.disk_id}" for disk in facts[machine_id].disks]
            point = beta.source.snapshot(
                made[machine_id], f"pt-back-{number}-{machine_id[:8]}", [made[machine_id]], {}, "machine"
            )
            assert [disk.disk_key for disk in point.disks] == target_keys
            back.cycle(point)
        if number == 1:
            back.equals({key.replace(*pair(key, made)): image for key, image in stopped.items()})
            write(beta.compute.facts(made[ids[0]]).disks[0].path)
    drops(beta, copy)


def stop_behind_an_open_point(alpha: Platform, stopped: Domain, read: Domain, bases: dict[str, str | None]) -> None:
    """Stop a machine while libvirt's thread for events waits for the end of a point of another one.

    Without help it is shown as shutting down until that wait is over: twice half a minute.
    """
    assert alpha.compute
    wait_for(lambda: answers(read.handle), limit_s=90)
    alpha.source.snapshot("grp-open", "pt-open", [read.facts.machine_id], bases, "machine")
    kill = {"execute": "guest-exec", "arguments": {"path": "/bin/killall", "arg": ["agent.sh"]}}
    with contextlib.suppress(FarshoreError):  # it may go before it has answered
        looking.ask_agent(read.handle, kill, 20)
    wait_for(lambda: not agent_is_there(read.handle), limit_s=60)
    stopped.handle.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    wait_for(lambda: stopped.handle.state(0)[0] != libvirt.VIR_DOMAIN_RUNNING, limit_s=60)
    assert alpha.compute.stop(stopped.facts.machine_id, 25)
    alpha.source.release("grp-open", "pt-open", [read.facts.machine_id], applied=False)


def pair(key: str, made: dict[str, str]) -> tuple[str, str]:
    machine_id = key.partition("/")[0]
    return machine_id, made[machine_id]


def write(path: str) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", path], check=True, capture_output=True)


def drops(beta: Platform, copy: Copy) -> None:
    """What machines stand on stays, all below it can be thinned away."""
    for key, last in copy.points.items():
        path: Any = beta.target.path(last)  # type: ignore[attr-defined]
        before = copy_of(path)
        for point in beta.target.points():
            if point.startswith(f"{key}/") and point != last:
                beta.target.drop(point)
        same(copy_of(path), before)
    assert sorted(beta.target.points()) == sorted(copy.points.values())
    beta.target.close()  # type: ignore[attr-defined]


def copy_of(path: Path) -> Path:
    out = path.with_name(f"{uuid.uuid4().hex}.raw")
    qemu_img("convert", "-U", "-O", "raw", path, out)
    return out


def recovered(facts: MachineFacts, copy: Copy) -> MachineCreateParams:
    return MachineCreateParams(
        tag="run-failover",
        purpose="failover",
        name=facts.name,
        facts=facts,
        cpus=facts.cpus,
        memory_bytes=facts.memory_bytes,
        disks=tuple(
            DiskSpec(
                disk_id=disk.disk_id,
                point=copy.points[f"{facts.machine_id}/{disk.disk_id}"],
                size_bytes=disk.size_bytes,
            )
            for disk in facts.disks
        ),
        nics=tuple(NicSpec(mac=nic.mac, network="recovery") for nic in facts.nics),
        epoch=2,
    )
