"""Networks of a hypervisor (https://libvirt.org/formatnetwork.html): those that exist, and isolated ones for a run."""

from __future__ import annotations

import contextlib
import ipaddress
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any, Final

from farshore.errors import Conflict, Invalid, NotFound
from farshore.model.machine import NetworkFacts
from farshore.model.task import NetworkCreateParams
from farshore.platforms.kvm import firewall
from farshore.platforms.kvm.connection import Hypervisor, asking, code_of, libvirt
from farshore.platforms.kvm.domain import OWNER, element, text
from farshore.platforms.kvm.points import short

#: dnsmasq keeps a lease file; a drill of more machines than this wants another design.
_RANGE: Final = 1000
_NO_NETWORK: Final = 43
_SMALLEST_PREFIX: Final = 30


def bridge_of(name: str) -> str:
    """Return the bridge of a network that we make; an interface's name has at most 15 characters."""
    return f"fs-{short(name)}"


def build(spec: NetworkCreateParams) -> str:
    """Return the XML of an isolated network: DHCP, no forwarding, no name service.

    Raises:
        Invalid: the subnet or an address in it is wrong; ``field`` names it.
    """
    try:
        subnet = ipaddress.IPv4Network(spec.subnet)
    except ValueError as error:
        raise Invalid(f"{spec.subnet!r} is no IPv4 network: {error}", field="subnet") from error
    if subnet.prefixlen > _SMALLEST_PREFIX:
        raise Invalid(f"{spec.subnet} has no room for a machine", field="subnet", hint="Use /29 or larger.")
    gateway = subnet.network_address + 1
    last = min(subnet.broadcast_address - 1, gateway + _RANGE)
    root = ET.Element("network")
    ET.SubElement(root, "name").text = spec.name
    metadata = ET.SubElement(root, "metadata")
    ET.register_namespace("farshore", OWNER)
    ET.SubElement(metadata, f"{{{OWNER}}}owner", {"tag": spec.tag, "purpose": "network", "epoch": "0"})
    ET.SubElement(root, "bridge", {"name": bridge_of(spec.name), "stp": "off", "delay": "0"})
    ET.SubElement(root, "dns", {"enable": "no"})
    address = ET.SubElement(root, "ip", {"address": str(gateway), "prefix": str(subnet.prefixlen)})
    dhcp = ET.SubElement(address, "dhcp")
    ET.SubElement(dhcp, "range", {"start": str(gateway + 1), "end": str(last)})
    for mac, host in spec.hosts.items():
        try:
            wanted = ipaddress.IPv4Address(host)
        except ValueError as error:
            raise Invalid(f"{host!r} is no IPv4 address", field=f"hosts[{mac}]") from error
        if wanted not in subnet or wanted in {subnet.network_address, subnet.broadcast_address, gateway}:
            raise Invalid(f"{host} is no free address of {spec.subnet}", field=f"hosts[{mac}]")
        ET.SubElement(dhcp, "host", {"mac": mac.lower(), "ip": host})
    return text(root)


class Networks:
    """All networks of one hypervisor."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor

    def facts(self) -> list[NetworkFacts]:
        """Return every network."""
        found = []
        for handle in self._all():
            root = self._root(handle)
            item = root.find("ip[@address]")
            subnet = ""
            if item is not None:
                width = item.get("prefix") or item.get("netmask") or "32"
                subnet = str(ipaddress.ip_interface(f"{item.get('address')}/{width}").network)
            found.append(
                NetworkFacts(
                    name=root.findtext("name", ""),
                    subnet=subnet,
                    isolated=root.find("forward") is None,
                    active=bool(handle.isActive()),
                )
            )
        return sorted(found, key=lambda one: one.name)

    def need(self, name: str) -> None:
        """Raise NotFound unless a network called ``name`` exists, Conflict unless it is active."""
        handle = self._find(name)
        if handle is None:
            known = ", ".join(one.name for one in self.facts()) or "none"
            raise NotFound(
                f"network {name!r} does not exist; there are: {known}", code="network-not-found", network=name
            )
        if not handle.isActive():
            raise Conflict(
                f"network {name!r} is not active", code="network-inactive", hint=f"virsh net-start {name}", network=name
            )

    def create_isolated(self, spec: NetworkCreateParams) -> None:
        """Make and start a network; the rules are there before the first guest can be.

        Raises:
            Conflict: the name is taken, or the subnet is in use on this host.
        """
        xml = build(spec)
        handle = self._find(spec.name)
        if handle is not None and _tag(self._root(handle)) != spec.tag:
            raise Conflict(
                f"network {spec.name!r} exists and is not this run's", code="network-exists", network=spec.name
            )
        firewall.close(bridge_of(spec.name), spec.tag)
        with asking(f"making network {spec.name}"):
            handle = handle or self._hypervisor.connection().networkDefineXML(xml)
        if handle.isActive():
            return
        try:
            handle.create()
        except libvirt.libvirtError as error:
            raise Conflict(
                f"network {spec.name} with subnet {spec.subnet} could not be started: {error}",
                code="network-not-started",
                hint="Is the subnet in use on this host? Choose another for drills.",
                network=spec.name,
                libvirt_code=code_of(error),
            ) from error

    def gateway(self, name: str) -> tuple[str, str]:
        """Return the hypervisor's own address in a network, and the network's subnet; ``NotFound``."""
        handle = self._find(name)
        item = self._root(handle).find("ip[@address]") if handle is not None else None
        if item is None:
            raise NotFound(f"network {name!r} has no address here", code="network-not-found", network=name)
        width = item.get("prefix") or item.get("netmask") or "32"
        at = ipaddress.ip_interface(f"{item.get('address')}/{width}")
        return str(at.ip), str(at.network)

    def of(self, tag: str) -> list[str]:
        """Return the names of the networks that carry ``tag``."""
        return [handle.name() for handle in self._all() if _tag(self._root(handle)) == tag]

    def remove(self, name: str) -> None:
        """Stop and undefine a network."""
        handle = self._find(name)
        if handle is None:
            return
        with asking(f"removing network {name}"):
            if handle.isActive():
                handle.destroy()
            handle.undefine()

    # --- addresses handed out by DHCP ------------------------------------------------------------------------------

    def hosts(self, name: str) -> dict[str, str]:
        """Return the fixed addresses of a network by MAC."""
        handle = self._find(name)
        return dict(_hosts(self._root(handle))) if handle is not None else {}

    def missing_host(self, name: str, mac: str, address: str) -> bool:
        """Say whether a network needs an entry so that ``mac`` gets ``address``.

        Raises:
            Conflict: the network has no DHCP, or the address or the MAC has another entry.
        """
        handle = self._find(name)
        root = self._root(handle) if handle is not None else ET.Element("network")
        served = [
            ipaddress.ip_interface(f"{item.get('address')}/{item.get('prefix') or item.get('netmask')}").network
            for item in root.findall("ip[@address]")
            if item.find("dhcp") is not None
        ]
        if not any(ipaddress.ip_address(address) in subnet for subnet in served):
            raise Conflict(
                f"network {name} hands out no address like {address}",
                code="network-no-dhcp",
                hint="Choose an address of its DHCP subnet, or none.",
                network=name,
            )
        entries = dict(_hosts(root))
        if entries.get(mac.lower(), address) != address:
            raise Conflict(
                f"network {name} gives {entries[mac.lower()]} to {mac}, not {address}",
                code="address-taken",
                network=name,
            )
        owner = next((other for other, given in entries.items() if given == address), None)
        if owner is not None and owner != mac.lower():
            raise Conflict(f"network {name} gives {address} to {owner}", code="address-taken", network=name)
        return owner is None

    def add_host(self, name: str, mac: str, address: str) -> None:
        """Let DHCP give ``address`` to ``mac``, at once and for good."""
        self._update(name, libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, mac, address)

    def remove_host(self, name: str, mac: str, address: str) -> None:
        """Remove such an entry; nothing to do if it is gone."""
        if self.hosts(name).get(mac.lower()) == address:
            self._update(name, libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, mac, address)

    def _update(self, name: str, command: int, mac: str, address: str) -> None:
        handle = self._find(name)
        if handle is None:
            raise NotFound(f"network {name!r} does not exist", code="network-not-found", network=name)
        item = text(ET.Element("host", {"mac": mac.lower(), "ip": address}))
        flags = libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG if handle.isPersistent() else 0
        if handle.isActive():
            flags |= libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE
        with asking(f"changing the addresses of network {name}"):
            handle.update(command, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, -1, item, flags)

    # --- libvirt -------------------------------------------------------------------------------------------------

    def _find(self, name: str) -> Any:
        connection = self._hypervisor.connection()
        try:
            return connection.networkLookupByName(name)
        except libvirt.libvirtError as error:
            if code_of(error) == _NO_NETWORK:
                return None
            raise

    def _all(self) -> list[Any]:
        with asking("listing networks"):
            return list(self._hypervisor.connection().listAllNetworks(0))

    def _root(self, handle: Any) -> ET.Element:
        with contextlib.suppress(libvirt.libvirtError):
            return element(handle.XMLDesc(0))
        return ET.Element("network")  # it went away


def _hosts(root: ET.Element) -> Iterator[tuple[str, str]]:
    for item in root.findall("ip/dhcp/host"):
        yield item.get("mac", "").lower(), item.get("ip", "")


def _tag(root: ET.Element) -> str | None:
    item = root.find(f"metadata/{{{OWNER}}}owner")
    return None if item is None else item.get("tag")
