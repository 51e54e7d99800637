"""Whether there is a network for each interface, and each address is free and of its network. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

from farshore.model.machine import Finding
from farshore.model.plan import Purpose
from farshore.recovery import preview
from farshore.recovery.readiness.facts import Facts, facts_of, finding


def networks(facts: Facts) -> Iterator[Finding]:
    """Say which networks are not there, or not mapped."""
    used = {nic.network for machine in facts.machines for nic in facts_of(machine).nics}
    there = facts.target.networks
    if there is None:
        yield finding(
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
    for machine in facts.plan.machines:
        for own in machine.recovery.networks.values():
            for purpose, plug in own.items():
                if plug.network is not None and (purpose == "failback") == (facts.purpose == "failback"):
                    wanted.setdefault(plug.network, []).append(f"{purpose} of {machine.name}")
    for network, purposes_of in wanted.items():
        if network not in known:
            yield finding(
                "network-missing",
                "error",
                network,
                f"site {facts.target.name!r} has no network {network!r} ({', '.join(purposes_of)})",
                "Make it there, or map another one in the plan.",
            )
        elif not known[network].active:
            yield finding(
                "network-inactive", "warning", network, f"network {network!r} is not active", "Start it at the site."
            )
    if facts.purpose != "failback":
        for network in sorted(used - {mapping.source for mapping in facts.plan.networks}):
            yield finding(
                "network-unmapped",
                "error",
                network,
                f"a machine is plugged into {network!r}, which the plan does not map",
                f"Add an entry with `source: {network}` to networks.",
            )


def addresses(facts: Facts) -> Iterator[Finding]:
    """Say which addresses cannot be had."""
    subnets = {
        network.name: IPv4Network(network.subnet, strict=False)
        for network in facts.target.networks or ()
        if network.subnet and ":" not in network.subnet
    }
    purposes: tuple[Purpose, ...] = ("failback",) if facts.purpose == "failback" else ("failover", "migration")
    for machine in facts.plan.machines:
        for _, purpose, address, source in machine.recovery.chosen():
            if purpose in purposes:
                state = next((one for one in facts.machines if one.name == machine.name), None)
                seen = facts_of(state) if state is not None and purpose != "failback" else None
                plugged = preview.may_get(facts.plan, machine.name, seen, purpose, address, source)
                yield from _outside(subnets, plugged, machine.name, purpose, address)
                yield from _taken(facts, machine.name, purpose, address)
    for purpose in purposes:
        given = [one.name for one in facts.plan.machines if preview.address(facts.plan, one.name, purpose) is not None]
        without = [machine.name for machine in facts.plan.machines if machine.name not in given]
        if given and without:
            yield finding(
                "address-missing",
                "info",
                ", ".join(without),
                f"{', '.join(without)} has no address for {purpose}; {', '.join(given)} has",
                "Write one, unless the network hands one out.",
            )


def _outside(
    subnets: dict[str, IPv4Network], plugged: set[str | None], name: str, purpose: Purpose, address: IPv4Address
) -> Iterator[Finding]:
    ranges = [subnets[network] for network in plugged if network in subnets]
    if ranges and len(ranges) == len(plugged) and not any(address in one for one in ranges):
        yield finding(
            "address-outside",
            "error",
            name,
            f"{address} ({purpose}) of machine {name!r} is not in the network that it will be plugged into"
            f" ({', '.join(sorted(map(str, ranges)))})",
            "Write an address of the network that the plan maps to.",
        )


def _taken(facts: Facts, name: str, purpose: Purpose, address: IPv4Address) -> Iterator[Finding]:
    holder = facts.taken.get((purpose, str(address)))
    if holder is not None:
        yield finding(
            "address-duplicate",
            "error",
            name,
            f"{address} ({purpose}) of machine {name!r} is that of {holder} too",
            "Give one of the two another address.",
        )
    owner = facts.target.addresses.get(str(address))
    if owner is not None and owner != name:
        yield finding(
            "address-in-use",
            "error",
            name,
            f"{address} ({purpose}) of machine {name!r} is in use at {facts.target.name!r} by {owner!r}",
            "Give one of the two another address.",
        )
