"""Whether recovery nodes have what hooks, probes and guests need, and where the control plane stands. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

from farshore.model.hooks import Hook, Hooks
from farshore.model.machine import Finding
from farshore.model.plan import Plan, Purpose
from farshore.model.probe import AnsibleProbe, SshProbe, WinRmProbe
from farshore.recovery.readiness.facts import Facts, NodeState, SiteState, finding

Side = Literal["source", "target"]
#: What may be ordered next, by what leads to the other site: those verbs' hooks have to work.
_VERBS: Final[dict[Purpose, tuple[str, ...]]] = {
    "failover": ("drill", "failover", "migrate", "reprotect"),
    "failback": ("drill", "failback", "reprotect"),
}


def kits(facts: Facts) -> Iterator[Finding]:
    """Say what the recovery nodes lack, and whether the control plane is lost together with the source site."""
    yield from _placement(facts)
    hooks = list(_hooks(facts.plan, facts.purpose))
    played: set[Side] = {hook.at for _, hook in hooks if hook.file is not None}
    if any(isinstance(probe, AnsibleProbe) for machine in facts.plan.machines for probe in machine.probes):
        played.add("target")
    named = _named(facts.plan, hooks)
    for side, site in (("target", facts.target), ("source", facts.source)):
        able = [node for node in site.nodes if node.online and "recovery" in node.roles]
        # A source site that is lost plays no hook, and an unplanned failover does not ask for it.
        if side == "source" and able and not played & {"source"}:
            continue
        for node in able:
            yield from _node(facts, node, plays=side in played, looks=side == "target")
        yield from _secrets(site, able, {name: why for (at, name), why in named.items() if at == side})


def _placement(facts: Facts) -> Iterator[Finding]:
    there = {node.kit.host for node in facts.source.nodes if node.kit is not None}
    elsewhere = {node.kit.host for node in facts.target.nodes if node.kit is not None}
    shared = bool(facts.control_host) and facts.control_host in there - elsewhere
    if shared or facts.control_machine:
        where = f"in machine {facts.control_machine!r}" if facts.control_machine else "on the host of a node"
        yield finding(
            "control-plane-shares-fate",
            "warning",
            facts.source.name,
            f"the control plane runs {where} of site {facts.source.name!r}: it is lost together with what it protects",
            f"Run it at site {facts.target.name!r} or a third one: there, `farshore up --recover-from"
            f" {facts.target.name}` with the recovery key.",
        )


def _node(facts: Facts, node: NodeState, *, plays: bool, looks: bool) -> Iterator[Finding]:
    if node.kit is None:
        return
    if plays and node.kit.no_hooks:
        yield finding(
            "hooks-not-playable",
            "warning",
            node.name,
            f"node {node.name!r} cannot play the plan's files of tasks: {node.kit.no_hooks}",
            "The role replication_node makes it ready for them.",
        )
    if looks and node.kit.lacks and any(machine.guest.checks == "on" for machine in facts.plan.machines):
        yield finding(
            "guest-tools-missing",
            "warning",
            node.name,
            f"node {node.name!r} lacks what checks of guests may need: {', '.join(node.kit.lacks)}",
            "The role replication_node installs the packages; or set guest.checks: off.",
        )


def _secrets(site: SiteState, nodes: list[NodeState], named: dict[str, str]) -> Iterator[Finding]:
    known = [(node.name, frozenset(node.kit.secrets)) for node in nodes if node.kit is not None]
    for name, why in sorted(named.items()):
        without = [node for node, secrets in known if name not in secrets]
        if not without:
            continue
        nobody = len(without) == len(nodes)
        yield finding(
            "secret-missing" if nobody else "secret-not-everywhere",
            "warning",
            name,
            f"{'no recovery node' if nobody else 'not every recovery node'} of site {site.name!r} has the secret"
            f" {name!r}, which {why} names" + ("" if nobody else f"; {', '.join(without)} lacks it"),
            "Put it into the node's folder of secrets, mode 0600: `replication_node_secrets` of the role does.",
        )


def _hooks(plan: Plan, purpose: Purpose) -> Iterator[tuple[str, Hook]]:
    verbs = _VERBS[purpose]
    levels: list[tuple[str, Hooks]] = [("", plan.hooks)]
    levels += [(f" of group {group.name}", group.hooks) for group in plan.boot_groups]
    levels += [(f" of machine {machine.name}", machine.hooks) for machine in plan.machines]
    for where, hooks in levels:
        for moment, hook in hooks.items():
            if moment.partition("_")[2] in verbs:
                yield f"hook {moment}{where}", hook


def _named(plan: Plan, hooks: list[tuple[str, Hook]]) -> dict[tuple[Side, str], str]:
    """Return who names each secret, by the site whose nodes have to have it."""
    found: dict[tuple[Side, str], str] = {}
    for where, hook in hooks:
        for name in hook.secrets:
            found.setdefault((hook.at, name), where)
    for machine in plan.machines:
        for probe in machine.probes:
            names: tuple[str | None, ...] = ()
            if isinstance(probe, AnsibleProbe):
                names = probe.secrets
            elif isinstance(probe, SshProbe):
                names = (probe.key, probe.password)
            elif isinstance(probe, WinRmProbe):
                names = (probe.password,)
            for secret in names:
                if secret:
                    found.setdefault(("target", secret), f"probe {probe.type} of machine {machine.name}")
    if plan.dns is not None and plan.dns.key is not None:
        found.setdefault(("target", plan.dns.key), "dns.key")
    return found
