"""What stands in the way at the two sites: nodes, certificates, room. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from farshore.model.machine import Finding
from farshore.recovery.readiness.facts import Facts, Severity, facts_of, finding
from farshore.units import format_duration, format_size

#: What a machine that runs for the time of a drill writes, as a share of its disks; the field's rule of thumb for the
#: change of a day is 2 to 5 %.
DRILL_SHARE: Final = 0.05
#: A certificate is renewed when a third of its life is left; one that is nearer to its end was not.
CERTIFICATE_S: Final = 7 * 86400.0
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


def places(facts: Facts) -> Iterator[Finding]:
    """Say who is missing at the two sites."""
    for site, needed, severity in (
        (facts.target, ("recovery", "replication"), "error"),
        (facts.source, ("replication",), "warning"),
    ):
        level: Severity = "error" if severity == "error" else "warning"
        online = [node for node in site.nodes if node.online]
        if not site.nodes:
            yield finding(
                "site-no-node",
                level,
                site.name,
                f"site {site.name!r} has no node",
                "`farshore node add NAME --site ...`",
            )
        elif not online:
            yield finding(
                "site-offline", level, site.name, f"no node of site {site.name!r} answers", "`farshore node start`"
            )
        for role in needed if online else ():
            if not any(role in node.roles for node in online):
                yield finding(
                    "role-missing",
                    level,
                    site.name,
                    f"no node of site {site.name!r} that answers has the role {role!r}",
                    "Give the role to a node, or start the one that has it.",
                )
        for node in site.nodes:
            if node.certificate_s is not None and node.certificate_s < CERTIFICATE_S:
                over = node.certificate_s <= 0
                yield finding(
                    "certificate-expired" if over else "certificate-ends",
                    level if over else "warning",
                    node.name,
                    f"the certificate of node {node.name!r} "
                    + ("has ended" if over else f"ends in {format_duration(node.certificate_s)}"),
                    "Look at the node's log; enrol it again with a new token if it cannot renew it.",
                )
            if not node.online and online:
                yield finding(
                    "node-offline", "warning", node.name, f"node {node.name!r} does not answer", "`farshore node start`"
                )
        yield from site.findings
    pool = facts.target.pool
    able = [node for node in facts.target.nodes if "replication" in node.roles]
    if pool is not None and pool.filesystem and pool.filesystem not in _SHARED and len(able) > 1:
        yield finding(
            "pool-on-one-node",
            "warning",
            pool.path,
            f"the pool {pool.path} lies on a node's own disk ({pool.filesystem}): no other node of the site can go on"
            " with its copies, nor recover from them",
            "Put the pool on storage that all nodes of the site reach.",
        )


def room(facts: Facts) -> Iterator[Finding]:
    """Say whether the target's pool is large enough."""
    pool = facts.target.pool
    if pool is None:
        return
    disks = sum(disk.size_bytes for machine in facts.machines for disk in facts_of(machine).disks)
    for verb, need, severity in (
        ("drill", int(disks * DRILL_SHARE), "error"),
        ("failover that is committed", disks, "warning"),
    ):
        if need > pool.free_bytes:
            level: Severity = "error" if severity == "error" else "warning"
            yield finding(
                f"pool-too-small-for-{verb.split()[0]}",
                level,
                pool.path,
                f"a {verb} may take {format_size(need)}; the pool has {format_size(pool.free_bytes)} free",
                "Make the pool larger, keep fewer checkpoints, or recover fewer machines at once.",
            )


def quotas(facts: Facts) -> Iterator[Finding]:
    """Say whether the provider lets the account have the machines of the plan beside those that it has."""
    quota = facts.target.quota
    if quota is None:
        return
    cpus = sum(facts.plan.machine(machine.name).recovery.cpus or facts_of(machine).cpus for machine in facts.machines)
    for what, need, used, most in (
        ("machines", len(facts.machines), quota.machines_used, quota.machines),
        ("cpus", cpus, quota.cpus_used, quota.cpus),
    ):
        if most is not None and used + need > most:
            yield finding(
                f"quota-{what}",
                "error",
                facts.target.name,
                f"the plan needs {need} {what} at {facts.target.name!r}; of the {most} that the account may have"
                f" {max(0, most - used)} are left",
                "Ask the provider for a larger quota, or remove what is not needed there.",
            )


def groups(facts: Facts) -> Iterator[Finding]:
    """Name the groups whose disks cannot all be written at once, so that no checkpoint of them is ever sealed."""
    most = facts.target.limits.drafts
    if most is None:
        return
    disks = {machine.name: len(facts_of(machine).disks) for machine in facts.machines}
    if facts.plan.consistency == "group":
        disks = {facts.plan.name: sum(disks.values())}
    for name, number in disks.items():
        if number > most:
            yield finding(
                "group-too-large",
                "error",
                name,
                f"{name!r} has {number} disks in one consistency group; the account of site {facts.target.name!r} may"
                f" write {most} at once",
                "Split the plan, or leave disks out: `consistency: machine` makes a group of each machine.",
            )


def bounds(facts: Facts) -> Iterator[Finding]:
    """Name disks that are too large for the target's provider, and types of machines that it does not have there."""
    limits, site = facts.target.limits, facts.target.name
    for machine in facts.machines:
        for disk in facts_of(machine).disks:
            if limits.disk_bytes is not None and disk.size_bytes > limits.disk_bytes:
                yield finding(
                    "disk-too-large",
                    "error",
                    f"{machine.name}/{disk.disk_id}",
                    f"disk {disk.disk_id!r} of {machine.name!r} has {format_size(disk.size_bytes)}; a disk at {site!r}"
                    f" has {format_size(limits.disk_bytes)} at most",
                    "Leave the disk out of the plan, or split it.",
                )
        # Where a machine comes home it gets what it has there, not what the plan says.
        wanted = facts.plan.machine(machine.name).recovery.instance_type if site == facts.plan.target_site else None
        if wanted and limits.instance_types is not None and wanted not in limits.instance_types:
            yield finding(
                "instance-type-not-offered",
                "error",
                machine.name,
                f"site {site!r} has no instance type {wanted!r}, which the plan names for {machine.name!r}",
                "Name another one in the plan with recovery.instance_type, or leave it out.",
            )
