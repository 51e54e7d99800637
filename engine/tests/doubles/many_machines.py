"""Two scripted sites with a plan of many machines in boot groups, kept consistent as one."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from doubles.control_process import Control
from doubles.scripted_node import Handler
from doubles.scripted_site import facts
from doubles.two_sites import TwoSites
from farshore.model.task import Task

#: Steps of a machine at the target.
STEPS = ("machine-create", "machine-power-on", "machine-probe")


class Watched:
    """Lets tasks of the target take their time, and notes what it was asked in which order and how much at once."""

    def __init__(self, sites: TwoSites, longest_s: float, seed: int) -> None:
        self.log: list[tuple[str, str, str]] = []
        self.most: dict[str, int] = {}
        self._at_once: dict[str, int] = {}
        self._up: set[str] = set()
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        self._longest_s = longest_s
        node = sites.beta.node
        for kind in STEPS:
            node.handlers[kind] = self._watched(kind, node.handlers[kind])

    def _watched(self, kind: str, act: Handler) -> Handler:
        def run(task: Task) -> dict[str, Any]:
            name = str(task.params.get("name") or task.params["machine_id"].removeprefix("made-"))
            with self._lock:
                self.log.append((kind, name, task.task_id))
                self._at_once[kind] = self._at_once.get(kind, 0) + 1
                self.most[kind] = max(self.most.get(kind, 0), self._at_once[kind])
                if kind == "machine-power-on":
                    self._up.add(name)
                    self.most["starting"] = max(self.most.get("starting", 0), len(self._up))
                pause_s = self._random.uniform(0, self._longest_s)
            time.sleep(pause_s)
            try:
                return act(task)
            finally:
                with self._lock:
                    self._at_once[kind] -= 1
                    if kind == "machine-probe":
                        self._up.discard(name)

        return run

    def begun(self, kind: str) -> list[str]:
        """Return the machines of tasks of ``kind`` in the order in which they began."""
        return [name for found, name, _ in self.log if found == kind]


def names(groups: int, size: int) -> list[list[str]]:
    return [[f"m{group}-{number:02d}" for number in range(size)] for group in range(groups)]


def definition(groups: int, size: int, delay: float = 0.0, **more: Any) -> str:
    """Return a plan of ``groups`` boot groups of ``size`` machines each; the last is not critical and has the delay."""
    members = names(groups, size)
    return yaml.safe_dump(
        {
            "name": "shop",
            "source_site": "alpha",
            "target_site": "beta",
            "rpo": "1h",
            "consistency": "group",
            "machines": [
                {"name": name, "probes": [{"type": "console", "contains": "ready"}]}
                for group in members
                for name in group
            ],
            "boot_groups": [
                {"name": f"g{index}", "machines": group, "critical": False, "delay": delay}
                if index + 1 == groups
                else {"name": f"g{index}", "machines": group}
                for index, group in enumerate(members)
            ],
            "networks": [{"source": "lan", "drill": {"subnet": "10.9.0.0/24"}, "failover": "dmz"}],
            **more,
        }
    )


@contextmanager
def many(control: Control, folder: Path, groups: int, size: int, **more: Any) -> Iterator[TwoSites]:
    """Start both sites with the plan protected; stop them at the end."""
    sites = TwoSites(control, folder)
    machines = [facts(name) for group in names(groups, size) for name in group]
    for number, machine in enumerate(machines):
        machine["nics"][0]["mac"] = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
        sites.alpha.machines[machine["machine_id"]] = machine
    for name in ("db", "web"):
        del sites.alpha.machines[f"id-{name}"]
    try:
        sites.start()
        control.ok("PUT", "/plans/shop", {"source": definition(groups, size, **more)})
        sites.protect()
        yield sites
    finally:
        sites.stop()
