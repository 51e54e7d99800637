"""What is done in a recovered guest before it is switched on: checks, fixes, addresses, names; and its names in DNS."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from farshore.model.base import Duration, Model, Port, Report
from farshore.model.machine import Finding

Purpose = Literal["drill", "failover", "failback", "migration"]
#: The name of a machine inside itself (RFC 1123 section 2.1), without its domain.
Hostname = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?$")]
#: The name of a secret of the node.
SecretName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
#: A name in DNS, relative to a zone or whole.
DnsName = Annotated[
    str,
    StringConstraints(
        pattern=r"^(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?$",
        max_length=253,
    ),
]


def _switch(value: Any) -> Any:
    """Read what YAML 1.1 makes of ``on`` and ``off``."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class GuestPolicy(Model):
    """What is looked at and repaired in a guest's disks, before it is switched on."""

    checks: Annotated[Literal["on", "off"], BeforeValidator(_switch)] = Field(
        "on", description="off: the guest is not looked at; addresses and names that the plan gives are still set"
    )
    stop_on: Literal["error", "warning", "never"] = Field(
        "error", description="the least finding that keeps the machine from being switched on"
    )
    fix: bool = Field(default=True, description="repair what can be, on the recovered machine's own layer")
    convert: Literal["off", "virt-v2v"] = Field(
        "off", description="virt-v2v: have virt-v2v-in-place put in the drivers of the target's platform"
    )


class GuestNetwork(Model):
    """How machines are addressed in a network at the target."""

    subnet: IPv4Network
    gateway: IPv4Address | None = None
    dns: tuple[IPv4Address, ...] = Field((), max_length=8)

    @model_validator(mode="after")
    def _gateway_is_near(self) -> Self:
        if self.gateway is not None and self.gateway not in self.subnet:
            raise ValueError(f"gateway: {self.gateway} is not in {self.subnet}")
        return self


class Dns(Model):
    """Where recovered machines are entered under their names (RFC 2136); never by a drill."""

    server: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:-]+$")] = Field(
        description="name or address of the zone's primary server, as the recovery node reaches it"
    )
    port: Port = 53
    zone: DnsName
    reverse_zone: DnsName | None = Field(None, description="zone of the PTR records; none are written without it")
    key: SecretName | None = Field(
        None, description="secret of the node that holds the TSIG key as NAME:BASE64 or ALGORITHM:NAME:BASE64"
    )
    ttl: Duration = Field(60.0, ge=1, le=86400)
    timeout: Duration = Field(30.0, gt=0, le=600)


class GuestDisk(Report):
    """One disk of a machine as it is plugged in at the target."""

    disk_id: str
    bus: str = "virtio"
    boot: bool = False


class GuestNic(Report):
    """One interface at the target. ``address`` None: none was chosen.

    ``source_mac`` is what the guest knows it by, ``known`` are addresses that were seen at it.
    """

    mac: str
    source_mac: str = ""
    model: str = "virtio"
    address: str | None = None
    prefix: int | None = Field(None, ge=0, le=32)
    gateway: str | None = None
    dns: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


class MachinePrepareParams(Report):
    """Look into a machine that was made and is off; repair, readdress and rename it on its own writable layers.

    The node that made it adds what it has become: ``platform`` is where it runs, ``crossed`` that its devices are
    others than at its source.
    """

    machine_id: str
    name: str
    purpose: Purpose
    firmware: Literal["bios", "uefi"] = "bios"
    disks: tuple[GuestDisk, ...] = ()
    nics: tuple[GuestNic, ...] = ()
    hostname: str | None = None
    policy: GuestPolicy = GuestPolicy()
    platform: str = ""
    crossed: bool = False
    epoch: int = 0


class GuestChange(Report):
    """One thing that was changed in a guest."""

    what: str
    detail: str = ""


class MachinePrepareResult(Report):
    """What was found and done. ``stopped`` says why the machine must not be switched on; empty: it may."""

    machine_id: str
    system: str = ""
    findings: tuple[Finding, ...] = ()
    changes: tuple[GuestChange, ...] = ()
    stopped: str = ""
    seconds: float = 0.0


class DnsRecord(Report):
    """A name and the address that it is to have."""

    name: str
    address: str


class DnsUpdateParams(Report):
    """Give names their new addresses."""

    dns: Dns
    records: tuple[DnsRecord, ...]
    epoch: int = 0


class DnsUpdateResult(Report):
    """What was sent, as ``zone: name type value``, and the findings of what could not be."""

    updated: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


_RANK: Final = {"info": 0, "warning": 1, "error": 2}


def stopping(findings: tuple[Finding, ...], policy: GuestPolicy) -> str:
    """Return why ``policy`` keeps a machine with these findings from being switched on; empty if it does not."""
    if policy.stop_on == "never":
        return ""
    grave = [found for found in findings if _RANK[found.severity] >= _RANK[policy.stop_on]]
    return "; ".join(f"{found.message} [{found.code}]" for found in grave)
