"""Handlers for :class:`ScriptedNode`: a site that remembers powers, points, machines and what was asked, in memory."""

from __future__ import annotations

import base64
import threading
import time
from collections import Counter
from typing import Any

from doubles.scripted_node import Handler, ScriptedNode
from farshore.checkpoints.manifest import digest
from farshore.errors import Conflict, FarshoreError, NotFound
from farshore.model.checkpoint import Manifest
from farshore.model.task import Task

MIB = 1 << 20
#: What some networks tell of their addresses.
SUBNETS = {"dmz": "10.8.0.0/24"}
#: The smallest picture: one white pixel.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP6DwABBQECz6AuzQAAAABJRU5ErkJggg=="
)


def facts(name: str, network: str = "lan", *, power: str = "on") -> dict[str, Any]:
    """Return the facts of a machine ``name`` with one disk."""
    return {
        "machine_id": f"id-{name}",
        "name": name,
        "power": power,
        "cpus": 1,
        "memory_bytes": 128 * MIB,
        "disks": [{"disk_id": "vda", "size_bytes": 64 * MIB}],
        "nics": [{"mac": f"52:54:00:00:00:{sum(name.encode()) % 256:02x}", "network": network}],
    }


class ScriptedSite:
    """What one node's site holds. ``fail`` and ``hold`` script faults by kind of task."""

    def __init__(self, node: ScriptedNode, machines: list[dict[str, Any]], networks: list[str]) -> None:
        self.node = node
        self.machines = {machine["machine_id"]: dict(machine) for machine in machines}
        self.networks = networks
        self.fenced: dict[str, int] = {}
        self.tagged: dict[str, set[str]] = {}
        self.green: dict[str, bool] = {}
        self.applied: list[str] = []
        self.incremental = True
        self.manifests: list[dict[str, Any]] = []
        self.addenda: list[dict[str, Any]] = []
        self.bundles: dict[str, str] = {}
        #: Damages that a scrub finds, by checkpoint.
        self.damages: dict[str, list[dict[str, Any]]] = {}
        #: What is found in guests, by the machine's name.
        self.guests: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.leave_behind: tuple[str, ...] = ()
        #: Whether machines are made on layers, which they can leave; how far each is when it is asked, in order.
        self.layered = False
        self.detaching: dict[str, list[dict[str, Any]]] = {}
        #: Whether a drill's network leads somewhere, and how many packets got past its rules.
        self.leaks = False
        self.outside = 0
        #: Fences after which the machine is still on.
        self.ignore_power_off = 0
        self._failures: dict[str, list[FarshoreError]] = {}
        self._gates: dict[str, threading.Event] = {}
        node.handlers = {kind: self._scripted(kind, getattr(self, kind.replace("-", "_"))) for kind in KINDS}

    def fail(self, kind: str, *errors: FarshoreError) -> None:
        """Let the next tasks of ``kind`` end with ``errors``, one each."""
        self._failures.setdefault(kind, []).extend(errors)

    def hold(self, kind: str) -> threading.Event:
        """Let tasks of ``kind`` wait until the returned event is set."""
        self._gates[kind] = threading.Event()
        return self._gates[kind]

    def asked(self) -> Counter[str]:
        return Counter(kind for kind, _ in self.calls)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [params for asked, params in self.calls if asked == kind]

    def _scripted(self, kind: str, act: Handler) -> Handler:
        def run(task: Task) -> dict[str, Any]:
            self.calls.append((kind, task.params))
            gate = self._gates.get(kind)
            while gate is not None and not gate.wait(0.05):
                if task.task_id in self.node.cancelled:
                    raise FarshoreError("cancelled", code="cancelled")
            if self._failures.get(kind):
                raise self._failures[kind].pop(0)
            return act(task)

        return run

    def inventory(self, _task: Task) -> dict[str, Any]:
        return {
            "platform": self.node.platform,
            "machines": list(self.machines.values()),
            "networks": [{"name": name, "subnet": SUBNETS.get(name, "")} for name in self.networks],
            "pool": {"path": "/pool", "capacity_bytes": 1 << 40, "free_bytes": 1 << 39},
        }

    def check(self, _task: Task) -> dict[str, Any]:
        return {"findings": []}

    def point(self, task: Task) -> dict[str, Any]:
        params = task.params
        disks = [
            {
                "disk_key": f"{machine_id}/{disk['disk_id']}",
                "size_bytes": disk["size_bytes"],
                "incremental": self.incremental and params["bases"].get(f"{machine_id}/{disk['disk_id']}") is not None,
            }
            for machine_id in params["machine_ids"]
            for disk in self.machines[machine_id]["disks"]
        ]
        return {
            "point_id": params["point_id"],
            "taken_at": time.time(),
            "level": params["consistency"],
            "machines": [self.machines[machine_id] for machine_id in params["machine_ids"]],
            "disks": disks,
        }

    def replicate(self, task: Task) -> dict[str, Any]:
        manifest, disks = task.params["manifest"], task.params["disks"]
        manifest = {
            **manifest,
            "disks": [
                {
                    "disk_key": disk["disk_key"],
                    "size_bytes": disk["size_bytes"],
                    "point": f"{disk['disk_key']}@{manifest['checkpoint_id']}",
                    "tree_root": "00" * 32,
                    "source_point": _granted(task.params["grant"])["disks"][0]["source_point"],
                }
                for disk in disks
            ],
        }
        self.manifests.append(manifest)
        size = sum(disk["size_bytes"] for disk in disks)
        full = any(disk["base_point"] is None for disk in disks)
        whole = all(disk["incremental"] for disk in disks)
        mode = "full" if full else "incremental" if whole else "verify"
        stats = {
            "mode": mode,
            "disk_bytes": size,
            "changed_bytes": MIB,
            "moved_bytes": MIB,
            "resent_bytes": 0,
            "seconds": 0.1,
        }
        return {"manifest": manifest, "stats": stats, "addenda": self.addenda}

    def release(self, task: Task) -> dict[str, Any]:
        if task.params["applied"]:
            self.applied.append(task.params["point_id"])
        return {}

    def _machine(self, task: Task) -> dict[str, Any]:
        machine = self.machines.get(task.params["machine_id"])
        if machine is None:
            raise NotFound(f"no machine {task.params['machine_id']}")
        return machine

    def _state(self, task: Task) -> dict[str, Any]:
        machine = self._machine(task)
        machine_id = machine["machine_id"]
        return {"machine_id": machine_id, "power": machine["power"], "fenced": machine_id in self.fenced}

    def machine_stop(self, task: Task) -> dict[str, Any]:
        self._machine(task)["power"] = "off"
        return self._state(task)

    def machine_start(self, task: Task) -> dict[str, Any]:
        self._machine(task)["power"] = "on"
        return self._state(task)

    def machine_power_on(self, task: Task) -> dict[str, Any]:
        return self.machine_start(task)

    def machine_fence(self, task: Task) -> dict[str, Any]:
        machine = self._machine(task)
        self.fenced[machine["machine_id"]] = task.params["epoch"]
        if task.params.get("power_off"):
            if self.ignore_power_off:
                self.ignore_power_off -= 1
            else:
                machine["power"] = "off"
        return self._state(task)

    def machine_unfence(self, task: Task) -> dict[str, Any]:
        self.fenced.pop(self._machine(task)["machine_id"], None)
        return self._state(task)

    def machine_untrack(self, _task: Task) -> dict[str, Any]:
        return {}

    def network_create(self, task: Task) -> dict[str, Any]:
        self.tagged.setdefault(task.params["tag"], set()).add(f"network:{task.params['name']}")
        return {}

    def dns_update(self, task: Task) -> dict[str, Any]:
        zone = task.params["dns"]["zone"]
        return {"updated": [f"{zone}: {item['name']} A {item['address']}" for item in task.params["records"]]}

    def machine_prepare(self, task: Task) -> dict[str, Any]:
        return {"machine_id": task.params["machine_id"], **self.guests.get(task.params["name"], {})}

    def machine_create(self, task: Task) -> dict[str, Any]:
        params = task.params
        machine_id = f"made-{params['name']}"
        if machine_id in self.machines and f"machine:{machine_id}" not in self.tagged.get(params["tag"], ()):
            machine_id = f"{machine_id}-{params['epoch']}"  # its predecessor rests here
        self.tagged.setdefault(params["tag"], set()).add(f"machine:{machine_id}")
        made = {**params["facts"], "machine_id": machine_id, "name": params["name"], "power": "off"}
        made["nics"] = [{"mac": nic["mac"], "network": nic["network"]} for nic in params["nics"]]
        made["on_points"] = self.layered
        self.machines.setdefault(machine_id, made)
        return {"machine_id": machine_id, "name": params["name"]}

    def machine_detach(self, task: Task) -> dict[str, Any]:
        machine = self._machine(task)
        answers = self.detaching.get(machine["name"])
        found = answers.pop(0) if answers else {"state": "done"}
        if found["state"] == "done":
            machine["on_points"] = False
        return {"machine_id": machine["machine_id"], **found}

    def machine_retire(self, task: Task) -> dict[str, Any]:
        machine = self._machine(task)
        fence = self.fenced.get(machine["machine_id"])
        if machine["power"] != "off" or fence is None or fence > task.params["epoch"]:
            raise Conflict("it is not fenced", code="old-primary-not-fenced")
        del self.machines[machine["machine_id"]]
        removed = [*(f"disk {disk['disk_id']}" for disk in machine["disks"]), f"machine {machine['name']}"]
        return {"machine_id": machine["machine_id"], "removed": removed, "kept": []}

    def machine_probe(self, task: Task) -> dict[str, Any]:
        machine = self._machine(task)
        green = self.green.get(machine["name"].split("-drill-")[0], True) and machine["power"] == "on"
        outcomes = [
            {"type": probe["type"], "target": "x", "green": green, "seconds": 0.1, "tries": 1, "detail": "scripted"}
            for probe in task.params["probes"]
        ]
        return {"machine_id": machine["machine_id"], "green": green, "outcomes": outcomes}

    def machine_look(self, task: Task) -> dict[str, Any]:
        machine = self._machine(task)
        screen = base64.b64encode(PICTURE).decode()
        console = f"console of {machine['name']}"
        return {"machine_id": machine["machine_id"], "taken_at": time.time(), "console": console, "screen": screen}

    def isolation(self, task: Task) -> dict[str, Any]:
        names = task.params["networks"]
        closed = {"source": "guest a", "target": "hypervisor", "control": False, "reached": self.leaks}
        control = {"source": "hypervisor", "target": "guest a", "control": True, "reached": True}
        tried = [{"network": name, **one} for name in names for one in (closed, control)]
        counts = [{"network": name, "outside": self.outside, "stopped": 3, "admitted": 5} for name in names]
        return {
            "proven": not (self.leaks or self.outside),
            "reason": "guest a reached hypervisor" if self.leaks else "packets" if self.outside else "",
            "canaries": tried if task.params["canaries"] else [],
            "packets": counts,
        }

    def sweep(self, task: Task) -> dict[str, Any]:
        found = self.tagged.pop(task.params["tag"], set())
        for item in found:
            kind, _, machine_id = item.partition(":")
            if kind == "machine":
                self.machines.pop(machine_id, None)
        return {"removed": sorted(found), "remaining": list(self.leave_behind)}

    def drop_checkpoint(self, task: Task) -> dict[str, Any]:
        gone = task.params["checkpoint_id"]
        self.manifests = [manifest for manifest in self.manifests if manifest["checkpoint_id"] != gone]
        return {}

    def catalog_scan(self, _task: Task) -> dict[str, Any]:
        return {"manifests": self.manifests, "addenda": self.addenda}

    def catalog_check(self, task: Task) -> dict[str, Any]:
        ours = [
            Manifest.model_validate(one) for one in self.manifests if one["catalog_id"] == task.params["catalog_id"]
        ]
        keys = ("checkpoint_id", "group_id", "plan", "epoch", "generation", "sequence")
        return {"manifests": [{**{key: getattr(one, key) for key in keys}, "digest": digest(one)} for one in ours]}

    def bundle_put(self, task: Task) -> dict[str, Any]:
        self.bundles[task.params["key"]] = task.params["data"]
        return {"keys": sorted(self.bundles)}

    def scrub(self, task: Task) -> dict[str, Any]:
        wanted, others = task.params["checkpoint_id"], {}
        self.tagged.setdefault(task.params["tag"], set()).add(f"lease:{wanted}")
        for manifest in self.manifests:
            others[manifest["checkpoint_id"]] = {
                "checkpoint_id": manifest["checkpoint_id"],
                "group_id": manifest["group_id"],
                "epoch": manifest["epoch"],
                "sequence": manifest["sequence"],
                "by": "scrub",
                "origin": task.params["tag"],
                "at": time.time(),
                "read_bytes": sum(disk["size_bytes"] for disk in manifest["disks"]),
            }
        damages = self.damages.get(wanted, [])
        return {
            "addenda": [
                {
                    **others[wanted],
                    "verdict": "suspect" if damages else "verified",
                    "reason": f"disk {damages[0]['disk_key']} at offset {damages[0]['offset']}" if damages else "whole",
                    "damages": damages,
                }
            ]
        }


KINDS = (
    "inventory",
    "check",
    "point",
    "replicate",
    "release",
    "machine-stop",
    "machine-start",
    "machine-fence",
    "machine-unfence",
    "machine-untrack",
    "machine-detach",
    "machine-retire",
    "network-create",
    "machine-create",
    "machine-prepare",
    "dns-update",
    "machine-power-on",
    "machine-probe",
    "machine-look",
    "isolation",
    "sweep",
    "drop-checkpoint",
    "catalog-scan",
    "catalog-check",
    "bundle-put",
    "scrub",
)


def _granted(text: str) -> dict[str, Any]:
    import json

    body = text.split(".", maxsplit=1)[0]
    granted: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return granted
