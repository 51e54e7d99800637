"""A real control plane and real nodes, each a process, before a simulated provider that is one too.

The machines of the source site and their checkpoints are written into the records and the pool by the code that does it
in earnest, but for their content, of which there is none: a thousand machines are there in seconds.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import requests
import yaml
from sqlalchemy import func, select

from farshore.control import catalog, inventory
from farshore.control import home as homes
from farshore.control.planning.apply import group_of
from farshore.control.store import settings
from farshore.control.store.database import Store
from farshore.control.store.records import Run, RunStep
from farshore.control.views.history import OPEN
from farshore.model.checkpoint import DiskPoint, Manifest
from farshore.model.machine import DiskFacts, Inventory, MachineFacts, NicFacts, disk_key
from farshore.model.plan import Plan
from farshore.node import config, enrol
from farshore.platforms.file.machine import FileMachine
from farshore.platforms.simulated.api import SocketApi
from farshore.testing.simulated import oracle
from farshore.units import LEAF_SIZE

SOURCE: Final = "alpha"
TARGET: Final = "beta"
PLAN: Final = "fleet"
_LIMITS: Final = {"creates": 20, "starts": 20, "calls_per_s": 200.0, "burst": 100}
#: A child dies with whoever made it, however that ends.
_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL")


@dataclass(slots=True)
class Program:
    """A process that is started, killed and started again."""

    argv: Sequence[str]
    log: Path
    child: subprocess.Popen[bytes] | None = None
    #: CPU seconds of those that have ended.
    before_s: float = 0.0

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as out:
            self.child = subprocess.Popen(
                [*_WITH_US, *self.argv], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it, by default at once."""
        if self.child is not None:
            self.before_s += cpu_s(self.child.pid)
            with contextlib.suppress(ProcessLookupError):
                self.child.send_signal(number)
            self.child.wait()
            self.child = None

    def cpu_s(self) -> float:
        """Return the CPU seconds that it has taken so far."""
        return self.before_s + (cpu_s(self.child.pid) if self.child else 0.0)


@dataclass(slots=True)
class Fleet:
    """How many machines in how many boot groups; every ``depends_every``-th depends on the one before it."""

    machines: int
    groups: int
    depends_every: int = 5
    consistency: str = "machine"
    probe_timeout_s: float = 120.0
    critical: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return the machines' names."""
        return [f"vm-{number:04d}" for number in range(self.machines)]

    def boot_groups(self) -> list[list[str]]:
        """Return the machines' names by group."""
        names, each = self.names(), -(-self.machines // self.groups)
        return [names[at : at + each] for at in range(0, self.machines, each)]

    def depends_on(self) -> dict[str, list[str]]:
        """Return what each machine depends on, within its group."""
        return {
            name: [group[number - 1]] if number and number % self.depends_every == 0 else []
            for group in self.boot_groups()
            for number, name in enumerate(group)
        }

    def definition(self) -> dict[str, Any]:
        """Return the plan."""
        depends = self.depends_on()
        probe = {"type": "console", "contains": "ready", "timeout": self.probe_timeout_s, "interval": 0.5}
        return {
            "name": PLAN,
            "source_site": SOURCE,
            "target_site": TARGET,
            "rpo": "30d",
            "consistency": self.consistency,
            "machines": [{"name": name, "depends_on": depends[name], "probes": [probe]} for name in self.names()],
            "boot_groups": [
                {"name": f"group-{number:02d}", "machines": group, "critical": self.critical}
                for number, group in enumerate(self.boot_groups())
            ],
            "networks": [{"source": "lan", "drill": {"subnet": "10.0.0.0/16"}, "failover": "lan"}],
            **self.settings,
        }

    def facts(self, name: str) -> MachineFacts:
        """Return one machine as the source site has it."""
        number = int(name.partition("-")[2])
        mac = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
        return MachineFacts(
            machine_id=f"src-{name}",
            name=name,
            power="on",
            cpus=1,
            memory_bytes=128 << 20,
            disks=(DiskFacts(disk_id="vda", size_bytes=LEAF_SIZE, boot=True),),
            nics=(NicFacts(mac=mac, network="lan"),),
        )


class House:
    """Everything, in one folder with a short path. Use as a context manager: all processes are gone afterwards."""

    def __init__(self, folder: Path, fleet: Fleet, *, seed: int = 1, provider: Mapping[str, Any] | None = None) -> None:
        self.folder, self.fleet = folder, fleet
        self.limits: dict[str, Any] = {**_LIMITS, **(provider or {}).get("limits", {})}
        folder.mkdir(parents=True, exist_ok=True)
        self.calls_log = folder / f"{TARGET}.jsonl"
        self.home = homes.initialise(folder / "home", port=_free_port(), node_port=_free_port())
        self.providers = {site: self._provider(site, {"seed": seed, **(provider or {})}) for site in (SOURCE, TARGET)}
        self.control = Program(
            [sys.executable, "-m", "farshore.control.server", "--home", str(self.home.path)], self.home.log
        )
        self.nodes: dict[str, Program] = {}
        self._http = requests.Session()
        self._http.trust_env = False
        self._http.headers["Authorization"] = f"Bearer {self.home.environment()['FARSHORE_TOKEN']}"
        self._http.verify = str(self.home.ca)

    def __enter__(self) -> Self:
        self.control.start()
        try:
            for provider in self.providers.values():
                provider.start()
            until(self.answers, "the control plane answers")
            for site in (SOURCE, TARGET):
                until(self._socket(site).exists, f"the provider of {site} answers")
                self.account("set", site=site, networks=["lan"])
                self.put(f"/sites/{site}", {"platform": "simulated"})
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for program in (*self.nodes.values(), self.control, *self.providers.values()):
            program.kill()

    def _socket(self, site: str) -> Path:
        return self.folder / f"{site}.sock"

    def _provider(self, site: str, settings: Mapping[str, Any]) -> Program:
        document = {
            **settings,
            "socket": str(self._socket(site)),
            "log": str(self.folder / f"{site}.jsonl"),
            "limits": self.limits,
        }
        path = self.folder / f"{site}.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        argv = [sys.executable, "-m", "farshore.platforms.simulated.provider", str(path)]
        return Program(argv, self.folder / f"{site}.provider.log")

    # --- the control plane -----------------------------------------------------------------------------------------

    def answers(self) -> bool:
        """Say whether the control plane answers; fails where it has ended by itself."""
        if self.control.child is not None and self.control.child.poll() is not None:
            raise AssertionError(f"the control plane ended: {self.home.log.read_text(encoding='utf-8')[-2000:]}")
        with contextlib.suppress(requests.RequestException):
            return self._http.get(f"{self.home.url}/api/v1/health", timeout=10).ok
        return False

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Call the control plane; fails where it refuses."""
        answer = self._http.request(method, f"{self.home.url}/api/v1{path}", json=body, timeout=120)
        if not answer.ok:
            raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text[:2000]}")
        return answer.json() if answer.content else None

    def get(self, path: str) -> Any:
        """Read."""
        return self.ask("GET", path)

    def put(self, path: str, body: Any) -> Any:
        """Write."""
        return self.ask("PUT", path, body)

    def post(self, path: str, body: Any = None) -> Any:
        """Do."""
        return self.ask("POST", path, body if body is not None else {})

    def account(self, operation: str, *, site: str = TARGET, **params: Any) -> Any:
        """Call a site's provider as the experiment."""
        return SocketApi(self._socket(site), "experiment").call(operation, **params)

    # --- the sites -------------------------------------------------------------------------------------------------

    def node(
        self, name: str, site: str = TARGET, roles: Sequence[str] = ("replication", "recovery"), **more: Any
    ) -> Program:
        """Register, enrol and start a node."""
        path, port = self.folder / f"{name}.yml", _free_port()
        body = {"site": site, "roles": list(roles), "data_address": f"127.0.0.1:{port}"}
        self.put(f"/nodes/{name}", body)
        document = {
            "name": name,
            "site": site,
            "roles": list(roles),
            "control_url": self.home.node_url,
            "state_dir": str(self.folder / f"{name}.state"),
            "data_listen": f"127.0.0.1:{port}",
            "workers": 0,
            "platform": {
                "type": "simulated",
                "root": str(self.folder / site),
                "socket": str(self._socket(site)),
                "caller": name,
            },
            **more,
        }
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        token = self.post(f"/nodes/{name}:token")["token"]
        enrol.enrol(config.load(path), token, ca_file=self.home.ca, now=dt.datetime.now(dt.UTC))
        program = Program([sys.executable, "-m", "farshore.node", "--config", str(path)], self.folder / f"{name}.log")
        self.nodes[name] = program
        program.start()
        return program

    def fill(self) -> None:
        """Give the source site its machines, the plan its checkpoints: all machines are protected then."""
        fleet, pool = self.fleet, self.folder / TARGET / "pool" / "points"
        found = Inventory(platform="simulated", machines=tuple(fleet.facts(name) for name in fleet.names()))
        store = Store(self.home.database)
        try:
            with store.write() as tx:
                inventory.apply(tx, SOURCE, found)
            self.put(f"/plans/{PLAN}", {"definition": fleet.definition()})
            self.post(f"/plans/{PLAN}:protect", {"state": "protected"})
            pool.mkdir(parents=True, exist_ok=True)
            definition = Plan.model_validate(fleet.definition())
            groups: dict[str, list[MachineFacts]] = {}
            for facts in found.machines:
                groups.setdefault(group_of(definition, facts.name), []).append(facts)
            with store.write() as tx:
                catalog_id, generation = settings.catalog_id(tx), settings.generation(tx)
                for group_id, members in groups.items():
                    for facts in members:
                        _write_point(pool / _point(facts))
                    manifest = manifest_of(definition, group_id, members, catalog_id, generation)
                    catalog.project(tx, manifest, None)
        finally:
            store.close()

    def seed(self) -> None:
        """Give the source site machines with disks and a node, and copy them in earnest."""
        for name in self.fleet.names():
            facts = self.fleet.facts(name)
            machine = FileMachine.create(
                self.folder / SOURCE, facts.machine_id, {disk.disk_id: disk.size_bytes for disk in facts.disks}
            )
            machine.write("vda", 0, name.encode().ljust(4096, b"."))
        facts_of = [self.fleet.facts(name).model_dump(mode="json") for name in self.fleet.names()]
        self.account("set", site=SOURCE, machines=facts_of)
        self.node("alpha-1", SOURCE)
        until(lambda: len(self.get(f"/machines?site={SOURCE}")["items"]) == self.fleet.machines, "the inventory", 300)
        self.put(f"/plans/{PLAN}", {"definition": self.fleet.definition()})
        self.post(f"/plans/{PLAN}:protect", {"state": "protected"})
        until(lambda: self.get(f"/plans/{PLAN}")["state"] == "protected", "the first checkpoints", 600, 0.5)

    def online(self, *names: str) -> bool:
        """Say whether these nodes answer and their sites have been looked at."""
        states = {item["name"]: item["state"] for item in self.get("/nodes")["items"]}
        return all(states.get(name) == "online" for name in names)

    # --- runs ------------------------------------------------------------------------------------------------------

    def failover(self, mode: str = "unplanned", **more: Any) -> str:
        """Order a failover; return the run's id."""
        body = {"to_site": TARGET, "mode": mode, **({"force": True} if mode == "unplanned" else {}), **more}
        return str(self.post(f"/plans/{PLAN}:failover", body)["run"]["run_id"])

    def steps_ended(self, run_id: str) -> int:
        """Return how many steps of a run have ended, read from the records: the control plane need not be there."""
        store = Store(self.home.database)
        try:
            with store.read() as session:
                query = select(func.count()).where(RunStep.run_id == run_id, RunStep.ended_at.is_not(None))
                return int(session.scalar(query) or 0)
        finally:
            store.close()

    def state(self, run_id: str) -> str:
        """Return a run's state without reading all of it."""
        store = Store(self.home.database)
        try:
            with store.read() as session:
                return str(session.get_one(Run, run_id).state)
        finally:
            store.close()

    def ended(self, run_id: str, timeout_s: float) -> dict[str, Any]:
        """Wait for a run's end and return the run."""
        until(lambda: self.state(run_id) not in OPEN, f"run {run_id} ends", timeout_s, 0.2)
        return dict(until(self.answers, "the control plane answers") and self.get(f"/runs/{run_id}"))

    # --- what the provider says ------------------------------------------------------------------------------------

    def verdict(self) -> oracle.Verdict:
        """Judge what the nodes have asked of the provider."""
        calls = [call for call in oracle.read(self.calls_log) if call["caller"] != "experiment"]
        return oracle.judge(
            calls,
            creates=int(self.limits["creates"]),
            starts=int(self.limits["starts"]),
            calls_per_s=float(self.limits["calls_per_s"]),
            burst=int(self.limits["burst"]),
        )

    def by_caller(self, operation: str) -> dict[str, int]:
        """Return how many calls of an operation each node has made."""
        return dict(Counter(call["caller"] for call in oracle.read(self.calls_log) if call["operation"] == operation))

    def wrong(self, run: Mapping[str, Any]) -> list[str]:
        """Return what a run has left at the provider that it should not have, and what it did out of order."""
        made = {str(item["machine_id"]): str(item["name"]) for item in run["machines"] if item["machine_id"]}
        machines = self.account("inventory")["machines"]
        calls = oracle.read(self.calls_log)
        return oracle.leftovers(machines, made, str(run["facts"]["tag"])) + oracle.out_of_order(
            calls, made, self.fleet.boot_groups(), self.fleet.depends_on()
        )


def until(check: Callable[[], Any], what: str, timeout_s: float = 120.0, every_s: float = 0.05) -> Any:
    """Return the first true answer of ``check``.

    Raises:
        AssertionError: none came in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = check()
        if answer:
            return answer
        time.sleep(every_s)
    raise AssertionError(f"{what}: not within {timeout_s:.0f} s")


def cpu_s(pid: int) -> float:
    """Return the CPU seconds, user and system, of a process and all its threads."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(fields[place]) for place in (11, 12)) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _point(facts: MachineFacts) -> str:
    return f"point-{facts.name}"


def _write_point(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "disk.img").open("wb") as image:
        image.truncate(LEAF_SIZE)


def manifest_of(
    plan: Plan, group_id: str, members: Iterable[MachineFacts], catalog_id: str, generation: int
) -> Manifest:
    """Return the manifest of a group's first checkpoint, of points that hold nothing."""
    members = tuple(members)
    now = time.time()
    return Manifest(
        checkpoint_id=f"cp-{members[0].name}",
        group_id=group_id,
        plan=plan.name,
        plan_revision=1,
        catalog_id=catalog_id,
        generation=generation,
        epoch=1,
        term=1,
        sequence=1,
        source_site=plan.source_site,
        target_site=plan.target_site,
        level="machine",
        ordered_at=now,
        taken_at=now,
        machines=members,
        disks=tuple(
            DiskPoint(
                disk_key=disk_key(facts.machine_id, "vda"),
                size_bytes=LEAF_SIZE,
                point=_point(facts),
                tree_root="00" * 32,
                source_point="pt-0",
            )
            for facts in members
        ),
    )
