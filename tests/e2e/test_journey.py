"""The journey of a newcomer: `make demo`, interrupted once, again, and `make demo-down`. One lab for all tests."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from doubles.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="private hypervisors need root"),
]
#: After this task there is something to go on from.
INTERRUPT_AT = "TASK [first full copy]"


def recap(output):
    """Return host → changed and failed counts from the recap."""
    found = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", output, re.MULTILINE)
    return {host: (int(changed), int(unreachable) + int(failed)) for host, changed, unreachable, failed in found}


class Journey:
    """The demo with a home, ports and figures of its own, so that somebody's demo on this machine is left alone."""

    def __init__(self, home, figures):
        self.home = home
        self.figures_path = figures
        self.variables = home.parent / f"{home.name}.json"
        self.variables.write_text(
            json.dumps(
                {
                    "quickstart_home": str(home),
                    "quickstart_figures": str(figures),
                    "quickstart_port": free_port(),
                    "quickstart_node_port": free_port(),
                }
            ),
            encoding="utf-8",
        )
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("FARSHORE_")}
        self.environment["ANSIBLE_NOCOLOR"] = "true"
        self.said = []

    def start(self, script):
        return subprocess.Popen(
            [ROOT / "scripts" / script, "-e", f"@{self.variables}"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, script):
        """Run a script to its end and return what it said; it has to succeed."""
        with self.start(script) as process:
            said, _nothing = process.communicate()
        self.said.append(said)
        assert process.returncode == 0, said[-8000:]
        return said

    def interrupt(self, script, at):
        """Press Ctrl-C when ``at`` is said, and again where it has not helped; return the exit status."""
        with self.start(script) as process:
            said = []
            for line in process.stdout:
                said.append(line)
                if at in line:
                    break
            rest = threading.Thread(target=lambda: said.append(process.stdout.read()))
            rest.start()
            for _press in range(5):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
                rest.join(30)
                if not rest.is_alive():
                    break
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                pytest.fail(f"{script} does not end by Ctrl-C:\n{''.join(said)[-4000:]}")
        self.said.append("".join(said))
        return process.returncode

    def figures(self):
        return json.loads(self.figures_path.read_text(encoding="utf-8"))

    def processes(self):
        """Return the command lines of the processes that belong to it."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.home) in command and str(self.variables) not in command:
                found.append(command)
        return found


@pytest.fixture(scope="module")
def journey():
    home = ROOT / ".cache" / f"e2e-{os.getpid()}"
    home.parent.mkdir(exist_ok=True)
    made = Journey(home, home.parent / f"{home.name}-figures" / "demo.json")
    try:
        yield made
    finally:
        subprocess.run(
            [ROOT / "scripts" / "demo_down.sh", "-e", f"@{made.variables}"],
            env=made.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        made.variables.unlink()
        made.figures_path.unlink(missing_ok=True)
        if made.figures_path.parent.exists():
            made.figures_path.parent.rmdir()


@pytest.fixture(scope="module")
def first(journey):
    """The first demo, which goes on where an interrupted one has stopped."""
    assert journey.interrupt("demo.sh", INTERRUPT_AT) != 0
    assert not journey.figures_path.exists()
    journey.run("demo.sh")
    return journey.figures()


def test_all_was_copied_once_and_then_only_what_changed(first):
    cycles = first["cycles"]
    assert [cycle["mode"] for cycle in cycles].count("full") <= 1  # the oldest may be gone by retention
    later = [cycle for cycle in cycles if cycle["mode"] == "incremental"]
    assert len(later) >= 2
    for cycle in later:
        assert 0 < cycle["moved_bytes"] < cycle["disk_bytes"] / 10
    assert {cycle["disk_bytes"] for cycle in cycles} == {768 << 20}
    assert {cycle["level"] for cycle in cycles} == {"group"}
    assert sum(cycle["resent_bytes"] for cycle in cycles) == 0


def test_the_drill_brought_both_machines_up_and_left_nothing(first, journey):
    machines = {machine["name"]: machine for machine in first["drill"]["machines"]}
    assert sorted(machines) == ["farshore-lab-db", "farshore-lab-web"]
    for machine in machines.values():
        assert machine["rto_s"] > 0
        assert machine["probes"]
        assert all(probe["green"] for probe in machine["probes"])
    assert machines["farshore-lab-db"]["address"] == "10.77.9.11"
    assert "no machine and no network of the drill any more" in journey.said[-1]


def test_the_failover_lost_nothing(first):
    for machine in first["failover"]["machines"]:
        assert machine["rpo_s"] == 0
        assert machine["rto_s"] > 0
        assert all(probe["green"] for probe in machine["probes"])
    assert first["last_words"]["acknowledged"] > 0


def test_the_failover_kept_the_order(first):
    steps = [step["name"] for step in first["failover"]["steps"]]
    order = ["preflight", "stop", "final sync", "fence", "raise epoch", "create", "power on", "validate"]
    places = [steps.index(name) for name in order]
    assert places == sorted(places)
    begun = {
        (step["name"], step["machine"]): step["started_at"] for step in first["failover"]["steps"] if step["machine"]
    }
    ended = {
        (step["name"], step["machine"]): step["ended_at"] for step in first["failover"]["steps"] if step["machine"]
    }
    assert ended["stop", "farshore-lab-web"] <= begun["stop", "farshore-lab-db"]
    assert ended["validate", "farshore-lab-db"] <= begun["power on", "farshore-lab-web"]


def test_every_phase_has_its_time(first):
    names = [phase["name"] for phase in first["phases"]]
    assert names[-2:] == ["drill", "planned failover"]
    assert all(phase["seconds"] > 0 for phase in first["phases"])


def test_a_second_demo_changes_nothing(first, journey):
    counts = recap(journey.run("demo.sh"))
    assert counts == {"localhost": (0, 0), "alpha-node": (0, 0), "beta-node": (0, 0)}
    assert journey.figures() == first


def test_a_second_failover_changes_nothing(first, journey):
    environment = dict(journey.environment)
    for line in (journey.home / "control" / "farshore.env").read_text(encoding="utf-8").splitlines():
        name, _equals, value = line.partition("=")
        environment[name] = value
    environment["ANSIBLE_COLLECTIONS_PATH"] = str(ROOT / ".cache" / "collections")
    done = subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", "farshore.dr.failover", "-e", "plan=shop to_site=beta"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert recap(done.stdout)["localhost"] == (0, 0)


def test_no_secret_was_said(first, journey):
    env = (journey.home / "control" / "farshore.env").read_text(encoding="utf-8")
    token = env.partition("FARSHORE_TOKEN=")[2].splitlines()[0]
    assert token
    for said in journey.said:
        assert token not in said
        assert not re.search(r"fsn_\w+_\w+", said)


def test_demo_down_leaves_nothing(first, journey):
    """The last test: it ends what the others look at."""
    assert journey.processes()
    journey.run("demo_down.sh")
    assert not journey.home.exists()
    assert journey.processes() == []
    assert recap(journey.run("demo_down.sh"))["localhost"] == (0, 0)
