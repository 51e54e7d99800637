"""A first plan from what the inventories hold: complete enough to apply, commented enough to change.

Pure: documents of the API in, text out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network
from typing import Any, Final

from farshore.errors import Conflict, NotFound

#: What a machine's name says about when it should start; the first tier whose words are in the name wins.
TIERS: Final = (
    ("core", ("dc", "dns", "ldap", "ipa", "ad", "dhcp", "ntp", "nfs", "san", "storage", "vault")),
    ("data", ("db", "sql", "mysql", "mariadb", "postgres", "pg", "oracle", "mongo", "redis", "kafka", "mq", "rabbit")),
    ("application", ("app", "api", "svc", "service", "worker", "backend", "erp", "sap")),
    ("front", ("web", "www", "front", "frontend", "proxy", "nginx", "lb", "haproxy", "portal", "shop")),
)
OTHERS: Final = "others"
#: Drill subnets where the source's own is unknown; any will do, a drill network is never routed.
_DRILL_SUBNET: Final = "10.99.{}.0/24"
_PLAIN: Final = re.compile(r"^[A-Za-z][A-Za-z0-9._-]*$")
_WORDS: Final = frozenset({"yes", "no", "on", "off", "true", "false", "null", "y", "n"})


def choose(items: Sequence[dict[str, Any]], wanted: Sequence[str], site: str) -> list[dict[str, Any]]:
    """Return the machines of ``items`` that ``wanted`` names by name or id; all of them when it names none.

    Raises:
        NotFound: naming the first that is not there, or if the site has no machine.
        Conflict: if one is in another plan already, or two have the same name.
    """
    if not items:
        raise NotFound(
            f"the inventory of site {site} holds no machine",
            field="--source-site",
            hint=f"'farshore site check {site}' says why; 'farshore site refresh {site}' looks anew.",
        )
    chosen = []
    for name in wanted:
        matching = [machine for machine in items if name in {machine["name"], machine["machine_id"]}]
        if not matching:
            raise NotFound(
                f"no machine at site {site} is called {name!r}",
                field="MACHINE",
                hint="There are: " + ", ".join(sorted(machine["name"] for machine in items)) + ".",
            )
        chosen += [machine for machine in matching if machine not in chosen]
    if not wanted:
        chosen = [machine for machine in items if not machine.get("plan")]
        if not chosen:
            raise Conflict(
                f"every machine at site {site} is in a plan already",
                hint="'farshore machine list' shows which in which.",
            )
    for machine in chosen:
        if machine.get("plan"):
            raise Conflict(
                f"machine {machine['name']!r} is in plan {machine['plan']!r} already",
                code="machine-in-plan",
                hint="A machine belongs to one plan; leave it out.",
            )
    return sorted(chosen, key=lambda machine: (tier(machine["name"])[0], machine["name"]))


def tier(name: str) -> tuple[int, str]:
    """Return rank and name of the boot group that a machine's name suggests."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    for rank, (label, hints) in enumerate(TIERS):
        if words & set(hints):
            return rank, label
    return 2, OTHERS


def write(
    name: str, source: dict[str, Any], target: dict[str, Any], machines: Sequence[dict[str, Any]], rpo: str
) -> str:
    """Return the plan's YAML text. ``source`` and ``target`` are sites, ``machines`` what :func:`choose` gave."""
    lines = [
        f"# Protection plan {name}, drafted from the inventories of {source['name']} and {target['name']}.",
        "# Durations: 30s, 15m, 4h. Sizes: 512MiB, 8GiB. Look at the change first: farshore plan diff FILE",
        "",
        f"name: {scalar(name)}",
        'description: ""',
        f"source_site: {scalar(source['name'])}",
        f"target_site: {scalar(target['name'])}",
        "",
        "# How much data, as time, may be lost. A cycle starts at least this often.",
        f"rpo: {rpo}",
        "",
        "# machine: one instant over all disks of each machine. group: one over all machines, by a short pause.",
        "consistency: machine",
        "",
        "machines:",
    ]
    ids = _ambiguous(machines)
    for machine in machines:
        lines += _machine(machine, source, by_id=machine["name"] in ids)
    lines += ["", *_boot_groups(machines, ids), "", *_networks(source, target, machines), "", *_TAIL]
    return "\n".join(lines) + "\n"


_TAIL: Final = (
    "# How a planned failover stops a machine at the source. abort: the failover ends and nothing has changed.",
    "shutdown:",
    "  timeout: 120s",
    "  on_timeout: abort       # or power_off",
    "",
    "retention:",
    "  count: 8                # newest checkpoints kept of each group; pinned ones beside them",
)


def _ambiguous(machines: Iterable[dict[str, Any]]) -> set[str]:
    seen: set[str] = set()
    twice: set[str] = set()
    for machine in machines:
        (twice if machine["name"] in seen else seen).add(machine["name"])
    return twice


def _title(machine: dict[str, Any], *, by_id: bool) -> str:
    return str(machine["machine_id"] if by_id else machine["name"])


def _machine(machine: dict[str, Any], source: dict[str, Any], *, by_id: bool) -> list[str]:
    from farshore.units import format_size

    disks = ", ".join(f"{disk['disk_id']} {format_size(disk['size_bytes'])}" for disk in machine["disks"])
    cpus = f"{machine['cpus']} cpu" + ("" if machine["cpus"] == 1 else "s")
    memory = f", {format_size(machine['memory_bytes'])} memory" if machine["memory_bytes"] else ""
    lines = [
        f"  # {comment(machine['name'])}: {cpus}{memory}; {comment(disks) or 'no disk'}",
        f"  - name: {scalar(_title(machine, by_id=by_id))}",
        "    # depends_on: [NAME]           # its probes must be green before this one starts",
    ]
    address = _address(machine)
    subnet = _subnet(source, machine["nics"][0]["network"]) if machine["nics"] else None
    inside = address if address and subnet and _holds(subnet, address) else None
    lines += [
        "    # recovery:",
        f"    #   cpus: {machine['cpus']}",
        f"    #   memory: {max(machine['memory_bytes'] >> 20, 16)}MiB",
        "    #   addresses:                  # handed out by DHCP",
        f"    #     drill: {inside or '10.99.1.10'}",
        f"    #     failover: {address or '192.0.2.10'}",
        "    # probes:                       # green means recovered; without one, powered on is enough",
        "    #   - {type: tcp, port: 22, banner: SSH-2.0, timeout: 120s}",
        "    #   - {type: http, port: 80, path: /, status: 200, contains: Welcome}",
        '    #   - {type: console, contains: "login:"}',
    ]
    return lines


def _boot_groups(machines: Sequence[dict[str, Any]], ids: set[str]) -> list[str]:
    groups: dict[tuple[int, str], list[str]] = {}
    for machine in machines:
        groups.setdefault(tier(machine["name"]), []).append(_title(machine, by_id=machine["name"] in ids))
    lines = [
        "# Groups start one after the other, each when the probes of the one before are green.",
        "# These are guessed from the machines' names.",
        "boot_groups:",
    ]
    for (_, label), members in sorted(groups.items()):
        lines += [f"  - name: {label}", f"    machines: [{', '.join(scalar(member) for member in members)}]"]
    return lines


def _networks(source: dict[str, Any], target: dict[str, Any], machines: Sequence[dict[str, Any]]) -> list[str]:
    used = sorted({nic["network"] for machine in machines for nic in machine["nics"]})
    if not used:
        return ["# The machines have no network interface.", "networks: []"]
    offered = [network["name"] for network in target["networks"]]
    open_ones = [network["name"] for network in target["networks"] if not network.get("isolated")]
    lines = [
        "# Each network at the source: a drill makes an isolated one with this subnet, a failover uses one there.",
        f"# Networks at {target['name']}: {comment(', '.join(offered)) or 'none found'}",
        "networks:",
    ]
    for index, network in enumerate(used, start=1):
        subnet = _subnet(source, network) or _DRILL_SUBNET.format(index)
        match = network if network in offered else (open_ones or offered or [None])[0]
        failover = f"{scalar(match)}" if match else "CHANGE-ME"
        lines += [
            f"  - source: {scalar(network)}",
            f"    drill: {{subnet: {subnet}}}",
            f"    failover: {failover}"
            + ("" if match == network else "    # please check: no network has the same name"),
        ]
    return lines


def _subnet(site: dict[str, Any], network: str) -> str | None:
    """Return the IPv4 subnet of one of a site's networks, where its node reported one."""
    for found in site["networks"]:
        if found["name"] == network and found.get("subnet"):
            try:
                return str(IPv4Network(found["subnet"], strict=False))
            except ValueError:
                return None
    return None


def _holds(subnet: str, address: str) -> bool:
    return IPv4Network(f"{address}/32").subnet_of(IPv4Network(subnet))


def _address(machine: dict[str, Any]) -> str | None:
    for nic in machine["nics"]:
        for address in nic.get("addresses") or ():
            bare = str(address).partition("/")[0]
            try:
                return str(IPv4Network(bare).network_address)
            except ValueError:
                continue
    return None


def scalar(text: str) -> str:
    """Return ``text`` as a YAML scalar: bare where that is safe, else quoted (JSON's quotes are YAML's too)."""
    if _PLAIN.match(text) and text.lower() not in _WORDS:
        return text
    return json.dumps(text, ensure_ascii=True)


def comment(text: str) -> str:
    """Return ``text`` without what would end a comment's line."""
    return " ".join(text.split())
