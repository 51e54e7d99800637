"""What a configuration says of an interface, what it is to say, and which interface of the machine it means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Protocol

from farshore.model.guest import GuestNic


@dataclass(frozen=True, slots=True)
class Found:
    """One interface in one file. ``name`` is what the configuration calls it; ``mac`` where it is told, lower case."""

    name: str
    mac: str = ""
    addresses: tuple[IPv4Interface, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """What an interface is to have. Without a gateway it has none; without name servers it keeps those it had."""

    address: IPv4Interface
    gateway: IPv4Address | None = None
    dns: tuple[IPv4Address, ...] = ()


class Format(Protocol):
    """One format of network configuration."""

    def find(self, text: str, name: str) -> list[Found]:
        """Return the interfaces in a file called ``name``."""

    def rewrite(self, text: str, name: str, targets: Mapping[str, Target], macs: Mapping[str, str]) -> str:
        """Return the file with ``targets``' interfaces readdressed and the hardware addresses ``macs`` replaced.

        Interfaces that are not named, or that have no fixed address, stay as they are. Doing it twice changes nothing.
        """


def address(text: str, prefix: str = "") -> IPv4Interface | None:
    """Read an address with its prefix or netmask; None if it is none of IPv4."""
    text = text.strip().strip("\"'")
    try:
        return IPv4Interface(text if "/" in text or not prefix else f"{text}/{prefix.strip()}")
    except ValueError:
        return None


def target(nic: GuestNic, found: Found) -> Target | None:
    """Return what the plan gives an interface, None if no address. Its prefix is what it was where nobody says."""
    if nic.address is None or not found.addresses:
        return None
    prefix = found.addresses[0].network.prefixlen if nic.prefix is None else nic.prefix
    return Target(
        IPv4Interface(f"{nic.address}/{prefix}"),
        IPv4Address(nic.gateway) if nic.gateway else None,
        tuple(IPv4Address(server) for server in nic.dns),
    )


def match(found: Iterable[Found], nics: Sequence[GuestNic]) -> dict[str, GuestNic]:
    """Return which interface of the machine a name in its configuration means.

    By hardware address, else by an address that the platform had seen, else by being the only one of both.
    """
    interfaces = [one for one in found if one.addresses]
    names: dict[str, GuestNic] = {}
    for one in interfaces:
        for nic in nics:
            known = {mac.lower() for mac in (nic.mac, nic.source_mac) if mac}
            if one.mac and one.mac in known:
                names[one.name] = nic
    for one in interfaces:
        for nic in nics:
            if one.name not in names and {str(item.ip) for item in one.addresses} & set(nic.known):
                names[one.name] = nic
    left = list(dict.fromkeys(one.name for one in interfaces if one.name not in names))
    taken = [id(nic) for nic in names.values()]
    free = [nic for nic in nics if id(nic) not in taken]
    if len(left) == 1 and len(free) == 1:
        names[left[0]] = free[0]
    return names


def swapped(text: str, macs: Mapping[str, str]) -> str:
    """Return ``text``, a hardware address, as its new one; in the case it was written in."""
    new = macs.get(text.lower())
    if new is None:
        return text
    return new.upper() if text.isupper() else new
