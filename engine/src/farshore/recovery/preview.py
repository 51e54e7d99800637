"""What a drill or a failover makes: one computation for the preview and for the real run. Pure.

Machine facts (disks, firmware, interfaces, sizes) come from the checkpoint, choices about the target (networks,
addresses, sizes) from the plan as it is now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from farshore.errors import Permanent
from farshore.model.checkpoint import Manifest
from farshore.model.machine import MachineFacts, disk_key
from farshore.model.plan import Plan, Purpose
from farshore.model.task import DiskSpec, MachineCreateParams, NetworkCreateParams, NicSpec
from farshore.recovery.plan import Order


@dataclass(frozen=True, slots=True)
class Choice:
    """Where one machine of a plan comes back from."""

    name: str
    machine_id: str
    manifest: Manifest

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
            for nic, address in _addressed(plan, choice, "drill")
            if nic.network == mapping.source and address is not None
        }
        if any(nic.network == mapping.source for choice in choices for nic in choice.facts.nics):
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
    disks = []
    for disk in facts.disks:
        point = points.get(disk_key(facts.machine_id, disk.disk_id))
        if point is None:
            raise Permanent(
                f"checkpoint {choice.manifest.checkpoint_id} lacks disk {disk.disk_id!r} of machine {choice.name!r}",
                code="disk-not-in-checkpoint",
                hint="Choose another checkpoint, or replicate first.",
                machine=choice.name,
                disk=disk.disk_id,
            )
        disks.append(DiskSpec(disk_id=disk.disk_id, point=point.point, size_bytes=point.size_bytes))
    mapped = drill_networks if purpose == "drill" else {item.source: item.failover for item in plan.networks}
    nics = []
    for nic, address in _addressed(plan, choice, purpose):
        if nic.network not in mapped:
            raise Permanent(
                f"machine {choice.name!r} is plugged into {nic.network!r}, which the plan does not map",
                code="network-unmapped",
                hint=f"Add an entry with `source: {nic.network}` to networks.",
                machine=choice.name,
            )
        nics.append(NicSpec(mac=nic.mac, network=mapped[nic.network], address=address))
    return MachineCreateParams(
        tag=tag,
        purpose=purpose,
        name=name,
        facts=facts,
        cpus=settings.cpus or facts.cpus,
        memory_bytes=settings.memory or facts.memory_bytes,
        disks=tuple(disks),
        nics=tuple(nics),
        epoch=epoch,
    )


def address(plan: Plan, name: str, purpose: Purpose) -> str | None:
    """Return the address that a machine gets for ``purpose``, None if the plan names none."""
    chosen = plan.machine(name).recovery.addresses.get(purpose)
    return str(chosen) if chosen is not None else None


def describe(orders: list[MachineCreateParams], made: list[NetworkCreateParams], plan: Plan) -> dict[str, Any]:
    """Return what people and ``--diff`` see of it: networks, machines, the order of their start."""
    return {
        "networks": [{"name": item.name, "subnet": item.subnet, "hosts": item.hosts} for item in made],
        "machines": [
            {
                "name": order.name,
                "of": order.facts.name,
                "cpus": order.cpus,
                "memory_bytes": order.memory_bytes,
                "disks": [disk.model_dump() for disk in order.disks],
                "nics": [nic.model_dump() for nic in order.nics],
            }
            for order in orders
        ],
        "order": Order.of(plan).waves(),
    }


def _addressed(plan: Plan, choice: Choice, purpose: Purpose) -> list[tuple[Any, str | None]]:
    """Return a machine's interfaces, the plan's one address given to the first that fits its network."""
    wanted = plan.machine(choice.name).recovery.addresses.get(purpose)
    subnets = {mapping.source: mapping.drill.subnet for mapping in plan.networks}
    nics = list(choice.facts.nics)
    index = 0
    if wanted is not None and purpose == "drill":
        fitting = [
            position for position, nic in enumerate(nics) if nic.network in subnets and wanted in subnets[nic.network]
        ]
        index = fitting[0] if fitting else 0
    return [
        (nic, str(wanted) if wanted is not None and position == index else None) for position, nic in enumerate(nics)
    ]
