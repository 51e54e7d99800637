"""The life of a real guest between two real sites: rolled back, failed over and back, moved for good.

What was written where it counted is there at every stop; what it left behind is not.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.node_process import NodeProcess
from farshore.platforms.nbd.launcher import Launcher
from farshore.testing.lab import Lab, app
from farshore.testing.lab.relay import DATA_PORTS
from farshore.testing.lab.site import Site

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="private hypervisors need root"),
    pytest.mark.timeout(900),
]
CACHE = Path(os.environ.get("FARSHORE_LAB_CACHE", ".cache/lab"))
DB, WEB = "farshore-lab-db", "farshore-lab-web"
FETCH = "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1], timeout=20).read().decode())"
PLAN = {
    "name": "shop",
    "source_site": "alpha",
    "target_site": "beta",
    "rpo": "1h",
    "retention": {"count": 1},
    "machines": [
        {
            "name": DB,
            "recovery": {"addresses": {"drill": "10.77.9.11", "failover": "10.77.2.11"}},
            "hooks": {"pre_drill": "hooks/before.yml", "post_drill": "hooks/inside.yml"},
            "probes": [{"type": "http", "port": 8080, "path": "/cgi-bin/status", "contains": '"status":"ok"'}],
        }
    ],
    "networks": [{"source": "app", "drill": {"subnet": "10.77.9.0/24"}, "failover": "recovery"}],
}


#: Played by the recovery node: before the guest of a drill is on, and once it is green, from inside its network.
HOOKS = {
    "hooks/before.yml": """
- name: The machine is made, and off
  ansible.builtin.uri:
    url: "http://10.77.9.11:8080/cgi-bin/status"
    timeout: 2
  register: early
  failed_when: early.status != -1 or farshore.machine.target_machine_id is none
""",
    "hooks/inside.yml": """
- name: Write into the guest
  ansible.builtin.uri:
    url: "http://{{ farshore.machine.address }}:8080/cgi-bin/insert?value=by-the-hook"
    return_content: true
  register: written
- name: Read it there
  ansible.builtin.uri:
    url: "http://{{ farshore.machine.address }}:8080/cgi-bin/find?value=by-the-hook"
    return_content: true
  register: found
  failed_when: (found.content | from_json).rows != 1
- name: Tell what was seen
  ansible.builtin.debug:
    msg: "at {{ farshore.machine.address }}: {{ found.content | trim }}"
""",
}


class SiteNode(NodeProcess):
    """A node inside a site's namespaces."""

    def __init__(self, folder: Path, site: Site, control_url: str) -> None:
        self.where = site
        super().__init__(folder, f"{site.name}-1", site.name, control_url, DATA_PORTS[site.name])
        platform = {"type": "kvm", "uri": site.uri, "pool": str(site.storage / "pool"), "accelerator": "tcg"}
        self.settings["platform"] = {**platform, "scratch": str(site.folder / "s")}
        # Root, who runs this: the interpreter may lie where nobody else gets to.
        self.settings["workers"] = 2
        self.settings["hooks"] = {"user": "root", "work_dir": str(folder / f"{site.name}-hooks")}
        self.write()

    def start(self) -> NodeProcess:
        words = [str(self.where.python), "-m", "farshore.node", "--config", str(self.config_path)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        return self


class House:
    """A control plane on the machine, a lab, a node in each site."""

    def __init__(self, control: Control, lab: Lab, nodes: dict[str, SiteNode]) -> None:
        self.control, self.lab, self.nodes = control, lab, nodes

    def ended(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        run_id = self.control.ok("POST", f"/plans/shop:{path}", body)["run"]["run_id"]

        def look() -> dict[str, Any] | None:
            run = self.control.ok("GET", f"/runs/{run_id}")
            return run if run["ended_at"] else None

        run: dict[str, Any] = until(look, f"{path} ends", 300)
        assert run["state"] == "succeeded", json.dumps({"error": run["error"], "steps": run["steps"]}, indent=1)
        return run

    def plan(self) -> dict[str, Any]:
        found: dict[str, Any] = self.control.ok("GET", "/plans/shop")
        return found

    def ask(self, site: Site, name: str) -> Any:
        """Ask the database as it answers at ``site``."""
        url = f"http://{app.NETWORKS[site.name][0].address(11)}:8080/cgi-bin/{name}"
        done = subprocess.run([site.python, "-c", FETCH, url], check=False, capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def insert(self, site: Site, value: str) -> None:
        until(lambda: (self.ask(site, f"insert?value={value}") or {}).get("value") == value, f"{value} is stored", 120)

    def rows(self, site: Site, value: str) -> int:
        """Return in how many rows the database has a value; it may be so early that it does not answer yet."""
        found: dict[str, Any] = until(lambda: self.ask(site, f"find?value={value}"), f"{site.name} answers", 120)
        return int(found["rows"])

    def machines(self, site: str) -> dict[str, dict[str, Any]]:
        """Return the machines of a site as it has them now, by name."""
        before = self.control.ok("GET", f"/sites/{site}")["inventory_at"]
        self.control.ok("POST", f"/sites/{site}:refresh")
        until(lambda: self.control.ok("GET", f"/sites/{site}")["inventory_at"] != before, f"{site} is looked at", 120)
        return {machine["name"]: machine for machine in self.control.ok("GET", f"/machines?site={site}")["items"]}

    def points(self, site: str) -> list[str]:
        """Return the checkpoints that a site keeps, oldest first."""
        found = self.control.ok("GET", "/checkpoints?plan=shop")["items"]
        return [one["checkpoint_id"] for one in found if one["target_site"] == site and one["state"] == "published"]


@contextlib.contextmanager
def house_in(folder: Path, cache: Path) -> Iterator[House]:
    control = Control(folder / "home").start()
    lab = Lab(folder / "l", cache)
    nodes: dict[str, SiteNode] = {}
    try:
        port = int(control.home.url.rpartition(":")[2])
        node_port = int(control.home.node_url.rpartition(":")[2])
        lab.up(api_port=port, node_port=node_port)
        for site in (lab.alpha, lab.beta):
            control.ok("PUT", f"/sites/{site.name}", {"platform": "kvm"})
            node = SiteNode(folder, site, control.home.node_url)
            address = f"127.0.0.1:{DATA_PORTS[site.name]}"
            roles = ["replication", "recovery"]
            control.ok("PUT", f"/nodes/{node.name}", {"site": site.name, "roles": roles, "data_address": address})
            node.enrol(control.ok("POST", f"/nodes/{node.name}:token")["token"], ca_file=control.home.ca)
            nodes[site.name] = node
            node.start()
        yield House(control, lab, nodes)
    finally:
        for node in nodes.values():
            node.close()
        for site in (lab.alpha, lab.beta):
            launcher = Launcher(site.folder / "s" / "daemons")
            for key in list(launcher.keys()):
                launcher.stop(key)
        lab.down()
        control.kill()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house_in(tmp_path_factory.mktemp("f"), CACHE) as one:
        yield one


def replicated(run: dict[str, Any]) -> dict[str, Any]:
    stats: dict[str, Any] = run["cycles"][0]["stats"]
    return stats


@pytest.fixture(scope="module")
def protected(house: House) -> House:
    """The database at alpha, protected to beta."""
    control = house.control
    until(lambda: control.ok("GET", "/machines?site=alpha")["items"], "alpha is looked at", 120)
    files = {name: base64.b64encode(text.encode()).decode() for name, text in HOOKS.items()}
    control.ok("PUT", "/plans/shop", {"definition": PLAN, "files": files})
    house.insert(house.lab.alpha, "before")
    control.ok("POST", "/plans/shop:protect", {"state": "protected"})
    until(lambda: house.plan()["state"] == "protected", "the first copy", 300)
    return house


def test_the_hooks_of_a_drill_reach_the_guest_inside_its_network(protected: House) -> None:
    house, alpha = protected, protected.lab.alpha
    run = house.ended("drill", {})
    hooks = {step["name"]: step for step in run["steps"] if step["name"].startswith("hook")}
    assert [step["state"] for step in hooks.values()] == ["succeeded", "succeeded"], hooks
    told = next(step["evidence"]["output"] for name, step in hooks.items() if "post" in name)
    assert "at 10.77.9.11: " in told
    # It was the copy that was written to, and that is gone.
    assert (house.rows(alpha, "before"), house.rows(alpha, "by-the-hook")) == (1, 0)
    assert DB not in house.machines("beta")


def test_a_rollback_brings_the_old_primary_back_with_its_data(protected: House) -> None:
    house, alpha, beta = protected, protected.lab.alpha, protected.lab.beta
    house.ended("failover", {"to_site": "beta", "commit": "manual"})
    assert house.rows(beta, "before") == 1
    house.insert(beta, "given-up")

    house.ended("rollback", {})
    assert (house.rows(alpha, "before"), house.rows(alpha, "given-up")) == (1, 0)
    given_up = house.machines("beta")[DB]
    assert (given_up["power"], given_up["tags"]["farshore.fenced"]) == ("off", "3")
    plan = house.plan()
    assert (plan["state"], plan["active_site"], plan["epoch"]) == ("protected", "alpha", 3)
    # It goes on with what it had: what changed since the last copy, and no byte more.
    stats = replicated(house.ended("replicate", {}))
    assert stats["mode"] == "incremental"
    assert 0 < stats["moved_bytes"] < stats["disk_bytes"] / 20

    # What was given up holds what is nowhere else. It goes by order, with all that was made for it.
    house.control.refused(409, "divergent", "POST", "/plans/shop:retire", {})
    house.ended("retire", {"accept_divergence": True})
    assert (house.machines("beta"), list((beta.storage / "pool" / "recovered").glob("*"))) == ({}, [])


@pytest.fixture(scope="module")
def grown() -> dict[str, str]:
    """Return the checkpoint that each machine which a failover has made grew from, by its site."""
    return {}


def test_what_was_written_at_either_site_is_there_after_the_way_back(protected: House, grown: dict[str, str]) -> None:
    house, alpha, beta = protected, protected.lab.alpha, protected.lab.beta
    grown["beta"] = house.ended("failover", {"to_site": "beta"})["machines"][0]["checkpoint_id"]
    assert house.rows(beta, "before") == 1
    house.insert(beta, "at-beta")

    run = house.ended("reprotect", {})  # while the machine leaves the chain of checkpoints: both come to their end
    stats = replicated(run)
    assert stats["mode"] == "verify"
    assert 0 < stats["moved_bytes"] < stats["disk_bytes"] / 20
    house.insert(beta, "later")  # it goes on meanwhile
    old = {machine["machine_id"] for machine in house.machines("alpha").values()}
    until(lambda: not house.machines("beta")[DB]["on_points"], "the machine at beta needs no checkpoint", 120)

    run = house.ended("failover", {"to_site": "alpha"})
    final = [cycle["stats"] for cycle in run["cycles"]]
    assert {stats["mode"] for stats in final} == {"incremental"}
    assert [house.rows(alpha, value) for value in ("before", "at-beta", "later")] == [1, 1, 1]
    renamed = next(machine for name, machine in house.machines("alpha").items() if name.startswith(f"{DB}-old-"))
    assert (renamed["machine_id"] in old, renamed["power"]) == (True, "off")
    assert house.plan()["active_site"] == "alpha"

    # And the first way again: the machine that rests at beta is where the copy begins.
    stats = replicated(house.ended("reprotect", {}))
    assert stats["mode"] == "verify"
    assert 0 < stats["moved_bytes"] < stats["disk_bytes"] / 20


def test_a_migration_is_for_good(protected: House, grown: dict[str, str]) -> None:
    house, control, alpha, beta = protected, protected.control, protected.lab.alpha, protected.lab.beta
    house.insert(alpha, "last")
    run = house.ended("migrate", {})
    assert {cycle["stats"]["mode"] for cycle in run["cycles"]} == {"incremental"}
    assert [house.rows(beta, value) for value in ("before", "at-beta", "later", "last")] == [1, 1, 1, 1]
    retired = house.machines("alpha")[DB]
    assert (retired["power"], "farshore.fenced" in retired["tags"]) == ("off", True)
    plan = house.plan()
    assert (plan["state"], plan["active_site"], plan["machines"][0]["activity"]) == ("migrated", "beta", "inactive")
    control.refused(409, "plan-migrated", "POST", "/plans/shop:reprotect", {})

    # The one that rests at beta has left the chain: what it grew from is in nobody's way, and goes by the plan's rules.
    until(lambda: grown["beta"] not in house.points("beta"), "the old point is dropped", 120)

    # At alpha two machines rest: the one of the beginning, and its successor of the way back.
    resting = [machine for name, machine in house.machines("alpha").items() if name != WEB]
    disks = [Path(disk["path"]) for machine in resting for disk in machine["disks"]]
    assert len(disks) == 4
    preview = control.ok("POST", "/plans/shop:retire-preview", {"site": "alpha"})
    assert len(preview["before"]["old_primaries"]) - len(preview["after"]["old_primaries"]) == 2
    run = house.ended("retire", {"site": "alpha"})
    assert [step["evidence"]["kept"] for step in run["steps"] if step["machine"]] == [[], []]
    assert (list(house.machines("alpha")), [disk for disk in disks if disk.exists()]) == ([WEB], [])
    assert [one["site"] for one in house.plan()["old_primaries"]] == ["beta"]
    assert house.rows(beta, "last") == 1
