"""Over to the other site without the first one, and back again: what is asked, sent and read for it."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from farshore.errors import FarshoreError
from farshore.platforms.kvm import freezing
from farshore.testing.lab import app

from benchmarks.links import ROOT
from benchmarks.lost import Installation, installation, until
from benchmarks.results import Check, Figure

_PLAN: Final = ROOT / "inventories/lab/plans/shop.yml"
_LEAF: Final = 64 * 1024
#: Of the 768 MiB that the shop's disks have.
_CHURN_MIB: Final = 38


def _protect(made: Installation) -> None:
    # Uncompressed, so that what crosses the wire besides the data can be told from it.
    source = _PLAN.read_text().replace("rpo: 30s", "rpo: 1h") + "\ntransport: {compression: 'off'}\n"
    made.ok("PUT", "/plans/shop", {"source": source})
    made.ok("POST", "/plans/shop:protect", {"state": "protected"})
    until(lambda: made.ok("GET", "/plans/shop")["state"] == "protected", "the shop is protected")
    made.run("replicate", {})


def unplanned(say: Callable[[str], None]) -> Figure:
    """Measure ``rec-unplanned``: the source's namespaces are gone before the order is given."""
    row = Figure("rec-unplanned")
    with installation(say) as made:
        _protect(made)
        made.lab.alpha.stop()
        say("alpha is gone with its network namespace")
        run = made.run("failover", {"to_site": "beta", "mode": "unplanned"})
        with sqlite3.connect(made.home / "farshore.db") as records:
            query = "SELECT count(*) FROM task WHERE site = 'alpha' AND run_id = ?"
            calls = records.execute(query, (run["run_id"],)).fetchone()[0]
        gone = len(made.lab.alpha.processes())
    green = [machine for machine in run["machines"] if machine["state"] == "green"]
    row.checks += [
        Check("calls to the source site", calls, "<=", 0),
        Check("processes of the source site", gone, "<=", 0),
        Check("machines green", len(green), ">=", 2),
    ]
    row.details |= {"machines": run["machines"]}
    return row


def failback(say: Callable[[str], None]) -> Figure:
    """Measure ``rec-failback``: data is changed at the other site, then all goes back."""
    row = Figure("rec-failback")
    with installation(say) as made:
        _protect(made)
        old = {guest.name: guest.disks for guest in made.lab.guests.values()}
        over = made.run("failover", {"to_site": "beta"})
        database = next(machine for machine in over["machines"] if machine["name"] == app.tier("db").name)
        _churn(made, database)
        before = _wire(made)
        runs = [made.run("reprotect", {}), made.run("failover", {"to_site": "alpha"})]
        wire = _wire(made) - before
        changed = _changed(made, old, runs[-1])
    cycles = [cycle["stats"] for run in runs for cycle in run["cycles"] if cycle["stats"]]
    moved = sum(stats["moved_bytes"] for stats in cycles)
    disks = cycles[0]["disk_bytes"]
    read = sum((stats["source"] or {}).get("read_bytes", 0) for stats in cycles)
    say(f"of {disks >> 20} MiB {changed >> 20} were changed, {moved >> 20} sent, {read >> 20} read at the source")
    row.checks += [
        Check("sent", moved / changed, "<=", 1.1, "of what had changed"),
        Check("control traffic", (wire - moved) / disks, "<=", 0.001, "of the disks"),
        Check("changed", changed / disks, ">=", 0.045, "of the disks"),
        Check("machines green", sum(machine["state"] == "green" for machine in runs[-1]["machines"]), ">=", 2),
    ]
    row.details |= {
        "changed_bytes": changed,
        "moved_bytes": moved,
        "wire_bytes": wire,
        "disk_bytes": disks,
        "read_bytes": read,
        "cycles": [{key: stats[key] for key in ("mode", "moved_bytes", "seconds")} for stats in cycles],
        "machines": runs[-1]["machines"],
    }
    return row


def _churn(made: Installation, machine: Mapping[str, Any]) -> None:
    """Write random bytes in a guest at beta, by its agent."""
    found = until(
        lambda: made.ok("GET", f"/machines?site=beta&name={machine['name']}")["items"],
        f"the inventory of beta names {machine['name']}",
    )
    handle = made.lab.beta.connect().lookupByUUIDString(found[0]["machine_id"])
    until(lambda: _answers(handle), "the guest's agent answers")
    words = ["if=/dev/urandom", "of=/data/churn", "bs=1M", f"count={_CHURN_MIB}", "conv=fsync"]
    asked = freezing.ask(handle, "guest-exec", 60, path="/bin/dd", arg=words)
    ended = until(lambda: _ended(handle, asked["pid"]), "the guest has written")
    if ended.get("exitcode"):
        raise AssertionError(f"dd in the guest: {ended}")


def _answers(handle: Any) -> bool:
    try:
        freezing.ask(handle, "guest-ping", 5)
    except FarshoreError:
        return False
    return True


def _ended(handle: Any, pid: int) -> Any:
    said = freezing.ask(handle, "guest-exec-status", 20, pid=pid)
    return said if said["exited"] else None


def _wire(made: Installation) -> int:
    """Return the bytes that went between the sites' nodes so far, both ways."""
    routes = made.lab.relay.status()
    return sum(int(route["moved_bytes"]) for route in routes if route["name"] in {"alpha-to-beta", "beta-to-alpha"})


def _changed(made: Installation, old: Mapping[str, Mapping[str, Path]], run: Mapping[str, Any]) -> int:
    """Return the bytes, by leaves, in which what came back differs from the disks of the old machines."""
    total = 0
    for machine in run["machines"]:
        point = made.ok("GET", f"/checkpoints/{machine['checkpoint_id']}")
        for disk_id, path in old[machine["name"]].items():
            mine = [
                disk
                for disk in point["disks"]
                if disk["disk_key"].endswith(f"/{disk_id}") and disk["disk_key"] in _keys(made, machine, point)
            ]
            layer = made.lab.alpha.storage / "replicas" / f"{mine[0]['point']}.qcow2"
            total += _differ(_raw(made, path), _raw(made, layer))
    return total


def _keys(made: Installation, machine: Mapping[str, Any], point: Mapping[str, Any]) -> set[str]:
    left = made.ok("GET", f"/machines?site=beta&name={machine['name']}")["items"]
    ids = {item["machine_id"] for item in left}
    return {disk["disk_key"] for disk in point["disks"] if disk["disk_key"].partition("/")[0] in ids}


def _raw(made: Installation, path: Path) -> Path:
    raw = made.folder / f"{abs(hash(path))}.raw"
    subprocess.run(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    return raw


def _differ(one: Path, other: Path) -> int:
    total = 0
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            pair = left.read(_LEAF), right.read(_LEAF)
            if not any(pair):
                break
            total += _LEAF * (pair[0] != pair[1])
    one.unlink()
    other.unlink()
    return total
