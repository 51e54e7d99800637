"""Whether a plan could be recovered now: facts in, findings and a score out. Pure.

Nothing is asked of anybody here: what is not known is told as not known, never taken for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Final, Literal

from farshore.model.machine import Finding, MachineFacts, NetworkFacts, PoolFacts
from farshore.model.plan import Plan, Purpose
from farshore.units import format_duration, format_size

Severity = Literal["info", "warning", "error"]

#: A rehearsal that is older proves little: machines, people and networks have changed since.
DRILL_EVERY_S: Final = 30 * 86400.0
#: What a machine that runs for the time of a drill writes, as a share of its disks; the field's rule of thumb for the
#: change of a day is 2 to 5 %.
DRILL_SHARE: Final = 0.05
#: A certificate is renewed when a third of its life is left; one that is nearer to its end was not.
CERTIFICATE_S: Final = 7 * 86400.0
#: What findings take from 100: the first of a code, and each further one. One error is never outweighed by the rest.
_COSTS: Final[dict[Severity, tuple[int, int]]] = {"error": (30, 5), "warning": (8, 2), "info": (0, 0)}
#: File systems that another machine can have mounted too.
_SHARED: Final = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "ceph",
        "fuse.ceph",
        "glusterfs",
        "fuse.glusterfs",
        "gfs2",
        "ocfs2",
        "lustre",
        "gpfs",
    }
)


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node of a site. ``certificate_s``: how long its certificate is still good."""

    name: str
    online: bool
    roles: frozenset[str]
    certificate_s: float | None = None


@dataclass(frozen=True, slots=True)
class SiteState:
    """A site as it was seen last; ``networks`` is None where it was never looked at."""

    name: str
    nodes: tuple[NodeState, ...] = ()
    networks: tuple[NetworkFacts, ...] | None = None
    pool: PoolFacts | None = None
    findings: tuple[Finding, ...] = ()
    #: Addresses that machines there have now, each with the machine's name.
    addresses: dict[str, str] = field(default_factory=dict)
    bundle: Literal["current", "late", "missing"] = "current"


@dataclass(frozen=True, slots=True)
class MachineState:
    """A machine of the plan. ``now``: as its site shows it; ``captured``: as its newest checkpoint holds it.

    ``copied`` are the ids of the disks in that checkpoint. ``seen``: its site has an inventory at all.
    """

    name: str
    active: bool
    rpo_s: float | None
    now: MachineFacts | None = None
    captured: MachineFacts | None = None
    copied: frozenset[str] = frozenset()
    seen: bool = True
    suspect_newest: bool = False
    suspect_older: int = 0


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The plan's newest drill that ended."""

    run_id: str
    age_s: float
    state: str


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is looked at. ``taken``: addresses of other plans' machines for the same site and purpose."""

    plan: Plan
    state: str
    purpose: Purpose
    source: SiteState
    target: SiteState
    machines: tuple[MachineState, ...]
    drill: Rehearsal | None = None
    drilled_s: float | None = None
    taken: dict[tuple[Purpose, str], str] = field(default_factory=dict)
    unfenced: tuple[str, ...] = ()
    superseded: bool = False
    recovery_key_is_here: bool = False


@dataclass(frozen=True, slots=True)
class Readiness:
    """``ready``: nothing stands in the way of a recovery. ``score``: 100 is all that could be asked."""

    ready: bool
    score: int
    findings: tuple[Finding, ...]


def evaluate(facts: Facts) -> Readiness:
    """Return what is wrong, worst first, and what it adds up to."""
    found = [
        *_plan(facts),
        *_sites(facts),
        *_networks(facts),
        *_addresses(facts),
        *_room(facts),
        *_machines(facts),
        *_rehearsed(facts),
        *_afterlife(facts),
    ]
    rank: dict[str, int] = {"error": 0, "warning": 1, "info": 2}
    found.sort(key=lambda finding: rank[finding.severity])
    return Readiness(all(finding.severity != "error" for finding in found), score(found), tuple(found))


def score(findings: list[Finding]) -> int:
    """Return 100 less what the findings cost; many of one kind cost little more than one."""
    lost = 0
    for (severity, _code), number in Counter((finding.severity, finding.code) for finding in findings).items():
        first, further = _COSTS[severity]
        lost += first + further * (number - 1)
    return max(0, 100 - lost)


def _finding(code: str, severity: Severity, subject: str, message: str, remedy: str) -> Finding:
    return Finding(code=code, severity=severity, subject=subject, message=message, remedy=remedy)


def _plan(facts: Facts) -> Iterator[Finding]:
    name = facts.plan.name
    if facts.superseded:
        yield _finding(
            "control-plane-superseded",
            "error",
            name,
            "a node obeys another control plane, which took over from this one",
            "Stop this one: `farshore down`.",
        )
    if facts.state == "unprotected":
        yield _finding(
            "plan-unprotected", "error", name, "nothing of the plan is copied", f"`farshore plan protect {name}`"
        )
    if facts.state == "failing-over":
        yield _finding("plan-failing-over", "warning", name, "a failover has not ended", "Wait, or order it again.")
    if facts.state == "failed-over":
        yield _finding(
            "plan-not-reprotected",
            "warning",
            name,
            f"the machines run at {facts.source.name!r} and are copied nowhere",
            f"`farshore reprotect {name}`",
        )
    for machine in facts.unfenced:
        yield _finding(
            "old-primary-unfenced",
            "warning",
            machine,
            f"the old primary of {machine!r} waits to be fenced at its site",
            "Start a node of that site once: it is fenced before anything else is done there.",
        )


def _sites(facts: Facts) -> Iterator[Finding]:
    for site, needed, severity in (
        (facts.target, ("recovery", "replication"), "error"),
        (facts.source, ("replication",), "warning"),
    ):
        level: Severity = "error" if severity == "error" else "warning"
        online = [node for node in site.nodes if node.online]
        if not site.nodes:
            yield _finding(
                "site-no-node",
                level,
                site.name,
                f"site {site.name!r} has no node",
                "`farshore node add NAME --site ...`",
            )
        elif not online:
            yield _finding(
                "site-offline", level, site.name, f"no node of site {site.name!r} answers", "`farshore node start`"
            )
        for role in needed if online else ():
            if not any(role in node.roles for node in online):
                yield _finding(
                    "role-missing",
                    level,
                    site.name,
                    f"no node of site {site.name!r} that answers has the role {role!r}",
                    "Give the role to a node, or start the one that has it.",
                )
        for node in site.nodes:
            if node.certificate_s is not None and node.certificate_s < CERTIFICATE_S:
                over = node.certificate_s <= 0
                yield _finding(
                    "certificate-expired" if over else "certificate-ends",
                    level if over else "warning",
                    node.name,
                    f"the certificate of node {node.name!r} "
                    + ("has ended" if over else f"ends in {format_duration(node.certificate_s)}"),
                    "Look at the node's log; enrol it again with a new token if it cannot renew it.",
                )
            if not node.online and online:
                yield _finding(
                    "node-offline", "warning", node.name, f"node {node.name!r} does not answer", "`farshore node start`"
                )
        yield from site.findings
    pool = facts.target.pool
    able = [node for node in facts.target.nodes if "replication" in node.roles]
    if pool is not None and pool.filesystem and pool.filesystem not in _SHARED and len(able) > 1:
        yield _finding(
            "pool-on-one-node",
            "warning",
            pool.path,
            f"the pool {pool.path} lies on a node's own disk ({pool.filesystem}): no other node of the site can go on"
            " with its copies, nor recover from them",
            "Put the pool on storage that all nodes of the site reach.",
        )


def _networks(facts: Facts) -> Iterator[Finding]:
    used = {nic.network for machine in facts.machines for nic in _facts(machine).nics}
    there = facts.target.networks
    if there is None:
        yield _finding(
            "inventory-missing",
            "warning",
            facts.target.name,
            f"site {facts.target.name!r} was never looked at: its networks are not known",
            f"`farshore site refresh {facts.target.name}`",
        )
        return
    known = {network.name: network for network in there}
    wanted: dict[str, list[str]] = {}
    for mapping in facts.plan.networks:
        if facts.purpose == "failback":
            purposes = {"failback": mapping.failback or mapping.source}
        else:
            purposes = {"failover": mapping.failover, "migration": mapping.migration or mapping.failover}
        for purpose, network in purposes.items():
            wanted.setdefault(network, []).append(purpose)
    for network, purposes_of in wanted.items():
        if network not in known:
            yield _finding(
                "network-missing",
                "error",
                network,
                f"site {facts.target.name!r} has no network {network!r} ({', '.join(purposes_of)})",
                "Make it there, or map another one in the plan.",
            )
        elif not known[network].active:
            yield _finding(
                "network-inactive", "warning", network, f"network {network!r} is not active", "Start it at the site."
            )
    if facts.purpose != "failback":
        for network in sorted(used - {mapping.source for mapping in facts.plan.networks}):
            yield _finding(
                "network-unmapped",
                "error",
                network,
                f"a machine is plugged into {network!r}, which the plan does not map",
                f"Add an entry with `source: {network}` to networks.",
            )


def _facts(machine: MachineState) -> MachineFacts:
    """Return the machine as it would be recovered, else as it is."""
    return machine.captured or machine.now or MachineFacts(machine_id="", name=machine.name)


def _addresses(facts: Facts) -> Iterator[Finding]:
    subnets = {
        network.name: IPv4Network(network.subnet, strict=False)
        for network in facts.target.networks or ()
        if network.subnet and ":" not in network.subnet
    }
    purposes: tuple[Purpose, ...] = ("failback",) if facts.purpose == "failback" else ("failover", "migration")
    for machine in facts.plan.machines:
        for purpose in purposes:
            address = machine.recovery.addresses.get(purpose)
            if address is None:
                continue
            yield from _address(facts, subnets, machine.name, purpose, address)
    for purpose in purposes:
        given = [machine.name for machine in facts.plan.machines if purpose in machine.recovery.addresses]
        without = [machine.name for machine in facts.plan.machines if machine.name not in given]
        if given and without:
            yield _finding(
                "address-missing",
                "info",
                ", ".join(without),
                f"{', '.join(without)} has no address for {purpose}; {', '.join(given)} has",
                "Write one, unless the network hands one out.",
            )


def _address(
    facts: Facts, subnets: dict[str, IPv4Network], name: str, purpose: Purpose, address: IPv4Address
) -> Iterator[Finding]:
    state = next((machine for machine in facts.machines if machine.name == name), None)
    plugged = {nic.network for nic in _facts(state).nics} if state is not None else set()
    mapped = {
        (mapping.failback or mapping.source)
        if purpose == "failback"
        else (mapping.migration if purpose == "migration" else None) or mapping.failover
        for mapping in facts.plan.networks
        if not plugged or mapping.source in plugged or purpose == "failback"
    }
    ranges = [subnets[network] for network in mapped if network in subnets]
    if ranges and all(network in subnets for network in mapped) and not any(address in one for one in ranges):
        yield _finding(
            "address-outside",
            "error",
            name,
            f"{address} ({purpose}) of machine {name!r} is in none of its networks"
            f" ({', '.join(sorted(map(str, ranges)))})",
            "Write an address of the network that the plan maps to.",
        )
    holder = facts.taken.get((purpose, str(address)))
    if holder is not None:
        yield _finding(
            "address-duplicate",
            "error",
            name,
            f"{address} ({purpose}) of machine {name!r} is that of {holder} too",
            "Give one of the two another address.",
        )
    owner = facts.target.addresses.get(str(address))
    if owner is not None and owner != name:
        yield _finding(
            "address-in-use",
            "error",
            name,
            f"{address} ({purpose}) of machine {name!r} is in use at {facts.target.name!r} by {owner!r}",
            "Give one of the two another address.",
        )


def _room(facts: Facts) -> Iterator[Finding]:
    pool = facts.target.pool
    if pool is None:
        return
    disks = sum(disk.size_bytes for machine in facts.machines for disk in _facts(machine).disks)
    for verb, need, severity in (
        ("drill", int(disks * DRILL_SHARE), "error"),
        ("failover that is committed", disks, "warning"),
    ):
        if need > pool.free_bytes:
            level: Severity = "error" if severity == "error" else "warning"
            yield _finding(
                f"pool-too-small-for-{verb.split()[0]}",
                level,
                pool.path,
                f"a {verb} may take {format_size(need)}; the pool has {format_size(pool.free_bytes)} free",
                "Make the pool larger, keep fewer checkpoints, or recover fewer machines at once.",
            )


def _machines(facts: Facts) -> Iterator[Finding]:
    for machine in facts.machines:
        if not machine.active:
            yield _finding(
                "machine-unprotected",
                "warning",
                machine.name,
                f"machine {machine.name!r} is in the plan and is not copied",
                f"`farshore plan protect {facts.plan.name} --machine {machine.name}`",
            )
            continue
        yield from _freshness(facts, machine)
        yield from _drift(machine)
        if not facts.plan.machine(machine.name).probes:
            yield _finding(
                "probe-missing",
                "warning",
                machine.name,
                f"nothing tells whether machine {machine.name!r} works once it is on",
                "Write probes for it: the next group starts when they are green.",
            )


def _freshness(facts: Facts, machine: MachineState) -> Iterator[Finding]:
    target = facts.plan.rpo
    if machine.captured is None:
        yield _finding(
            "no-checkpoint",
            "error",
            machine.name,
            f"machine {machine.name!r} has no checkpoint to come back from",
            f"`farshore replicate {facts.plan.name}`",
        )
    elif machine.rpo_s is not None and machine.rpo_s > target:
        yield _finding(
            "rpo-exceeded",
            "error" if machine.rpo_s > 3 * target else "warning",
            machine.name,
            f"the newest checkpoint of {machine.name!r} is {format_duration(machine.rpo_s)} old; the plan allows"
            f" {format_duration(target)}",
            f"`farshore machine show {machine.name}` tells what holds it up.",
        )
    if machine.suspect_newest:
        yield _finding(
            "checkpoint-suspect",
            "error",
            machine.name,
            f"the newest checkpoint of {machine.name!r} is suspect",
            "Look at it: `farshore checkpoint list`. Replicate anew, or recover from an older one.",
        )
    elif machine.suspect_older:
        yield _finding(
            "checkpoint-suspect-older",
            "warning",
            machine.name,
            f"{machine.suspect_older} older checkpoints of {machine.name!r} are suspect",
            "They are passed over; scrub the others: `farshore checkpoint scrub`.",
        )


def _drift(machine: MachineState) -> Iterator[Finding]:
    now, then, name = machine.now, machine.captured, machine.name
    if now is None:
        if machine.seen:
            yield _finding(
                "machine-gone",
                "error",
                name,
                f"machine {name!r} is not at its site any more",
                "Take it out of the plan, or find out where it went.",
            )
        return
    for disk in now.disks:
        if not disk.tracked:
            yield _finding(
                "disk-untracked",
                "info",
                f"{name}/{disk.disk_id}",
                f"changes of disk {disk.disk_id!r} ({disk.format}) of {name!r} are not tracked: each cycle compares it",
                "Convert it to a format that can, such as qcow2.",
            )
    if then is None:
        return
    sizes = {disk.disk_id: disk.size_bytes for disk in then.disks}
    for disk in now.disks:
        if disk.disk_id not in machine.copied:
            yield _finding(
                "disk-unprotected",
                "warning",
                f"{name}/{disk.disk_id}",
                f"disk {disk.disk_id!r} of {name!r} is in no checkpoint yet",
                "It is copied by the next cycle; if it stays so, look at the machine's findings.",
            )
        elif sizes.get(disk.disk_id) != disk.size_bytes:
            yield _finding(
                "disk-resized",
                "warning",
                f"{name}/{disk.disk_id}",
                f"disk {disk.disk_id!r} of {name!r} has {format_size(disk.size_bytes)}, in its checkpoint"
                f" {format_size(sizes[disk.disk_id])}",
                "The next cycle takes it over.",
            )
    for disk_id in sorted(set(sizes) - {disk.disk_id for disk in now.disks}):
        yield _finding(
            "disk-removed",
            "warning",
            f"{name}/{disk_id}",
            f"disk {disk_id!r} of {name!r} is in its checkpoint and not in the machine any more",
            "The next checkpoint is without it.",
        )
    if now.name != then.name:
        yield _finding(
            "machine-renamed",
            "info",
            name,
            f"machine {name!r} is called {now.name!r} now; in its checkpoint {then.name!r}",
            "Call it by its new name in the plan, or by its id.",
        )
    networks = ({nic.network for nic in now.nics}, {nic.network for nic in then.nics})
    if networks[0] != networks[1]:
        yield _finding(
            "machine-replugged",
            "warning",
            name,
            f"machine {name!r} is plugged into {', '.join(sorted(networks[0])) or 'nothing'}, in its checkpoint into"
            f" {', '.join(sorted(networks[1])) or 'nothing'}",
            "Map the new network in the plan.",
        )
    if (now.cpus, now.memory_bytes, now.firmware) != (then.cpus, then.memory_bytes, then.firmware):
        yield _finding(
            "machine-resized",
            "info",
            name,
            f"machine {name!r} has {now.cpus} processors, {format_size(now.memory_bytes)} and {now.firmware}, in its"
            f" checkpoint {then.cpus}, {format_size(then.memory_bytes)} and {then.firmware}",
            "The next checkpoint holds what it has now.",
        )


def _rehearsed(facts: Facts) -> Iterator[Finding]:
    name = facts.plan.name
    if facts.drill is not None and facts.drill.state not in {"succeeded", "cancelled"}:
        yield _finding(
            "drill-failed",
            "warning",
            name,
            f"the last drill, {format_duration(facts.drill.age_s)} ago, ended {facts.drill.state}",
            f"`farshore run show {facts.drill.run_id}` tells why.",
        )
    if facts.drilled_s is None:
        yield _finding(
            "drill-never", "warning", name, "no drill of the plan has ever succeeded", f"`farshore drill start {name}`"
        )
    elif facts.drilled_s > DRILL_EVERY_S:
        yield _finding(
            "drill-old",
            "warning",
            name,
            f"the last drill that succeeded was {format_duration(facts.drilled_s)} ago",
            f"`farshore drill start {name}`, or let it run by itself: `drill: {{schedule: every 7d}}`.",
        )


def _afterlife(facts: Facts) -> Iterator[Finding]:
    """Would a control plane that follows this one find what it needs?"""
    if facts.target.bundle != "current":
        late = facts.target.bundle == "late"
        yield _finding(
            "bundle-late" if late else "bundle-missing",
            "warning",
            facts.target.name,
            f"site {facts.target.name!r} keeps "
            + ("an old bundle" if late else "no bundle")
            + " for a control plane that follows this one",
            "It is renewed as soon as a node of the site polls; `farshore catalog show` tells what went wrong.",
        )
    if facts.recovery_key_is_here:
        yield _finding(
            "recovery-key-here",
            "warning",
            "recovery.key",
            "the recovery key still lies on the control plane's own machine: both are lost together",
            "Move recovery.key out of the control plane's home to a safe place.",
        )
