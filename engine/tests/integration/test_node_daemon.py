"""Two real node processes on platforms of files, and a double of the control plane over real mutual TLS."""

from __future__ import annotations

import ctypes
import hashlib
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from doubles.control_for_nodes import Control, Held
from doubles.control_process import until
from doubles.gate import Gate
from doubles.manifests import a_manifest
from doubles.node_process import NodeProcess
from doubles.ports import free_port
from farshore.model.checkpoint import Manifest
from farshore.model.grant import Grant, GrantDisk, sign
from farshore.model.task import (
    PointParams,
    PointResult,
    ReleaseParams,
    ReplicateDisk,
    ReplicateParams,
    ReplicateResult,
    Task,
    TaskKind,
    TaskReport,
)
from farshore.node import tidy
from farshore.node.identity import fingerprint
from farshore.platforms.file.machine import FileMachine
from farshore.platforms.registry import open_platform
from farshore.units import MIB

SIZES = {"vda": 24 * MIB, "vdb": 8 * MIB + 512}


def thumbprint(node: NodeProcess) -> str:
    certificate = x509.load_pem_x509_certificate((node.state / "node.pem").read_bytes())
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


@dataclass
class Stand:
    """Site alpha with a machine, site beta, a node each, and the double; beta reaches alpha through a gate."""

    folder: Path
    control: Control
    alpha: NodeProcess
    beta: NodeProcess
    gate: Gate
    machine: FileMachine
    number: int = 0
    published: list[Manifest] = field(default_factory=list)

    def put(self, site: str, kind: TaskKind, params: dict[str, Any] | None = None, **more: Any) -> Held:
        self.number += 1
        task_id = more.pop("task_id", f"tsk-{self.number}")
        return self.control.put(
            Task(task_id=task_id, kind=kind, key=task_id, site=site, params=params or {}, **more), site
        )

    def run(self, site: str, kind: TaskKind, params: dict[str, Any] | None = None) -> TaskReport:
        return self.control.result(self.put(site, kind, params))

    def succeed(self, site: str, kind: TaskKind, params: dict[str, Any] | None = None) -> dict[str, Any]:
        report = self.run(site, kind, params)
        assert report.state == "succeeded", report.error
        assert report.result is not None
        return report.result

    def fail(self, site: str, kind: TaskKind, params: dict[str, Any] | None = None) -> dict[str, Any]:
        report = self.run(site, kind, params)
        assert report.state == "failed", report.result
        assert report.error is not None
        return report.error

    def write(self, seed: int) -> None:
        """Write some MiB as a guest would."""
        noise = random.Random(seed)
        for disk_id, size in SIZES.items():
            for _ in range(12):
                length = noise.randrange(512, 900_000) // 512 * 512
                self.machine.write(disk_id, noise.randrange(0, size - length) // 512 * 512, noise.randbytes(length))

    def point(self) -> PointResult:
        bases = {disk.disk_key: disk.source_point for disk in self.published[-1].disks} if self.published else {}
        params = PointParams(
            group_id="grp-p-web", point_id=f"pt-{self.number}", machine_ids=("web",), bases=bases, epoch=1
        )
        return PointResult.model_validate(self.succeed("alpha", "point", params.model_dump(mode="json")))

    def replicate_params(self, point: PointResult) -> dict[str, Any]:
        last = self.published[-1] if self.published else None
        known = {disk.disk_key: disk for disk in last.disks} if last else {}
        now = time.time()
        disks = tuple(
            ReplicateDisk(
                disk_key=disk.disk_key,
                size_bytes=disk.size_bytes,
                incremental=disk.incremental,
                base_point=known[disk.disk_key].point if disk.disk_key in known else None,
                base_root=known[disk.disk_key].tree_root if disk.disk_key in known else None,
                reason=disk.reason,
            )
            for disk in point.disks
        )
        grant = Grant(
            grant_id=f"gr-{self.number}",
            catalog_id="cat-1",
            generation=1,
            plan="p",
            group_id="grp-p-web",
            session_id=f"cyc-{point.point_id}",
            source_site="alpha",
            target_site="beta",
            source_node="alpha-1",
            target_node="beta-1",
            source_thumbprint=thumbprint(self.alpha),
            target_thumbprint=thumbprint(self.beta),
            epoch=1,
            term=1,
            disks=tuple(
                GrantDisk(
                    disk_key=disk.disk_key,
                    size_bytes=disk.size_bytes,
                    source_point=point.point_id,
                    base=known[disk.disk_key].source_point if disk.disk_key in known else None,
                )
                for disk in point.disks
            ),
            not_before=now - 5,
            not_after=now + 600,
        )
        manifest = a_manifest(
            checkpoint_id=f"cp-{point.point_id}",
            group_id="grp-p-web",
            sequence=last.sequence + 1 if last else 1,
            parent=last.checkpoint_id if last else None,
            level=point.level,
            ordered_at=now,
            taken_at=point.taken_at,
            machines=point.machines,
        )
        params = ReplicateParams(
            grant=sign(grant, self.control.grant_key),
            address=f"127.0.0.1:{self.gate.port}",
            manifest=manifest,
            disks=disks,
        )
        dump = params.model_dump(mode="json")
        dump["transport"]["intermediate_checkpoint_window"] = 2 * MIB
        return dump

    def end_cycle(self, held: Held, point: PointResult) -> ReplicateResult:
        report = self.control.result(held)
        assert report.state == "succeeded", report.error
        result = ReplicateResult.model_validate(report.result)
        self.release(point, applied=True)
        self.published.append(result.manifest)
        return result

    def release(self, point: PointResult, *, applied: bool) -> None:
        params = ReleaseParams(group_id="grp-p-web", point_id=point.point_id, machine_ids=("web",), applied=applied)
        self.succeed("alpha", "release", params.model_dump(mode="json"))

    def cycle(self) -> ReplicateResult:
        point = self.point()
        return self.end_cycle(self.put("beta", "replicate", self.replicate_params(point)), point)

    def stored(self) -> list[str]:
        return open_platform(self.beta.settings["platform"]).manifests.list("groups/grp-p-web/")

    def is_same(self, manifest: Manifest) -> bool:
        """Compare the newest point with the machine's images as they are now."""
        target = open_platform(self.beta.settings["platform"]).target
        for disk in manifest.disks:
            _, _, disk_id = disk.disk_key.partition("/")
            found = bytearray(disk.size_bytes)
            target.read_into(disk.point, 0, memoryview(found))
            if bytes(found) != self.machine.image(disk_id).read_bytes():
                return False
        return True


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    double = Control(tmp_path / "control").start()
    yield double
    double.stop()


@pytest.fixture
def stand(tmp_path: Path, control: Control) -> Iterator[Stand]:
    machine = FileMachine.create(tmp_path / "alpha", "web", SIZES)
    alpha = NodeProcess(tmp_path, "alpha-1", "alpha", control.url, free_port())
    beta = NodeProcess(tmp_path, "beta-1", "beta", control.url, free_port())
    gate = Gate(alpha.port)
    for node in (alpha, beta):
        node.enrol(control.token(node.site, node.name), ca_sha256=fingerprint(control.authority.pem))
        node.start()
    yield Stand(tmp_path, control, alpha, beta, gate, machine)
    gate.close()
    for node in (alpha, beta):
        node.close()


def test_inventory_and_check(stand: Stand):
    result = stand.succeed("alpha", "inventory")
    (machine,) = result["machines"]
    assert machine["name"] == "web"
    assert [disk["size_bytes"] for disk in machine["disks"]] == list(SIZES.values())
    assert stand.succeed("beta", "check")["findings"] == []


def test_full_and_incremental_cycles_publish_what_the_disks_hold(stand: Stand):
    stand.write(1)
    full = stand.cycle()
    assert full.stats.mode == "full"
    assert stand.is_same(full.manifest)
    for seed in (2, 3):
        stand.write(seed)
        incremental = stand.cycle()
        assert incremental.stats.mode == "incremental"
        assert incremental.stats.moved_bytes < full.stats.disk_bytes
        assert stand.is_same(incremental.manifest)
    assert len(stand.stored()) == 3
    scanned = stand.succeed("beta", "catalog-scan")["manifests"]
    assert [item["checkpoint_id"] for item in scanned] == [item.checkpoint_id for item in stand.published]


def test_a_dropped_checkpoint_is_gone_and_the_others_stay_whole(stand: Stand):
    for seed in (1, 2):
        stand.write(seed)
        stand.cycle()
    first, second = stand.published
    params = {"group_id": "grp-p-web", "checkpoint_id": first.checkpoint_id}
    stand.succeed("beta", "drop-checkpoint", params)
    target = open_platform(stand.beta.settings["platform"]).target
    assert not any(target.has(disk.point) for disk in first.disks)
    assert stand.is_same(second)
    stand.succeed("beta", "drop-checkpoint", params)
    assert len(stand.stored()) == 1


@pytest.mark.parametrize("victim", ["alpha", "beta", "both"])
def test_a_node_killed_in_mid_cycle_comes_back_and_the_cycle_ends(stand: Stand, victim: str):
    stand.write(1)
    point = stand.point()
    stand.gate.allow(3 * MIB)
    held = stand.put("beta", "replicate", stand.replicate_params(point))
    stand.gate.await_held()
    victims = [node for node in (stand.alpha, stand.beta) if victim in {node.site, "both"}]
    for node in victims:
        node.kill()
    stand.gate.cut()
    stand.gate.open()
    for node in victims:
        node.start()
    result = stand.end_cycle(held, point)
    assert stand.is_same(result.manifest)
    assert len(stand.stored()) == 1
    assert held.reports[-1].term == held.task.term == (1 if victim == "alpha" else 2)


def test_without_the_control_plane_a_cycle_ends_publishes_and_reports_later(stand: Stand):
    stand.write(1)
    point = stand.point()
    stand.gate.allow(3 * MIB)
    held = stand.put("beta", "replicate", stand.replicate_params(point))
    stand.gate.await_held()
    stand.control.stop()
    stand.gate.open()
    until(stand.stored, "the checkpoint is published without the control plane")
    stand.beta.await_said("task ended", kind="replicate", state="succeeded")
    assert not held.done
    stand.control.start()
    assert stand.is_same(stand.end_cycle(held, point).manifest)
    assert held.task.term == 1


def test_a_report_outlives_the_node(stand: Stand):
    stand.write(1)
    point = stand.point()
    stand.gate.allow(3 * MIB)
    held = stand.put("beta", "replicate", stand.replicate_params(point))
    stand.gate.await_held()
    stand.control.stop()
    stand.gate.open()
    stand.beta.await_said("task ended", kind="replicate", state="succeeded")
    stand.beta.kill()
    stand.beta.start()
    stand.control.start()
    stand.end_cycle(held, point)
    assert held.task.term == 1
    assert len(stand.beta.said("task begins", kind="replicate")) == 1


def test_a_lost_reply_to_a_poll_loses_no_task(stand: Stand):
    stand.control.await_(lambda: stand.control.polls)
    lost = []

    def fault(_method: str, path: str) -> int:
        if path.endswith("poll") and not lost and any(not held.done for held in stand.control.tasks.values()):
            lost.append(path)
            return -1
        return 0

    stand.control.fault = fault
    held = stand.put("alpha", "inventory")
    assert stand.control.result(held).state == "succeeded"
    assert held.task.term == 1


def test_a_lost_answer_to_a_report_is_sent_again(stand: Stand):
    lost = []

    def fault(_method: str, path: str) -> int:
        if path.endswith("reports") and not lost:
            lost.append(path)
            return -1
        return 0

    stand.control.fault = fault
    held = stand.put("alpha", "inventory")
    stand.control.await_(lambda: len(held.reports) >= 2)
    assert held.reports[0] == held.reports[1]
    assert len(stand.alpha.said("task begins")) == 1


def test_a_refused_report_ends_the_task_as_failed(stand: Stand):
    refused = []

    def fault(_method: str, path: str) -> int:
        if path.endswith("reports") and not refused:
            refused.append(path)
            return 422
        return 0

    stand.control.fault = fault
    error = stand.fail("alpha", "inventory")
    assert error["code"] == "report-refused"


def test_a_report_that_is_refused_keeps_no_other_from_being_taken(stand: Stand):
    owed = threading.Event()
    refused = []

    def fault(_method: str, path: str) -> int:
        if not path.endswith("reports"):
            return 0
        if not owed.is_set():
            return 503
        if not refused:
            refused.append(path)
            return 422  # both together
        return 0

    stand.control.fault = fault
    held = [stand.put("alpha", "inventory"), stand.put("alpha", "inventory")]
    until(lambda: len(stand.alpha.said("task ended")) == 2, "both tasks end")
    owed.set()
    assert [stand.control.result(one).state for one in held] == ["succeeded", "succeeded"]


def test_a_cancelled_replication_stops_and_says_so(stand: Stand):
    stand.write(1)
    point = stand.point()
    stand.gate.allow(3 * MIB)
    held = stand.put("beta", "replicate", stand.replicate_params(point))
    stand.gate.await_held()
    stand.control.cancel(held.task.task_id)
    report = stand.control.result(held)
    stand.gate.open()
    assert report.error is not None
    assert report.error["code"] == "cancelled"
    assert stand.stored() == []
    stand.release(point, applied=False)
    stand.control.cancelled.clear()
    assert stand.is_same(stand.cycle().manifest)


def test_what_nobody_asks_for_any_more_is_removed_after_two_days(stand: Stand):
    stand.write(1)
    point = stand.point()
    stand.gate.allow(3 * MIB)
    held = stand.put("beta", "replicate", stand.replicate_params(point))
    stand.gate.await_held()
    stand.control.cancel(held.task.task_id)
    stand.control.result(held)
    platform, journal_dir = open_platform(stand.beta.settings["platform"]), stand.beta.state / "journal"
    assert platform.target.points() != []
    assert tidy.tidy(platform, journal_dir, time.time()) == []
    later = time.time() + tidy.STALE_AFTER_S
    assert tidy.tidy(platform, journal_dir, later) == [f"cp-{point.point_id}"]
    assert platform.target.points() == []
    assert list(journal_dir.iterdir()) == []
    assert tidy.tidy(platform, journal_dir, later) == []


def test_progress_is_told(stand: Stand):
    stand.write(1)
    point = stand.point()
    stand.gate.allow(3 * MIB)
    held = stand.put("beta", "replicate", stand.replicate_params(point))
    stand.control.await_(lambda: any(item["done_bytes"] for item in held.progress))
    assert held.progress[-1]["done_bytes"] <= held.progress[-1]["total_bytes"]
    stand.gate.open()
    stand.end_cycle(held, point)


def test_a_lower_generation_is_not_obeyed_and_a_higher_one_is_kept(stand: Stand):
    stand.control.generation = 5
    stand.succeed("alpha", "inventory")
    stand.alpha.kill()
    stand.control.generation = 4
    stand.alpha.start()
    held = stand.put("alpha", "inventory")
    stand.alpha.await_said(
        "the control plane is not the one that this node obeys; nothing of what it asks is done", obeyed=5, offered=4
    )
    assert not held.done
    stand.control.generation = 5
    stand.control.result(held)


@pytest.fixture
def old_certificates(control: Control) -> None:
    """Enrol with certificates that are due for renewal 10 s later, and end 100 s later."""
    control.certificate_age_days, control.certificate_days = 170 / 86400, 100 / 86400


@pytest.mark.usefixtures("old_certificates")
def test_a_renewed_certificate_is_used_from_then_on(stand: Stand):
    stand.control.certificate_age_days, stand.control.certificate_days = 0.01, 30
    stand.write(1)
    stand.cycle()
    before = {node.name: thumbprint(node) for node in (stand.alpha, stand.beta)}
    for node in (stand.beta, stand.alpha):
        node.await_said("certificate renewed")
        assert thumbprint(node) != before[node.name]
    stand.write(2)
    assert stand.is_same(stand.cycle().manifest)
    assert len(stand.beta.said("certificate renewed")) == 1


def test_what_cannot_be_done_here_fails_with_its_reason(stand: Stand):
    assert stand.fail("alpha", "machine-start", {"machine_id": "web", "epoch": 1})["code"] == "no-compute"
    assert stand.fail("alpha", "point", {"group_id": "g"})["field"] == "params.point_id"
    missing = stand.fail("alpha", "point", {"group_id": "g", "point_id": "pt-x", "machine_ids": ["none"], "epoch": 1})
    assert missing["duty"] == "NotFound"
    assert "none" in missing["message"]


def test_a_task_of_another_site_is_not_taken(stand: Stand):
    stand.control.put(Task(task_id="tsk-x", kind="inventory", key="k", site="gamma"), "alpha")
    stand.alpha.await_said("a task of another site is refused", task="tsk-x")


def test_a_deleted_node_stops_asking_often_and_says_why(stand: Stand):
    stand.control.revoked.add("alpha-1")
    stand.alpha.await_said("no work from the control plane", code="certificate-revoked")
    stand.control.revoked.clear()
    stand.succeed("alpha", "inventory")


def test_a_node_ends_by_a_signal_that_does_not_wake_its_main_thread(stand: Stand):
    # As where it comes just before that thread goes to sleep, which nobody can time: another thread is given it.
    process = stand.beta.process
    assert process is not None
    stand.beta.await_said("node runs")
    stand.succeed("beta", "inventory")
    others = [int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir() if task.name != str(process.pid)]
    libc = ctypes.CDLL(None)
    assert any(libc.tgkill(process.pid, thread, signal.SIGTERM) == 0 for thread in others)
    assert process.wait(60) == 0


def test_a_node_that_is_asked_to_end_marks_its_work_and_goes_on_later(stand: Stand):
    stand.write(1)
    point = stand.point()
    stand.gate.allow(3 * MIB)
    held = stand.put("beta", "replicate", stand.replicate_params(point))
    stand.gate.await_held()
    assert stand.beta.stop() == 0
    stand.gate.open()
    stand.beta.start()
    assert stand.is_same(stand.end_cycle(held, point).manifest)
    assert held.task.term == 2


def test_no_secret_is_logged_or_kept(stand: Stand):
    stand.write(1)
    point = stand.point()
    params = stand.replicate_params(point)
    held = stand.put("beta", "replicate", params)
    stand.end_cycle(held, point)
    for node in (stand.alpha, stand.beta):
        assert node.stop() == 0
        texts = [node.log_path.read_text()]
        texts += [path.read_text(errors="replace") for path in (node.state / "tasks").iterdir()]
        for secret in (*node.secrets(), params["grant"], "secret-"):
            assert not any(secret in text for text in texts)
