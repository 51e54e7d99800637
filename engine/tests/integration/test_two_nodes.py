"""The parts together: the real control plane and two real nodes on platforms of files, driven as people do it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.gate import Gate
from doubles.node_process import NodeProcess, environment
from doubles.ports import free_port
from farshore.control.store.database import Store
from farshore.control.store.records import EnrolToken, Task
from farshore.errors import Unauthenticated
from farshore.platforms.file.machine import FileMachine
from farshore.platforms.registry import open_platform
from farshore.units import MIB
from sqlalchemy import select, update

SIZES = {"db": {"vda": 12 * MIB, "vdb": 20 * MIB}, "web": {"vda": 8 * MIB}}
PLAN = {
    "name": "shop",
    "source_site": "alpha",
    "target_site": "beta",
    "rpo": "1h",
    "machines": [{"name": "db"}, {"name": "web", "depends_on": ["db"]}],
    "transport": {"intermediate_checkpoint_window": "2MiB"},
}


@dataclass
class House:
    """A control plane, a node at alpha with two machines, a node at beta that reaches it through a gate."""

    control: Control
    alpha: NodeProcess
    beta: NodeProcess
    gate: Gate
    machines: dict[str, FileMachine]

    def write(self, seed: int, mib: int = 3) -> None:
        noise = random.Random(seed)
        for name, disks in SIZES.items():
            for disk_id, size in disks.items():
                for _ in range(mib):
                    self.machines[name].write(
                        disk_id, noise.randrange(0, size - MIB) // 512 * 512, noise.randbytes(MIB)
                    )

    def written(self) -> int:
        """Return how many bytes of the images are not zero, by blocks of 512."""
        images = [self.machines[name].image(disk_id).read_bytes() for name, disks in SIZES.items() for disk_id in disks]
        return sum(512 for image in images for at in range(0, len(image), 512) if any(image[at : at + 512]))

    def online(self) -> bool:
        states = {item["name"]: item["state"] for item in self.control.ok("GET", "/nodes")["items"]}
        return states == {"alpha-1": "online", "beta-1": "online"}

    def plan(self) -> dict[str, Any]:
        return self.control.ok("GET", "/plans/shop")

    def protect(self) -> None:
        until(lambda: len(self.control.ok("GET", "/machines?site=alpha")["items"]) == 2, "the inventory comes")
        self.control.ok("PUT", "/plans/shop", {"definition": PLAN})
        self.control.ok("POST", "/plans/shop:protect", {"state": "protected"})

    def checkpoints(self) -> list[dict[str, Any]]:
        return self.control.ok("GET", "/checkpoints?plan=shop")["items"]

    def newest(self) -> dict[str, dict[str, Any]]:
        """Return the newest checkpoint of each group."""
        found: dict[str, dict[str, Any]] = {}
        for item in sorted(self.checkpoints(), key=lambda one: one["sequence"]):
            found[item["group_id"]] = item
        return found

    def replicate(self) -> dict[str, Any]:
        run = self.control.ok("POST", "/plans/shop:replicate", {})["run"]
        return self.ended(run["run_id"])

    def ended(self, run_id: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            run = self.control.ok("GET", f"/runs/{run_id}")
            return run if run["state"] not in {"pending", "running"} else None

        run = until(look, f"run {run_id} ends", 90)
        assert run["state"] == "succeeded", json.dumps(run, indent=1)
        return run

    def seeded(self) -> None:
        until(lambda: len(self.newest()) == 2, "both groups have a checkpoint", 90)

    def is_same(self) -> bool:
        """Compare what the newest checkpoints hold with the machines' images as they are now."""
        target = open_platform(self.beta.settings["platform"]).target
        for checkpoint in self.newest().values():
            for disk in checkpoint["disks"]:
                machine, _, disk_id = disk["disk_key"].partition("/")
                found = bytearray(disk["size_bytes"])
                target.read_into(disk["point"], 0, memoryview(found))
                if bytes(found) != self.machines[machine].image(disk_id).read_bytes():
                    return False
        return True


def farshore(*arguments: str, expect: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "farshore.cli.main", "--json", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
    )
    assert done.returncode == expect, done.stderr
    return json.loads(done.stdout or done.stderr)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    control = Control(tmp_path / "home").start()
    nodes = {
        site: NodeProcess(tmp_path, f"{site}-1", site, control.home.node_url, free_port()) for site in ("alpha", "beta")
    }
    gate = Gate(nodes["alpha"].port)
    machines = {name: FileMachine.create(tmp_path / "alpha", name, disks) for name, disks in SIZES.items()}
    for site, node in nodes.items():
        port = gate.port if site == "alpha" else node.port
        control.ok("PUT", f"/sites/{site}", {"platform": "file"})
        control.ok(
            "PUT",
            f"/nodes/{node.name}",
            {"site": site, "roles": ["replication", "recovery"], "data_address": f"127.0.0.1:{port}"},
        )
        ticket = control.ok("POST", f"/nodes/{node.name}:token")
        token = tmp_path / f"{node.name}.token"
        token.write_text(ticket["token"])
        enrolled = farshore(
            *("node", "enrol", "--config", str(node.config_path)),
            *("--token-file", str(token), "--ca-sha256", ticket["ca_sha256"]),
        )
        assert enrolled["changed"]
        node.start()
    it = House(control, nodes["alpha"], nodes["beta"], gate, machines)
    until(it.online, "both nodes are online")
    yield it
    gate.close()
    for node in nodes.values():
        node.close()
    if control.process is not None and control.process.poll() is None:
        control.kill()


def test_a_plan_is_seeded_and_kept_up_by_changes_alone(house: House):
    house.write(1)
    house.protect()
    house.seeded()
    assert house.is_same()
    until(lambda: house.plan()["state"] == "protected", "the plan is protected")
    for seed in (2, 3):
        house.write(seed, mib=1)
        run = house.replicate()
        assert house.is_same()
        assert {cycle["stats"]["mode"] for cycle in run["cycles"]} == {"incremental"}
        moved = sum(cycle["stats"]["moved_bytes"] for cycle in run["cycles"])
        assert 0 < moved <= 4 * MIB
    plan = house.plan()
    assert plan["rpo_s"] is not None
    assert plan["last_error"] is None
    assert {item["sequence"] for item in house.newest().values()} == {3}
    stored = open_platform(house.beta.settings["platform"]).manifests.list("groups/")
    assert len(stored) == 6


@pytest.mark.parametrize("victim", ["alpha", "beta"])
def test_a_node_killed_in_mid_cycle_comes_back_and_the_cycle_ends(house: House, victim: str):
    house.write(1)
    house.gate.allow(5 * MIB)
    house.protect()
    house.gate.await_held()
    node = house.alpha if victim == "alpha" else house.beta
    node.kill()
    house.gate.cut()
    house.gate.open()
    node.start()
    house.seeded()
    assert house.is_same()
    house.write(2, mib=1)
    house.replicate()
    assert house.is_same()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_control_plane_that_goes_in_mid_cycle_stops_nothing(house: House, how: str):
    house.write(1)
    house.gate.allow(5 * MIB)
    house.protect()
    house.gate.await_held()
    if how == "kill":
        house.control.kill()
    else:
        assert house.control.stop() == 0
    house.gate.open()
    manifests = open_platform(house.beta.settings["platform"]).manifests
    house.beta.await_said("task ended", kind="replicate", state="succeeded")
    assert manifests.list("groups/")
    published = manifests.list("groups/")
    house.control.start()
    house.seeded()
    assert house.is_same()
    names = {Path(key).stem.split("-", 1)[1] for key in published}
    assert names <= {item["checkpoint_id"] for item in house.checkpoints()}
    # Not one byte was sent again: nobody asked for the same work twice.
    begun = [line["task"] for line in house.beta.said("task begins", kind="replicate")]
    assert len(begun) == len(set(begun)) == 2
    assert sum(item["stats"]["resent_bytes"] for item in house.checkpoints()) == 0


def test_only_the_target_listens(house: House):
    assert house.alpha.stop() == 0
    house.alpha.settings["data_listen"] = "none"
    house.alpha.write()
    house.control.ok("PUT", "/nodes/alpha-1", {"site": "alpha", "data_address": "127.0.0.1:1"})
    house.control.ok("PUT", "/site-links/alpha/beta", {"data_listen": "target"})
    house.alpha.start()
    house.write(1)
    house.protect()
    house.seeded()
    assert house.is_same()
    assert house.gate.passed_bytes == 0
    # The source comes back to a target that was away, and to one whose link it has to make anew.
    house.beta.kill()
    house.beta.start()
    until(house.online, "both nodes are online")
    house.write(2, mib=1)
    house.replicate()
    assert house.is_same()
    house.alpha.kill()
    house.alpha.start()
    house.write(3, mib=1)
    house.replicate()
    assert house.is_same()


def test_an_edit_of_the_limit_reaches_a_cycle_that_runs(house: House):
    link = "/site-links/alpha/beta"
    house.control.ok("PUT", link, {"bandwidth": "8 KiB/s"})
    house.write(1)
    house.protect()
    share = until(lambda: house.control.ok("GET", link)["shares"], "the node has a share")
    assert share == [{"node": "beta-1", "bytes_per_s": 8192.0, "until": share[0]["until"]}]
    house.gate.allow(2 * MIB)  # it would take minutes
    house.control.ok("PUT", link, {"bandwidth": "500 MiB/s"})
    house.gate.await_held()
    house.gate.open()
    house.seeded()
    assert house.is_same()
    until(lambda: not house.control.ok("GET", link)["shares"], "the share is given back")


def test_a_node_with_the_certificate_of_another_site_gets_nothing(house: House):
    assert house.beta.stop() == 0
    for name in ("node.key", "node.pem"):
        shutil.copy(house.alpha.state / name, house.beta.state / name)
    house.beta.start()
    said = house.beta.await_said("no work from the control plane")
    assert said["code"] == "certificate-mismatch"
    assert farshore("node", "enrol", "--config", str(house.beta.config_path), expect=65)["code"] == "token-missing"


def test_a_node_that_was_deleted_gets_nothing(house: House):
    house.control.ok("DELETE", "/nodes/beta-1")
    said = house.beta.await_said("no work from the control plane")
    assert said["code"].startswith("certificate-")


def test_a_token_that_has_expired_is_refused(house: House, tmp_path: Path):
    house.control.ok(
        "PUT",
        "/nodes/beta-2",
        {"site": "beta", "roles": ["replication"], "data_address": "127.0.0.1:1"},
    )
    ticket = house.control.ok("POST", "/nodes/beta-2:token")
    assert datetime.fromisoformat(ticket["expires_at"]) > datetime.now(UTC)
    store = Store(house.control.home.database)
    with store.write() as tx:
        tx.execute(update(EnrolToken).where(EnrolToken.node == "beta-2").values(expires_at=time.time() - 1))
    store.close()
    node = NodeProcess(tmp_path, "beta-2", "beta", house.control.home.node_url, free_port())
    with pytest.raises(Unauthenticated) as caught:
        node.enrol(ticket["token"], ca_sha256=ticket["ca_sha256"])
    assert caught.value.code == "token-expired"
    assert not (node.state / "node.pem").exists()


def test_the_command_line_starts_shows_and_stops_a_node(house: House):
    assert house.beta.stop() == 0
    options = ("--config", str(house.beta.config_path))
    assert not farshore("node", "status", *options, expect=3)["running"]
    started = farshore("node", "start", *options)
    try:
        assert started["changed"]
        assert not farshore("node", "start", *options)["changed"]
        shown = farshore("node", "status", *options)
        assert (shown["running"], shown["pid"], shown["enrolled"]) == (True, started["pid"], True)
        assert not farshore("node", "enrol", *options)["changed"]
        until(house.online, "the node is online again")
    finally:
        stopped = farshore("node", "stop", *options)
    assert stopped["changed"]
    assert not farshore("node", "stop", *options)["changed"]


def test_no_secret_shows_anywhere(house: House):
    house.write(1)
    house.protect()
    house.seeded()
    for node in (house.alpha, house.beta):
        assert node.stop() == 0
    assert house.control.stop() == 0
    home = house.control.home
    secrets = [home.environment()["FARSHORE_TOKEN"], *house.alpha.secrets(), *house.beta.secrets()]
    secrets += [(home.path.parent / f"{name}.token").read_text().split("_")[2] for name in ("alpha-1", "beta-1")]
    places = [home.log, home.database, home.dbos_database, house.alpha.log_path, house.beta.log_path]
    places += [path for node in (house.alpha, house.beta) for path in (node.state / "tasks").iterdir()]
    for place in places:
        data = place.read_bytes() if place.exists() else b""
        for secret in secrets:
            assert secret.encode() not in data, f"a secret is in {place}"


def test_another_node_goes_on_with_what_the_first_had_made_durable(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Few connections: each may hold a part of a chunk when the gate closes.
    monkeypatch.setitem(PLAN["transport"], "connections", 2)
    second = NodeProcess(tmp_path, "beta-2", "beta", house.control.home.node_url, free_port())
    house.control.ok("PUT", "/nodes/beta-2", {"site": "beta", "data_address": f"127.0.0.1:{second.port}"})
    ticket = house.control.ok("POST", "/nodes/beta-2:token")
    assert second.enrol(ticket["token"], ca_sha256=ticket["ca_sha256"])
    house.write(1, mib=8)
    house.gate.allow(12 * MIB)
    house.protect()
    house.gate.await_held()
    store = Store(house.control.home.database)

    def told() -> int:
        with store.read() as session:
            drafts = [task.drafts or {} for task in session.scalars(select(Task).where(Task.kind == "replicate"))]
        return sum(stop - start for each in drafts for one in each.values() for start, stop in one["ranges"])

    durable = until(lambda: max(0, told() - 2 * MIB), "the control plane is told what is durable") + 2 * MIB
    house.beta.kill()
    house.gate.cut()
    passed = house.gate.passed_bytes
    house.gate.open()
    second.start()
    try:
        until(lambda: second.said("task begins", kind="replicate"), "the second node takes over", 90)
        house.seeded()
        assert house.is_same()
        # What was durable was not sent again; TLS and frames take a little.
        assert house.gate.passed_bytes - passed <= 1.05 * (house.written() - durable)
    finally:
        second.close()
        store.close()


def children(node: NodeProcess) -> list[int]:
    """Return the worker processes of a node."""
    assert node.process is not None
    found = set()
    for task in Path(f"/proc/{node.process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update(map(int, (task / "children").read_text().split()))
    return sorted(found)


def is_there(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_worker_processes_copy_and_one_that_dies_fails_its_own_tasks_only(house: House):
    assert house.beta.stop() == 0
    house.beta.settings["workers"] = 2
    house.beta.write()
    house.beta.start()
    until(house.online, "both nodes are online")
    house.write(1)
    house.gate.allow(MIB)  # neither copy comes to its end
    house.protect()
    workers = until(lambda: len(found := children(house.beta)) == 2 and found, "each copy has a worker process")
    house.gate.await_held()
    begun = {line["task"] for line in house.beta.said("task begins", kind="replicate")}
    os.kill(workers[0], signal.SIGKILL)
    ended = house.beta.await_said("task ended", kind="replicate", state="failed")
    assert ended["code"] == "worker-process"
    house.gate.open()
    house.seeded()
    assert house.is_same()
    failed = [line["task"] for line in house.beta.said("task ended", kind="replicate", state="failed")]
    assert set(failed) <= begun
    house.write(2, mib=1)
    house.replicate()
    assert house.is_same()
    # They end with their node, however it ends.
    workers = children(house.beta)
    assert workers
    house.beta.kill()
    until(lambda: not any(is_there(pid) for pid in workers), "no worker process is left")
