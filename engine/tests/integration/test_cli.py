"""The command line and the control plane as processes, the way people use them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from doubles.control_process import until
from doubles.ports import free_port
from doubles.scripted_node import ScriptedNode
from farshore.control import home as homes

PLAN = """\
name: shop
source_site: alpha
target_site: beta
rpo: 15m
machines:
  - name: db
  - name: web
    depends_on: [dbb]
networks:
  - source: lan
    drill: {subnet: 10.99.1.0/24}
    failover: lan
"""


class Shell:
    """Runs ``farshore`` as its own process, with one home directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("FARSHORE_")}
        self.environ["FARSHORE_HOME"] = str(home)
        self.environ.pop("COLUMNS", None)  # a narrow terminal would break the lines that are looked for

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "farshore.cli.main", *arguments],
            env=self.environ,
            cwd=self.home.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )

    def ok(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def document(self, *arguments: str):
        return json.loads(self.ok("--json", *arguments))


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path / "home")
    yield shell
    shell.run("down")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    made = Shell(tmp_path_factory.mktemp("cli") / "home")
    made.ok("up", "--port", str(free_port()), "--node-port", str(free_port()))
    yield made
    made.ok("down")


@pytest.fixture(scope="module")
def nodes(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ScriptedNode]]:
    """One node at each of two sites, registered and enrolled through the command line."""
    home = homes.load(shell.home)
    folder = tmp_path_factory.mktemp("nodes")
    made = {}
    for site in ("alpha", "beta"):
        shell.ok("site", "add", site, "--platform", "file")
        shell.ok("node", "add", f"{site}-1", "--site", site, "--data-address", "127.0.0.1:9101")
        shell.ok("node", "token", f"{site}-1", "--output", str(folder / site))
        node = ScriptedNode(folder / f"{site}-1", home.node_url, home.ca, name=f"{site}-1", site=site)
        assert node.enrol((folder / site).read_text().strip()).ok
        node.handlers["inventory"] = lambda _, site=site: inventory(("db", "web") if site == "alpha" else ())
        node.handlers["check"] = lambda _: {"findings": []}
        made[site] = node.start()
    yield made
    for node in made.values():
        node.stop()


def inventory(names: tuple[str, ...]) -> dict[str, object]:
    return {
        "platform": "file",
        "machines": [
            {
                "machine_id": f"id-{name}",
                "name": name,
                "power": "on",
                "cpus": 1,
                "memory_bytes": 256 << 20,
                "disks": [{"disk_id": "vda", "size_bytes": 64 << 20, "boot": True}],
                "nics": [{"mac": "52:54:00:00:00:01", "network": "lan", "addresses": ["10.9.0.5"]}],
            }
            for name in names
        ],
        "networks": [{"name": "lan", "subnet": "10.9.0.0/24"}],
        "pool": {"path": "/pool", "capacity_bytes": 1 << 40, "free_bytes": 1 << 39},
    }


class TestUpAndDown:
    def test_up_makes_a_home_starts_and_tells_how_to_go_on(self, fresh: Shell):
        said = fresh.ok("up", "--port", str(free_port()), "--node-port", str(free_port()))
        home = homes.load(fresh.home)
        assert home.url in said
        assert str(home.env) in said
        assert stat.S_IMODE(home.env.stat().st_mode) == 0o600
        assert home.environment()["FARSHORE_TOKEN"] not in said + home.log.read_text()
        assert requests.get(f"{home.url}/api/v1/health", verify=str(home.ca), timeout=60).json()["status"] == "ok"
        pid = home.running_pid()

        again = fresh.document("up")
        assert (again["changed"], again["pid"]) == (False, pid)
        assert "no control plane" not in fresh.ok("status")

        otherwise = fresh.run("up", "--port", "1")
        assert otherwise.returncode == 73
        assert "--port" in otherwise.stderr

        assert fresh.document("down")["changed"] is True
        assert home.running_pid() is None
        assert fresh.document("down") == {"state": "stopped", "changed": False}
        down = fresh.run("status")
        assert down.returncode == 69
        assert "farshore up" in down.stderr

    def test_it_comes_back_with_everything_after_it_was_killed(self, fresh: Shell):
        fresh.ok("up", "--port", str(free_port()), "--node-port", str(free_port()))
        fresh.ok("site", "add", "alpha")
        home = homes.load(fresh.home)
        pid = home.running_pid()
        assert pid
        os.kill(pid, signal.SIGKILL)
        fresh.ok("up")
        assert home.running_pid() != pid
        assert [site["name"] for site in fresh.document("site", "list")["items"]] == ["alpha"]

    def test_a_port_that_is_taken_is_named_from_the_log(self, fresh: Shell):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = fresh.run("up", "--port", str(port), "--node-port", str(free_port()))
        assert done.returncode == 69
        assert str(port) in done.stderr
        assert "control.log" in done.stderr

    def test_in_the_foreground_it_is_one_process_and_ends_with_a_signal(self, fresh: Shell):
        ports = ("--port", str(free_port()), "--node-port", str(free_port()))
        process = subprocess.Popen(
            [sys.executable, "-m", "farshore.cli.main", "up", "--foreground", *ports],
            env=fresh.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: (fresh.home / "control.pid").exists() or process.poll() is not None, "it takes the home")
        found = fresh.document("up")
        assert (found["changed"], found["pid"]) == (False, process.pid)
        process.terminate()
        assert process.wait(timeout=60) == 0

    def test_a_home_that_cannot_be_made_is_named(self, fresh: Shell, tmp_path: Path):
        (tmp_path / "file").write_text("")
        done = fresh.run("up", "--home", str(tmp_path / "file" / "home"))
        assert done.returncode == 77
        assert "--home" in done.stderr


class TestDoctor:
    def test_before_anything_runs_every_finding_has_a_remedy(self, fresh: Shell):
        done = fresh.run("--json", "doctor")
        found = json.loads(done.stdout)
        assert done.returncode == 1
        assert all(item["remedy"] for item in found["items"] if item["state"] != "ok")

    @pytest.mark.usefixtures("nodes")
    def test_an_open_secret_and_a_missing_node_are_found(self, shell: Shell):
        home = homes.load(shell.home)
        assert shell.run("doctor").returncode == 0
        (home.secrets / "ca.key").chmod(0o644)
        try:
            done = shell.run("doctor")
        finally:
            (home.secrets / "ca.key").chmod(0o600)
        assert done.returncode == 1
        assert f"chmod 0600 {home.secrets / 'ca.key'}" in done.stdout.replace("\n", "")


@pytest.mark.usefixtures("nodes")
class TestThroughTheApi:
    def test_sites_and_nodes(self, shell: Shell):
        assert "online" in shell.ok("site", "list")
        assert shell.document("site", "add", "alpha", "--platform", "file")["changed"] is False
        assert shell.document("site", "check", "beta")["findings"] == []
        assert {node["state"] for node in shell.document("node", "list")["items"]} == {"online"}
        wrong = shell.run("site", "show", "alfa")
        assert wrong.returncode == 66
        assert "alpha" in wrong.stderr

    def test_machines(self, shell: Shell):
        assert "web" in shell.ok("machine", "list", "--site", "alpha")
        assert "10.9.0.5" in shell.ok("machine", "show", "db")

    def test_a_bad_plan_is_told_with_file_line_and_field(self, shell: Shell, tmp_path: Path):
        file = tmp_path / "shop.yml"
        file.write_text(PLAN)
        done = shell.run("plan", "apply", str(file))
        assert done.returncode == 65
        assert done.stderr.count("\n") == 1
        assert re.search(
            rf"{re.escape(str(file))}:8:\d+: machines\[1\]\.depends_on.*'dbb'.*\[plan-invalid\]", done.stderr
        )

    def test_from_an_inventory_to_a_plan_that_is_applied(self, shell: Shell, tmp_path: Path):
        file = tmp_path / "drafted.yml"
        draft = (
            "plan",
            "init",
            "--source-site",
            "alpha",
            "--target-site",
            "beta",
            "--name",
            "drafted",
            "-o",
            str(file),
        )
        assert shell.document(*draft)["machines"] == ["db", "web"]
        assert shell.run(*draft).returncode == 73
        assert shell.document("plan", "diff", str(file))["changed"] is True
        assert shell.document("plan", "apply", str(file))["changed"] is True
        assert shell.document("plan", "apply", str(file))["changed"] is False
        assert "no difference" in shell.ok("plan", "diff", str(file))
        file.write_text(file.read_text().replace("rpo: 15m", "rpo: 5m"))
        assert "+rpo: 300.0" in shell.ok("plan", "diff", str(file))
        assert shell.ok("plan", "show", "drafted", "--source").startswith("# Protection plan drafted")
        assert "drafted" in shell.ok("status")
        shell.ok("plan", "delete", "drafted")
        assert shell.run("plan", "show", "drafted").returncode == 66

    def test_a_token_of_a_viewer_may_look_and_no_more(self, shell: Shell, tmp_path: Path):
        token = tmp_path / "token"
        shell.ok("token", "create", "looker", "--role", "viewer", "--ttl", "1h", "--output", str(token))
        url = homes.load(shell.home).url
        as_viewer = ("--token-file", str(token), "--url", url, "--ca", str(shell.home / "ca.pem"))
        assert shell.run(*as_viewer, "site", "list").returncode == 0
        refused = shell.run(*as_viewer, "site", "add", "gamma")
        assert refused.returncode == 77
        assert "role-too-small" in refused.stderr
        made = next(each for each in shell.document("token", "list")["items"] if each["name"] == "looker")
        shell.ok("token", "revoke", made["token_id"])
        assert "token-revoked" in shell.run(*as_viewer, "site", "list").stderr

    def test_what_does_not_exist_is_named(self, shell: Shell):
        for arguments in (
            ("plan", "show", "none"),
            ("run", "show", "run-none"),
            ("run", "watch", "run-none"),
            ("checkpoint", "show", "cp-none"),
            ("machine", "show", "nobody"),
            ("replicate", "none"),
        ):
            done = shell.run(*arguments)
            assert (arguments, done.returncode) == (arguments, 66), done.stderr
            assert done.stderr.startswith("error: ")
