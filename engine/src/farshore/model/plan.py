"""The protection plan: the unit of policy, written by people as YAML, kept in git.

One document describes one plan. Durations are ``30s``, ``15m``, ``4h``; sizes ``8MiB``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from farshore.model import schedule
from farshore.model.base import Duration, Model, Name, Size
from farshore.model.guest import Dns, DnsName, GuestNetwork, GuestPolicy, Hostname
from farshore.model.hooks import Digest, Hooks, PartHooks
from farshore.model.link import Bandwidth
from farshore.model.probe import AnsibleProbe, ConsoleProbe, GuestAgentProbe, HttpProbe, SshProbe, TcpProbe, WinRmProbe
from farshore.units import INTERMEDIATE_CHECKPOINT_WINDOW, PER_DISK_WINDOW, WINDOW_LEVELS

Purpose = Literal["drill", "failover", "failback", "migration"]
#: What may need approval.
Verb = Literal["drill", "failover", "failback", "migrate", "reprotect", "retire"]
Consistency = Literal["machine", "group", "application"]
RecoverySource = Literal["current", "captured"]
#: As platforms name the disks of a machine.
DiskId = Annotated[str, StringConstraints(min_length=1, max_length=128)]


Probe = Annotated[
    TcpProbe | HttpProbe | ConsoleProbe | SshProbe | WinRmProbe | GuestAgentProbe | AnsibleProbe,
    Field(discriminator="type"),
]


class Plug(Model):
    """Where one interface of a machine is plugged in for a purpose, and its address there."""

    network: Name | None = Field(
        None, description="an existing network at the site that it goes to; default: as the plan maps its network"
    )
    address: IPv4Address | None = Field(None, description="its address there; default: none is chosen for it")


class DiskSettings(Model):
    """How a disk is attached at the target."""

    bus: Literal["virtio", "scsi", "sata", "ide"] | None = Field(
        None, description="on KVM, such as sata for a guest without drivers of virtio; default: the one that it had"
    )


class RecoverySettings(Model):
    """What a machine gets at the target; what is not said is as it was at the source."""

    cpus: int | None = Field(None, ge=1)
    memory: Size | None = Field(None, ge=16 << 20)
    instance_type: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9-]*\.[a-z0-9-]+$",
        description="at a cloud, such as m6i.large; default: the one that it had there, else the smallest that fits",
    )
    firmware: Literal["bios", "uefi"] | None = Field(None, description="what starts it; default: as at the source")
    disks: dict[DiskId, DiskSettings] = Field({}, description="settings of single disks, by their ids at the source")
    addresses: dict[Purpose, IPv4Address] = Field(
        {}, description="address per purpose: handed out by DHCP, and written into guests that have a fixed one"
    )
    networks: dict[Name, dict[Purpose, Plug]] = Field(
        {},
        description="network and address of single interfaces, by the network that they are in at the source and by"
        " purpose; `addresses` is then for the first of the others",
    )
    hostname: Hostname | None = Field(
        None, description="the machine's own name after a failover, failback or migration"
    )
    mac: Literal["keep", "new"] = Field("keep", description="the hardware addresses of its interfaces")
    bios_id: Literal["keep", "new"] = Field("keep", description="the UUID that its firmware tells")
    dns: tuple[DnsName, ...] = Field((), description="names that get its address where the plan has `dns`")

    def plug(self, network: str, purpose: Purpose) -> Plug:
        """Return what is said about the interface that is in ``network`` at the source."""
        return self.networks.get(network, {}).get(purpose, _AS_MAPPED)

    def chosen(self) -> Iterator[tuple[str, Purpose, IPv4Address, Name | None]]:
        """Yield each address that is named: its key, the purpose, and the interface's network where one is named."""
        for purpose, address in self.addresses.items():
            yield f"addresses.{purpose}", purpose, address, None
        for network, purposes in self.networks.items():
            for purpose, plug in purposes.items():
                if plug.address is not None:
                    yield f"networks.{network}.{purpose}.address", purpose, plug.address, network


_AS_MAPPED: Final = Plug()


class Quiesce(Model):
    """What runs in a machine around the freeze of an application-consistent point; nothing does unless named here.

    Both are commands with their arguments, run by the guest agent without a shell. ``after`` runs once ``before`` was
    tried, whatever came of it.
    """

    before: tuple[str, ...] = Field(
        (), description="run before the file systems are frozen, such as [/usr/local/bin/x]"
    )
    after: tuple[str, ...] = Field((), description="run after they were thawed")
    timeout: Duration = Field(30.0, gt=0, le=300, description="for each of the two")


class MachinePlan(Model):
    """One machine of the plan."""

    name: Name = Field(description="the machine's name or id at the source site")
    depends_on: tuple[Name, ...] = Field((), description="machines whose probes must be green first")
    recovery: RecoverySettings = RecoverySettings()
    guest: GuestPolicy = GuestPolicy()
    probes: tuple[Probe, ...] = ()
    quiesce: Quiesce = Quiesce()
    hooks: PartHooks = Field({}, description="what is done before the machine starts, and when its probes are green")
    seed: dict[str, str] = Field(
        {},
        description="image in the target's pool per disk id, such as {vda: seeds/db.raw}; the first copy sends only"
        " what differs from it",
    )

    @field_validator("seed")
    @classmethod
    def _seeds_are_paths(cls, value: dict[str, str]) -> dict[str, str]:
        for disk, path in value.items():
            if not path or "\0" in path or ".." in path.split("/") or path.startswith("machine:"):
                raise ValueError(f"{disk}: {path!r} is no path below the pool; write it as seeds/db.raw")
        return value


class BootGroup(Model):
    """Machines that start together; the next group starts when all their probes are green."""

    name: Name
    machines: tuple[Name, ...] = Field(min_length=1)
    critical: bool = Field(
        default=True, description="a failure halts the run; else the others go on and it ends partial"
    )
    delay: Duration = Field(
        0.0, ge=0, description="pause after the groups before have settled, for what no probe can tell"
    )
    hooks: PartHooks = Field({}, description="what is done before the group's machines start, and when all are green")


class DrillNetwork(Model):
    """An isolated network that a drill makes for itself and removes."""

    subnet: IPv4Network = Field(
        description="its addresses; never routed. On KVM no other network of the host may have them"
    )


class NetworkMapping(Model):
    """Where the machines that sit in one network at the source are plugged in at the target."""

    source: Name
    drill: DrillNetwork
    failover: Name = Field(description="an existing network at the target site")
    guest: dict[Purpose, GuestNetwork] = Field(
        {}, description="subnet, gateway and name servers for guests with a fixed address, per purpose"
    )
    failback: Name | None = Field(
        None, description="an existing network at the source site; default: the one that the machine was in before"
    )
    migration: Name | None = Field(
        None, description="an existing network at the target site; default: that of failover"
    )


class Limits(Model):
    """How much of a run happens at once."""

    create: int | None = Field(None, ge=1, description="machines that are being made")
    start: int | None = Field(None, ge=1, description="machines between their power-on and green probes")


class Approval(Model):
    """Runs that wait until people other than the one who ordered them agree."""

    verbs: tuple[Verb, ...] = Field(min_length=1)
    people: Literal[1, 2] = Field(1, description="so many, each with a token of their own")
    within: Duration = Field(
        86400.0, ge=60, description="a run that was not approved by then has failed, and is ordered again"
    )


class Shutdown(Model):
    """How a planned failover stops a machine at the source."""

    timeout: Duration = Field(120.0, gt=0)
    on_timeout: Literal["abort", "power_off"] = "abort"


class DrillPolicy(Model):
    """When a drill is run by itself, and from what."""

    schedule: str | None = Field(
        None, description="`every 7d`, or five fields as cron has them, in UTC: `30 4 * * sun`; default: never"
    )
    checkpoint: Literal["latest", "latest_clean"] = "latest"

    @field_validator("schedule")
    @classmethod
    def _is_a_schedule(cls, value: str | None) -> str | None:
        if value is not None:
            schedule.parse(value)
        return value


class Retention(Model):
    """Which checkpoints are kept: the newest ones, and the last of each of the newest hours, days, weeks and months.

    Times are UTC. Pinned, held and used ones stay beside these; so does the newest that is sound and the newest without
    a sign of encryption, and never fewer than two are left.
    """

    count: int = Field(8, ge=1, le=120, description="the newest so many")
    hourly: int = Field(0, ge=0, le=120, description="the last one of each of so many hours that have any")
    daily: int = Field(0, ge=0, le=120, description="the last one of each of so many days that have any")
    weekly: int = Field(0, ge=0, le=120, description="the last one of each of so many weeks (ISO 8601) that have any")
    monthly: int = Field(0, ge=0, le=120, description="the last one of each of so many months that have any")
    max_age: Annotated[Duration, Field(ge=3600)] | None = Field(
        None, description="older ones go whatever the other rules say, such as 90d"
    )
    max_chain: int = Field(
        32, ge=4, le=128, description="points of a group that may hang together; thinned before that, an alarm at it"
    )

    @model_validator(mode="after")
    def _fits_the_chain(self) -> Self:
        wanted = self.count + self.hourly + self.daily + self.weekly + self.monthly
        if wanted > self.max_chain:
            raise ValueError(
                f"these rules may keep {wanted} checkpoints, more than max_chain: {self.max_chain}; keep fewer, or"
                f" write max_chain: {wanted} and let reading old points become slower"
            )
        return self


class Retire(Model):
    """What becomes of the machines that a failover or a migration leaves behind: they rest fenced, with their disks."""

    old_primaries: Literal["keep", "delete"] = Field(
        "keep",
        description="delete: with their disks, by itself, once the change of sites is committed and `after` is over;"
        " not those that may hold what is nowhere else. Until then, and with keep, by `farshore retire`",
    )
    after: Annotated[Duration, Field(ge=0)] = Field(7 * 86400.0, description="counted from the commit, such as 14d")


class Transport(Model):
    """The data path's settings, by the names that the field uses."""

    connections: Annotated[int, Field(ge=1, le=32)] | Literal["auto"] = Field(
        "auto", description="connections between the two nodes; auto: by the measured round-trip time"
    )
    per_disk_window: Size = Field(
        PER_DISK_WINDOW, ge=1 << 20, le=64 << 20, description="bytes in flight per disk at the start of a cycle"
    )
    window_levels: tuple[Size, ...] = Field(
        WINDOW_LEVELS,
        min_length=1,
        description="windows that a disk may move between; a per_disk_window that is none of them stays as it is",
    )
    intermediate_checkpoint_window: Size = Field(INTERMEDIATE_CHECKPOINT_WINDOW, ge=1 << 20)
    compression: Literal["auto", "off"] = Field("auto", description="auto: where it pays, by trial per disk")
    audit_fraction: float = Field(
        0.02,
        ge=0,
        le=1,
        description="share of the leaves without a reported change that each cycle compares with the source; 0: none",
    )
    bandwidth: Bandwidth = Field(Bandwidth(), description="what all cycles of the plan together may take")


class Plan(Model):
    """A protection plan."""

    name: Name
    description: str = ""
    source_site: Name
    target_site: Name
    rpo: Duration = Field(900.0, description="how much data, as time, may be lost; a cycle starts at least this often")
    rto: Duration | None = Field(
        None, gt=0, description="how soon each machine has to be up; reports say whether it was"
    )
    consistency: Consistency = Field(
        "machine",
        description="group: one common instant over all machines of the plan, by a short pause; application: their file"
        " systems frozen by the guest agent too",
    )
    machines: tuple[MachinePlan, ...] = Field(min_length=1)
    boot_groups: tuple[BootGroup, ...] = Field((), description="default: one group of all, ordered by depends_on")
    networks: tuple[NetworkMapping, ...] = ()
    shutdown: Shutdown = Shutdown()
    limits: Limits = Limits()
    approval: Approval | None = Field(
        None, description="one that is weaker than before counts once it was approved as the one before asks"
    )
    commit: Literal["auto", "manual"] = Field(
        "auto", description="manual: a failover can be rolled back until somebody commits it"
    )
    drill: DrillPolicy = DrillPolicy()
    retire: Retire = Retire()
    retention: Retention = Retention()
    recovery_settings: RecoverySource = Field(
        "current", description="captured: recover with the settings that the plan had when the checkpoint was made"
    )
    transport: Transport = Transport()
    dns: Dns | None = Field(
        None, description="where recovered machines are entered under their names; never by a drill"
    )
    hooks: Hooks = Field({}, description="what is done before a verb begins, when it is through, and always at its end")
    bundle: Digest | None = Field(None, description="the files of the hooks; filled in by what sends the plan")

    @field_validator("rpo")
    @classmethod
    def _rpo_is_reachable(cls, value: float) -> float:
        if value < 10:
            raise ValueError("an RPO of less than 10 seconds cannot be kept by cycles; write for example 15m")
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.source_site == self.target_site:
            raise ValueError(f"target_site: {self.target_site!r} is the source site too; name another site")
        names = [machine.name for machine in self.machines]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"machines[{index}].name: {name!r} is listed twice; remove one")
        for index, machine in enumerate(self.machines):
            for other in machine.depends_on:
                if other not in names:
                    raise ValueError(f"machines[{index}].depends_on: {other!r} is no machine of this plan")
        _refuse_cycle({machine.name: machine.depends_on for machine in self.machines})
        seen: dict[str, str] = {}
        for index, group in enumerate(self.boot_groups):
            for member in group.machines:
                if member not in names:
                    raise ValueError(f"boot_groups[{index}].machines: {member!r} is no machine of this plan")
                if member in seen:
                    raise ValueError(f"boot_groups[{index}].machines: {member!r} is in group {seen[member]!r} already")
                seen[member] = group.name
        if self.boot_groups:
            missing = [name for name in names if name not in seen]
            if missing:
                raise ValueError(f"boot_groups: {', '.join(missing)} is in no group; add it to one")
            order = {member: index for index, group in enumerate(self.boot_groups) for member in group.machines}
            for index, machine in enumerate(self.machines):
                for other in machine.depends_on:
                    if order[other] > order[machine.name]:
                        raise ValueError(
                            f"machines[{index}].depends_on: {other!r} boots in a later group than {machine.name!r}"
                        )
        sources = [mapping.source for mapping in self.networks]
        for index, source in enumerate(sources):
            if source in sources[:index]:
                raise ValueError(f"networks[{index}].source: {source!r} is mapped twice")
            subnet = self.networks[index].drill.subnet
            near = next((item for item in self.networks[:index] if item.drill.subnet.overlaps(subnet)), None)
            if near is not None:
                raise ValueError(
                    f"networks[{index}].drill.subnet: {subnet} overlaps with that of {near.source!r}"
                    f" ({near.drill.subnet}); a drill has both at once"
                )
        self._refuse_addresses()
        return self

    def _refuse_addresses(self) -> None:
        """Raise ValueError for an address or a network of a machine that cannot be meant."""
        subnets = {mapping.source: mapping.drill.subnet for mapping in self.networks}
        taken: dict[tuple[Purpose, IPv4Address], str] = {}
        for index, machine in enumerate(self.machines):
            for source, purposes in machine.recovery.networks.items():
                where = f"machines[{index}].recovery.networks.{source}"
                if subnets and source not in subnets:
                    raise ValueError(f"{where}: the plan maps no network {source!r}; add it to `networks`")
                if "drill" in purposes and purposes["drill"].network is not None:
                    raise ValueError(f"{where}.drill.network: a drill makes its own networks; leave it out")
            for key, purpose, address, source_of in machine.recovery.chosen():
                where = f"machines[{index}].recovery.{key}"
                near = [subnets[source_of]] if source_of in subnets else list(subnets.values())
                if kind := _not_a_machines(address):
                    raise ValueError(f"{where}: {address} is a {kind} address; no machine can have it")
                if purpose == "drill" and near and not any(address in subnet for subnet in near):
                    whose = "the plan" if source_of is None else repr(source_of)
                    listed = ", ".join(map(str, near))
                    raise ValueError(f"{where}: {address} is in no drill subnet of {whose} ({listed})")
                if purpose == "drill" and (reason := _reserved(address, near)):
                    raise ValueError(f"{where}: {address} is {reason}; choose another")
                owner = taken.get((purpose, address))
                if owner is not None:
                    raise ValueError(f"{where}: {address} is the address of {owner!r} already; choose another")
                taken[purpose, address] = machine.name

    def machine(self, name: str) -> MachinePlan:
        """Return the machine called ``name``; KeyError if the plan has none."""
        return self.machines[self.places[name]]

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each machine is in :attr:`machines`, by its name: a run asks for each of thousands again and again."""
        return {machine.name: place for place, machine in enumerate(self.machines)}

    def groups(self) -> tuple[BootGroup, ...]:
        """Return the boot groups, one of all machines where none are written."""
        return self.boot_groups or (BootGroup(name="all", machines=tuple(machine.name for machine in self.machines)),)


def _not_a_machines(address: IPv4Address) -> str | None:
    """Return what kind of address this is if no machine can be reached at it from another one."""
    kinds = {
        "loopback": address.is_loopback,
        "link-local": address.is_link_local,
        "multicast": address.is_multicast,
        "unspecified": address.is_unspecified,
    }
    return next((kind for kind, found in kinds.items() if found), None)


def _reserved(address: IPv4Address, subnets: list[IPv4Network]) -> str | None:
    """Return what an address of a drill network is kept for, None if a machine may have it."""
    for subnet in subnets:
        if address == subnet.network_address + 1:
            return f"the hypervisor's own in {subnet}"
        if address in subnet and address in {subnet.network_address, subnet.broadcast_address}:
            return f"no host's address in {subnet}"
    return None


def _refuse_cycle(edges: dict[str, tuple[str, ...]]) -> None:
    """Raise ValueError that shows the cycle if ``edges`` (machine → what it depends on) has one."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            cycle = " → ".join((*path[path.index(name) :], name))
            raise ValueError(f"machines.depends_on: the machines wait for each other: {cycle}; remove one dependency")
        if name in done:
            return
        for other in edges[name]:
            visit(other, (*path, name))
        done.add(name)

    for name in edges:
        visit(name, ())
