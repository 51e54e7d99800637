"""A control plane and the whole source site are lost; a new one takes over from what the other site keeps.

Two private sites with the lab's shop, each with its own node; everything is started and spoken to as people do it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import requests
import yaml
from farshore.testing.lab import Lab

from benchmarks.links import ROOT
from benchmarks.processes import ProgramFailed
from benchmarks.results import Check, Figure

_PLAN: Final = ROOT / "inventories/lab/plans/shop.yml"
_DEADLINE_S: Final = 600.0
_DATA_PORTS: Final = {"alpha": 9101, "beta": 9102}


class Installation:
    """The laboratory with a control plane on the machine and a node inside each site."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say
        self.port, self.node_port = _free_port(), _free_port()
        self.lab = Lab(folder / "lab", ROOT / ".cache/lab", say)
        self.home = folder / "home"

    def farshore(self, *words: str | Path, site: str | None = None) -> str:
        """Run ``farshore`` on the machine, or inside a site; return what it prints."""
        python = self.lab.sites[site].python if site else Path(sys.executable)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FARSHORE_")}
        environ["PYTHONPATH"] = str(ROOT / "engine/src")
        done = subprocess.run(
            [str(python), "-m", "farshore.cli.main", "--json", *map(str, words)],
            check=False,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            env=environ,
        )
        if done.returncode:
            raise ProgramFailed(f"farshore {words[0]} {words[1] if len(words) > 1 else ''}: {done.stderr[-800:]}")
        return done.stdout

    def up(self, *more: str | Path) -> None:
        """Start the control plane of ``home``."""
        self.farshore("up", "--home", self.home, "--port", str(self.port), "--node-port", str(self.node_port), *more)

    def down(self) -> None:
        """Stop it."""
        self.farshore("down", "--home", self.home)

    def kill(self) -> None:
        """End it without a word."""
        os.kill(int((self.home / "control.pid").read_text()), signal.SIGKILL)

    def call(self, method: str, path: str, body: Any = None) -> requests.Response:
        """Ask the control plane of ``home``."""
        lines = (self.home / "farshore.env").read_text().splitlines()
        token = dict(line.split("=", 1) for line in lines)["FARSHORE_TOKEN"]
        return requests.request(
            method,
            f"https://127.0.0.1:{self.port}/api/v1{path}",
            json=body,
            headers={"Authorization": f"Bearer {token}"},
            verify=str(self.home / "ca.pem"),
            timeout=90,
        )

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        """Ask, and return its answer."""
        answer = self.call(method, path, body)
        if not answer.ok:
            raise ProgramFailed(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def config(self, site: str) -> Path:
        """Return the path of the node's settings."""
        return self.folder / site / "node.yml"

    def inventory_at(self, site: str) -> Any:
        """Return when the site told what it has; None: not yet."""
        return self.ok("GET", f"/sites/{site}")["inventory_at"]

    def node(self, site: str) -> None:
        """Register, enrol and start the node of a site."""
        data = f"127.0.0.1:{_DATA_PORTS[site]}"
        place = self.lab.sites[site]
        self.ok("PUT", f"/sites/{site}", {"platform": "kvm"})
        self.ok("PUT", f"/nodes/{site}-1", {"site": site, "data_address": data})
        config = self.config(site)
        config.parent.mkdir()
        settings = {
            "name": f"{site}-1",
            "site": site,
            "control_url": f"https://127.0.0.1:{self.node_port}",
            "state_dir": str(config.parent / "state"),
            "data_listen": data,
            "workers": 0,
            "platform": {
                "type": "kvm",
                "uri": place.uri,
                "pool": str(place.storage / "replicas"),
                "scratch": str(place.storage / "scratch"),
            },
        }
        config.write_text(yaml.safe_dump(settings))
        token = config.with_name("token")
        token.write_text(self.ok("POST", f"/nodes/{site}-1:token")["token"])
        ca = self.home / "ca.pem"
        self.farshore("node", "enrol", "--config", config, "--token-file", token, "--ca-file", ca, site=site)
        self.farshore("node", "start", "--config", config, site=site)

    def run(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Order a run of the shop and return it as it ended."""
        run_id = self.ok("POST", f"/plans/shop:{verb}", body)["run"]["run_id"]

        def ended() -> Any:
            run = self.ok("GET", f"/runs/{run_id}")
            return run if run["ended_at"] else None

        found: dict[str, Any] = until(ended, f"the {verb} ends")
        if found["state"] != "succeeded":
            raise ProgramFailed(f"{verb}: {found['state']} {found['error']}")
        return found


def until(check: Callable[[], Any], what: str) -> Any:
    """Return the first true answer of ``check``."""
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        answer = check()
        if answer:
            return answer
        time.sleep(0.2)
    raise ProgramFailed(f"{what}: not within {_DEADLINE_S:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def installation(say: Callable[[str], None]) -> Iterator[Installation]:
    """Yield an installation with both nodes at work; leave nothing of it."""
    folder = Path(tempfile.mkdtemp(prefix="fslost-"))
    made = Installation(folder, say)
    try:
        made.lab.up(api_port=made.port, node_port=made.node_port)
        made.up()
        for site in ("alpha", "beta"):
            made.node(site)
        for site in ("alpha", "beta"):
            until(partial(made.inventory_at, site), f"the inventory of {site}")
        yield made
    except ProgramFailed:
        for log in folder.glob("*/control.log"):
            say(log.read_text(errors="replace")[-3000:])
        raise
    finally:
        for home in folder.glob("home*"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((home / "control.pid").read_text()), signal.SIGKILL)
        made.lab.down()
        shutil.rmtree(folder, ignore_errors=True)


def play(made: Installation) -> dict[str, Any]:
    """Lose the control plane and alpha, take over at beta, fail over, let the old one come back; tell what was seen."""
    say = made.say
    made.ok("PUT", "/plans/shop", {"source": _PLAN.read_text().replace("rpo: 30s", "rpo: 10m")})
    made.ok("POST", "/plans/shop:protect", {"state": "protected"})
    until(lambda: made.ok("GET", "/plans/shop")["state"] == "protected", "the shop is protected")
    made.run("replicate", {})
    catalog = until(lambda: _kept(made), "both sites keep a bundle of what there is")
    before = made.ok("GET", "/checkpoints?plan=shop")["items"]
    key = made.folder / "recovery.key"
    shutil.move(made.home / "recovery.key", key)

    say("losing the control plane and alpha with everything in it")
    lost_at = time.monotonic()
    made.kill()
    made.lab.alpha.stop()
    lost, made.home = made.home.rename(made.folder / "home-lost"), made.folder / "home-next"
    shutil.rmtree(made.folder / "alpha")

    say("taking over from what beta keeps")
    # One way for when only the node's machine can be reached; the other, its pool, is used below.
    made.farshore("node", "bundle", "--config", made.config("beta"), "-o", made.folder / "bundle.json", site="beta")
    pool = made.lab.beta.storage / "replicas"
    made.up("--recover-from", pool, "--recovery-key", key)
    until(lambda: made.ok("GET", "/catalog")["rebuilding"] == ["alpha"], "the manifests of beta are read")
    followed = made.ok("GET", "/catalog")
    check = made.ok("POST", "/sites/beta:catalog-check", {})
    after = made.ok("GET", "/checkpoints?plan=shop")["items"]
    ready_s = time.monotonic() - lost_at
    say(f"{len(after)} of {len(before)} checkpoints, {len(check['findings'])} differences, after {ready_s:.1f} s")
    run = made.run("failover", {"to_site": "beta", "mode": "unplanned"})
    up_s = time.monotonic() - lost_at
    made.down()

    say("the lost control plane comes back")
    made.home = lost
    made.up()
    refused = until(lambda: made.ok("GET", "/catalog")["superseded_by"], "the node refuses it")
    order = made.call("POST", "/sites/beta:refresh")
    made.down()
    made.home = made.folder / "home-next"
    made.up()
    seen = made.ok("GET", "/nodes/beta-1")["last_seen"]
    until(lambda: made.ok("GET", "/nodes/beta-1")["last_seen"] != seen, "the node comes back to the one that it obeys")
    return {
        "generations": [catalog["generation"], followed["generation"], refused],
        "checkpoints": [len(before), len(after)],
        "lost_checkpoints": len({one["checkpoint_id"] for one in before} - {one["checkpoint_id"] for one in after}),
        "differences": check["findings"],
        "machines": run["machines"],
        "green": sum(machine["state"] == "green" for machine in run["machines"]),
        "steps": [{key: step[key] for key in ("name", "machine", "state", "seconds")} for step in run["steps"]],
        "source_processes": len(made.lab.alpha.processes()),
        "order_of_the_old_one": [order.status_code, order.json().get("code")],
        "node_said": (made.folder / "beta/state/node.log").read_text().count("generation-fenced"),
        "seconds_until_rebuilt": round(ready_s, 1),
        "seconds_until_green": round(up_s, 1),
    }


def _kept(made: Installation) -> Any:
    found = made.ok("GET", "/catalog")
    return found if len(found["bundles"]) == 2 and all(one["current"] for one in found["bundles"]) else None


def figure(say: Callable[[str], None]) -> Figure:
    """Measure ``rec-lost-control``."""
    row = Figure("rec-lost-control")
    with installation(say) as made:
        seen = play(made)
    row.checks += [
        Check("machines green", seen["green"], ">=", 2),
        Check("checkpoints lost", seen["lost_checkpoints"], "<=", 0),
        Check("catalogue differences", len(seen["differences"]), "<=", 0),
        Check("processes of the source site", seen["source_processes"], "<=", 0),
        Check("polls that refused the old control plane", seen["node_said"], ">=", 1),
        Check("orders of the old one that were taken", int(seen["order_of_the_old_one"][0] < 400), "<=", 0),
    ]
    row.details |= seen
    return row
