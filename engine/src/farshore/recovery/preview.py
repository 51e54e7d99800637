"""What a drill or a failover makes: one computation for the preview and for the real run. Pure.

Machine facts (disks, firmware, interfaces, sizes) come from the checkpoint, choices about the target (networks,
addresses, sizes) from the plan as it is now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from farshore.errors import Permanent
from farshore.model.checkpoint import Manifest
from farshore.model.machine import MachineFacts, NicFacts, disk_key, same_disks
from farshore.model.plan import Plan, Purpose
from farshore.model.task import DiskSpec, MachineCreateParams, NetworkCreateParams, NicSpec
from farshore.recovery.plan import Order
from farshore.recovery.readdress.preparation import bios_id, new_mac


@dataclass(frozen=True, slots=True)
class Choice:
    """Where one machine of a plan comes back from.

    ``home`` is the machine as it was at the plan's source site, where it does not come from there: on the way back it
    gets the networks, addresses and sizes again that it had.
    """

    name: str
    machine_id: str
    manifest: Manifest
    home: MachineFacts | None = None

    @property
    def facts(self) -> MachineFacts:
        """The machine as it was when the point was taken."""
        for facts in self.manifest.machines:
            if facts.machine_id == self.machine_id:
                return facts
        raise Permanent(
            f"checkpoint {self.manifest.checkpoint_id} does not hold machine {self.name!r}",
            code="machine-not-in-checkpoint",
            hint="Choose another checkpoint, or replicate first.",
            machine=self.name,
        )


def networks(plan: Plan, choices: list[Choice], names: Mapping[str, str], tag: str) -> list[NetworkCreateParams]:
    """Return the isolated networks of a drill; ``names`` maps a source network to the name of its drill network."""
    made = []
    for mapping in plan.networks:
        hosts = {
            nic.mac: address
            for choice in choices
            for nic, network, address in _plugs(plan, choice, "drill")
            if network == mapping.source and address is not None
        }
        if any(network == mapping.source for choice in choices for _, network, _ in _plugs(plan, choice, "drill")):
            made.append(
                NetworkCreateParams(tag=tag, name=names[mapping.source], subnet=str(mapping.drill.subnet), hosts=hosts)
            )
    return made


def machine(
    plan: Plan, choice: Choice, purpose: Purpose, *, tag: str, name: str, epoch: int, drill_networks: Mapping[str, str]
) -> MachineCreateParams:
    """Return the order for one machine at the target.

    Raises:
        Permanent: the checkpoint lacks a disk of the machine, or an interface's network is not mapped.
    """
    facts = choice.facts
    settings = plan.machine(choice.name).recovery
    points = {disk.disk_key: disk for disk in choice.manifest.disks}
    made = facts if choice.home is None else _as_at_home(facts, choice.home)
    disks = []
    for disk, becomes in zip(facts.disks, made.disks, strict=True):
        point = points.get(disk_key(facts.machine_id, disk.disk_id))
        if point is None:
            raise Permanent(
                f"checkpoint {choice.manifest.checkpoint_id} lacks disk {disk.disk_id!r} of machine {choice.name!r}",
                code="disk-not-in-checkpoint",
                hint="Choose another checkpoint, or replicate first.",
                machine=choice.name,
                disk=disk.disk_id,
            )
        disks.append(DiskSpec(disk_id=becomes.disk_id, point=point.point, size_bytes=point.size_bytes))
    nics: list[NicSpec] = []
    for nic, network, address in _plugs(plan, choice, purpose):
        chosen = drill_networks.get(network) if purpose == "drill" else _network(plan, network, purpose)
        if chosen is None:
            raise Permanent(
                f"machine {choice.name!r} is plugged into {network!r}, which the plan does not map",
                code="network-unmapped",
                hint=f"Add an entry with `source: {network}` to networks.",
                machine=choice.name,
            )
        before = facts.nics[len(nics)].mac
        other = before if before.lower() != nic.mac.lower() else ""
        nics.append(NicSpec(mac=nic.mac, network=chosen, address=address, source_mac=other))
    # What a machine was given for the other site is taken back on the way home.
    size = choice.home if purpose == "failback" and choice.home is not None else None
    return MachineCreateParams(
        tag=tag,
        purpose=purpose,
        name=name,
        facts=made,
        cpus=size.cpus if size else settings.cpus or facts.cpus,
        memory_bytes=size.memory_bytes if size else settings.memory or facts.memory_bytes,
        instance_type=size.tags.get("instance_type", "") if size else settings.instance_type or "",
        disks=tuple(disks),
        nics=tuple(nics),
        epoch=epoch,
        bios_id=(bios_id(facts) or bios_id(choice.home or facts)) if settings.bios_id == "keep" else "",
    )


def _as_at_home(facts: MachineFacts, home: MachineFacts) -> MachineFacts:
    """Return a machine with the hardware that it had at home: another platform gave it its own disks and interfaces.

    What it has grown since then is as it is there.
    """
    twins = same_disks(facts, home)
    before = {disk.disk_id: disk for disk in home.disks}
    disks = []
    for disk in facts.disks:
        twin = before.get(twins.get(disk.disk_id, ""))
        changes = {} if twin is None else {"disk_id": twin.disk_id, "bus": twin.bus, "boot": twin.boot}
        disks.append(disk.model_copy(update=changes))
    if len({disk.disk_id for disk in disks}) < len(disks):
        disks = list(facts.disks)
    models = [
        nic.model_copy(update={"model": model}) for nic, model in zip(facts.nics, _models(facts, home), strict=True)
    ]
    machine = {"machine": home.tags["machine"]} if "machine" in home.tags else {}
    return facts.model_copy(update={"disks": tuple(disks), "nics": tuple(models), "tags": {**facts.tags, **machine}})


def _models(facts: MachineFacts, home: MachineFacts) -> Iterator[str]:
    for at, nic in enumerate(facts.nics):
        before = _before(nic, at, home)
        yield nic.model if before is None else before.model


def _before(nic: NicFacts, at: int, home: MachineFacts) -> NicFacts | None:
    """Return the interface that one was at home: the one with its hardware address, else the one in its place."""
    same = next((one for one in home.nics if one.mac.lower() == nic.mac.lower()), None)
    return same or (home.nics[at] if at < len(home.nics) else None)


def address(plan: Plan, name: str, purpose: Purpose) -> str | None:
    """Return the address that a machine gets for ``purpose``, None if the plan names none."""
    chosen = plan.machine(name).recovery.addresses.get(purpose)
    return str(chosen) if chosen is not None else None


def describe(
    orders: list[MachineCreateParams], made: list[NetworkCreateParams], plan: Plan, names: Collection[str]
) -> dict[str, Any]:
    """Return what people and ``--diff`` see of it: networks, machines, the order in which those of ``names`` start."""
    return {
        "networks": [{"name": item.name, "subnet": item.subnet, "hosts": item.hosts} for item in made],
        "machines": [
            {
                "name": order.name,
                "of": order.facts.name,
                "cpus": order.cpus,
                "memory_bytes": order.memory_bytes,
                **({"instance_type": order.instance_type} if order.instance_type else {}),
                "disks": [disk.model_dump() for disk in order.disks],
                "nics": [nic.model_dump() for nic in order.nics],
            }
            for order in orders
        ],
        "order": Order.of(plan).only(names).waves(),
    }


def _network(plan: Plan, network: str, purpose: Purpose) -> str | None:
    """Return where a machine is plugged in that was in ``network`` at the plan's source site; None: nobody said."""
    mapping = next((item for item in plan.networks if item.source == network), None)
    if purpose == "failback":
        return (mapping.failback if mapping is not None else None) or network
    if mapping is None:
        return None
    return (mapping.migration if purpose == "migration" else None) or mapping.failover


def _plugs(plan: Plan, choice: Choice, purpose: Purpose) -> list[tuple[NicFacts, str, str | None]]:
    """Return a machine's interfaces, each with its network at the plan's source site and the address that it gets.

    The plan's one address goes to the first that fits its network. On the way home, without one, an address that was
    changed for the other site is what it was before.
    """
    settings = plan.machine(choice.name).recovery
    wanted = settings.addresses.get(purpose)
    found = list(_at_home(plan, choice))
    index = 0
    if wanted is not None and purpose == "drill":
        subnets = {mapping.source: mapping.drill.subnet for mapping in plan.networks}
        fitting = [at for at, (_, name) in enumerate(found) if name in subnets and wanted in subnets[name]]
        index = fitting[0] if fitting else 0
    changed = "failover" in plan.machine(choice.name).recovery.addresses
    before = [nic.addresses for nic in choice.home.nics] if choice.home is not None and purpose == "failback" else []
    plugs = []
    for at, (nic, network) in enumerate(found):
        address = str(wanted) if wanted is not None and at == index else None
        if wanted is None and changed and at < len(before) and before[at]:
            address = before[at][0]
        if settings.mac == "new" and purpose != "failback":
            nic = nic.model_copy(update={"mac": new_mac(choice.machine_id, nic.mac, purpose)})  # noqa: PLW2901
        plugs.append((nic, network, address))
    return plugs


def _at_home(plan: Plan, choice: Choice) -> Iterator[tuple[NicFacts, str]]:
    """Yield a machine's interfaces with the networks that they are in at the plan's source site.

    Of one that runs elsewhere: those of the interface with its hardware address, else in its place, else of the one
    network that is mapped to where it is now.
    """
    if choice.home is None:
        yield from ((nic, nic.network) for nic in choice.facts.nics)
        return
    for at, nic in enumerate(choice.facts.nics):
        before = _before(nic, at, choice.home)
        if before is not None:
            yield nic.model_copy(update={"mac": before.mac}), before.network
            continue
        sources = [item.source for item in plan.networks if nic.network in {item.failover, item.migration}]
        yield nic, sources[0] if len(sources) == 1 else nic.network
