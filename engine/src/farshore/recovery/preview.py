"""What a drill or a failover makes: one computation for the preview and for the real run. Pure.

Machine facts (disks, firmware, interfaces, sizes) come from the checkpoint, choices about the target (networks,
addresses, sizes) from the plan as it is now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from farshore.errors import Permanent
from farshore.model.checkpoint import Manifest
from farshore.model.machine import MachineFacts, NicFacts, disk_key, same_disks
from farshore.model.plan import DiskSettings, NetworkMapping, Plan, Purpose, RecoverySettings
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
    made = _as_wanted(facts, settings) if choice.home is None else _as_at_home(facts, choice.home)
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
        chosen = drill_networks.get(network) if purpose == "drill" else network_of(plan, choice.name, network, purpose)
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


def _as_wanted(facts: MachineFacts, settings: RecoverySettings) -> MachineFacts:
    """Return a machine with the firmware and the buses that the plan says for the other site."""
    disks = []
    for disk in facts.disks:
        wanted = settings.disks.get(disk.disk_id, DiskSettings()).bus
        disks.append(disk if wanted is None else disk.model_copy(update={"bus": wanted}))
    return facts.model_copy(update={"disks": tuple(disks), "firmware": settings.firmware or facts.firmware})


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
    hardware = {"disks": tuple(disks), "nics": tuple(models), "firmware": home.firmware}
    return facts.model_copy(update={**hardware, "tags": {**facts.tags, **machine}})


def _models(facts: MachineFacts, home: MachineFacts) -> Iterator[str]:
    for at, nic in enumerate(facts.nics):
        before = _before(nic, at, home)
        yield nic.model if before is None else before.model


def _before(nic: NicFacts, at: int, home: MachineFacts) -> NicFacts | None:
    """Return the interface that one was at home: the one with its hardware address, else the one in its place."""
    same = next((one for one in home.nics if one.mac.lower() == nic.mac.lower()), None)
    return same or (home.nics[at] if at < len(home.nics) else None)


def address(plan: Plan, name: str, purpose: Purpose) -> str | None:
    """Return the address at which a machine is reached that was made for ``purpose``, None if the plan names none."""
    named = (str(address) for _, one, address, _ in plan.machine(name).recovery.chosen() if one == purpose)
    return next(named, None)


def addressed(plan: Plan, name: str, networks: Sequence[str], purpose: Purpose) -> list[IPv4Address | None]:
    """Return the address of each interface, by the networks that they are in at the plan's source site, in order.

    ``addresses`` is for the first one that none is said for alone: in a drill, and where the plan tells subnets, the
    first whose subnet holds it.
    """
    settings = plan.machine(name).recovery
    found = [settings.plug(network, purpose).address for network in networks]
    wanted = settings.addresses.get(purpose)
    free = [at for at, own in enumerate(found) if own is None]
    if wanted is not None and free:
        subnets = {mapping.source: _subnet(mapping, purpose) for mapping in plan.networks}
        near = [at for at in free if (subnet := subnets.get(networks[at])) is not None and wanted in subnet]
        found[(near or free)[0]] = wanted
    return found


def _subnet(mapping: NetworkMapping, purpose: Purpose) -> IPv4Network | None:
    if purpose == "drill":
        return mapping.drill.subnet
    told = mapping.guest.get(purpose)
    return told.subnet if told is not None else None


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
                "firmware": order.facts.firmware,
                "disks": [
                    {**disk.model_dump(), "bus": facts.bus}
                    for disk, facts in zip(order.disks, order.facts.disks, strict=True)
                ],
                "nics": [nic.model_dump() for nic in order.nics],
            }
            for order in orders
        ],
        "order": Order.of(plan).only(names).waves(),
    }


def network_of(plan: Plan, name: str, network: str, purpose: Purpose) -> str | None:
    """Return where a machine's interface is plugged in that is in ``network`` at the plan's source site.

    None: nobody said.
    """
    mapping = next((item for item in plan.networks if item.source == network), None)
    own = plan.machine(name).recovery.plug(network, purpose).network
    if own is not None:
        return own
    if purpose == "failback":
        return (mapping.failback if mapping is not None else None) or network
    if mapping is None:
        return None
    return (mapping.migration if purpose == "migration" else None) or mapping.failover


def may_get(
    plan: Plan,
    name: str,
    facts: MachineFacts | None,
    purpose: Purpose,
    wanted: IPv4Address,
    source: str | None,
) -> set[str | None]:
    """Return the networks that the interface may be plugged into which gets the address ``wanted``.

    ``source``: the network that it is in at the plan's source site, where that is known; ``facts``: the machine as it
    is there; None for both: any network of the plan may be it.
    """
    here = [nic.network for nic in facts.nics] if facts is not None else []
    given = addressed(plan, name, here, purpose)
    if source is not None:
        sources = [source]
    elif wanted in given:
        sources = [here[given.index(wanted)]]
    else:
        sources = [mapping.source for mapping in plan.networks]
    return {network_of(plan, name, one, purpose) for one in sources}


def _plugs(plan: Plan, choice: Choice, purpose: Purpose) -> list[tuple[NicFacts, str, str | None]]:
    """Return a machine's interfaces, each with its network at the plan's source site and the address that it gets.

    On the way home, without one, an address that was changed for the other site is what it was before.
    """
    settings = plan.machine(choice.name).recovery
    found = list(_at_home(plan, choice))
    wanted = addressed(plan, choice.name, [network for _, network in found], purpose)
    there = addressed(plan, choice.name, [network for _, network in found], "failover")
    before = [nic.addresses for nic in choice.home.nics] if choice.home is not None and purpose == "failback" else []
    plugs = []
    for at, (nic, network) in enumerate(found):
        address = str(wanted[at]) if wanted[at] is not None else None
        if address is None and any(there) and at < len(before) and before[at]:
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
