"""A drill of the lab's shop while it goes on replicating: what the drill touched, what it left, what it let out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

import yaml

from benchmarks.links import ROOT
from benchmarks.lost import Installation, installation, until
from benchmarks.results import Check, Figure

_PLAN: Final = ROOT / "inventories/lab/plans/shop.yml"
#: Short, so that cycles fall due while the drill is on.
_RPO: Final = "20s"


def _definition() -> dict[str, Any]:
    plan: dict[str, Any] = yaml.safe_load(_PLAN.read_text(encoding="utf-8"))
    plan["rpo"] = _RPO
    for machine in plan["machines"]:
        machine.setdefault("probes", []).append(
            {"type": "guest_agent", "command": ["/bin/cat", "/run/disks"], "contains": "ok", "timeout": "180s"}
        )
    return plan


def play(made: Installation) -> dict[str, Any]:
    """Rehearse once and tell what was seen, by the run and from outside it."""
    made.ok("PUT", "/plans/shop", {"definition": _definition()})
    made.ok("POST", "/plans/shop:protect", {"state": "protected"})
    until(lambda: made.ok("GET", "/plans/shop")["state"] == "protected", "the shop is protected")
    before = traces(made)
    run = made.run("drill", {})
    facts = run["facts"]
    pictures = []
    for name, seen in facts["sights"].items():
        screen = made.call("GET", seen["screen_url"].removeprefix("/api/v1")).content
        pictures.append(hashlib.sha256(screen).hexdigest() == seen["screen_sha256"] and screen.startswith(b"\x89PNG"))
        made.say(f"{name}: {len(screen)} bytes of screen, {seen['console_bytes']} of console")
    return {
        "machines": run["machines"],
        "steps": [
            {key: step[key] for key in ("name", "machine", "state", "seconds", "detail")} for step in run["steps"]
        ],
        "during": facts["during"],
        "isolation": facts["isolation"],
        "pictures": sum(pictures),
        "left_by_the_sweep": facts["remaining"],
        "left_outside_its_sight": sorted(traces(made) - before),
    }


def traces(made: Installation) -> set[str]:
    """Return what there is at the target by other eyes than the engine's: domains, networks, links, rules, files."""
    site = made.lab.beta
    found = set()
    with site.session() as connection:
        found |= {f"domain {one.name()}" for one in connection.listAllDomains()}
        found |= {f"network {one.name()}" for one in connection.listAllNetworks()}
    for table in ("filter", "security"):
        for tool in ("iptables", "ip6tables"):
            listed = site.run(tool, "-t", table, "-S").splitlines()
            found |= {f"{tool} {line}" for line in listed if "farshore" in line}
    found |= {f"link {line.split(':')[1].strip()}" for line in site.run("ip", "-o", "link").splitlines()}
    found |= {f"file {line}" for line in site.run("find", "/run/libvirt", "/var/lib/libvirt").splitlines()}
    recovered = site.storage / "replicas" / "recovered"
    return found | {f"file {path}" for path in recovered.rglob("*")}


def figure(say: Callable[[str], None]) -> Figure:
    """Measure ``rec-drill``."""
    row = Figure("rec-drill")
    with installation(say) as made:
        seen = play(made)
    during, isolation = seen["during"], seen["isolation"]
    canaries = isolation["canaries"]
    closed = [one for one in canaries if not one["control"]]
    controls = [one for one in canaries if one["control"]]
    between = [one for one in controls if one["source"].startswith("guest") and one["target"].startswith("guest")]
    row.checks += [
        Check("bytes sent again", during["resent_bytes"], "<=", 0),
        Check("leftovers", len(seen["left_by_the_sweep"]) + len(seen["left_outside_its_sight"]), "<=", 0),
        Check("machines green", sum(machine["state"] == "green" for machine in seen["machines"]), ">=", 2),
        Check("cycles published meanwhile", during["cycles_published"], ">=", 1),
        Check("cycles failed", during["cycles_failed"], "<=", 0),
        Check("cycles skipped", during["cycles_skipped"], "<=", 0),
        Check("canaries that got through", sum(one["reached"] for one in closed), "<=", 0),
        Check("canaries tried inwards", sum(one["target"].startswith("guest") for one in closed), ">=", 1),
        Check("canaries tried outwards", sum(one["source"].startswith("guest") for one in closed), ">=", 3),
        Check("controls that failed", sum(not one["reached"] for one in controls), "<=", 0),
        Check("controls between guests", len(between), ">=", 1),
        Check("packets outside", sum(one["outside"] for one in isolation["packets"]), "<=", 0),
        Check("packets that were stopped", sum(one["stopped"] for one in isolation["packets"]), ">=", 1),
        Check("pictures of screens", seen["pictures"], ">=", 2),
    ]
    row.details |= seen
    return row
