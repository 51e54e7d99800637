"""Every format of network configuration: what is found in it, and how it reads with a new address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest
from farshore.model.guest import GuestNic
from farshore.recovery.readdress import ifcfg, interfaces, keyfile, netplan, networkd
from farshore.recovery.readdress.interface import Found, Target, match
from hypothesis import given, settings
from hypothesis import strategies as st

MAC, NEW_MAC = "52:54:00:aa:bb:01", "52:54:00:cc:dd:02"
OLD = IPv4Interface("10.1.1.5/24")
TARGET = Target(IPv4Interface("10.9.0.11/16"), IPv4Address("10.9.0.1"), (IPv4Address("10.9.0.53"),))
BARE = Target(IPv4Interface("10.77.0.9/24"))

INTERFACES = """\
# the loopback
auto lo
iface lo inet loopback

auto ens3
iface ens3 inet static
\taddress 10.1.1.5
\tnetmask 255.255.255.0
\tgateway 10.1.1.1
\tdns-nameservers 10.1.1.53 10.1.1.54
\thwaddress ether 52:54:00:aa:bb:01
\tup ip route add 10.5.0.0/16 via 10.1.1.2
iface ens3 inet6 auto
iface ens4 inet dhcp
"""
IFCFG = """\
# Generated
DEVICE="ens3"
HWADDR=52:54:00:AA:BB:01
BOOTPROTO=none
IPADDR=10.1.1.5
NETMASK=255.255.255.0
GATEWAY=10.1.1.1
DNS1=10.1.1.53
ONBOOT=yes
"""
KEYFILE = """\
[connection]
id=Wired connection 1
interface-name=ens3

[ethernet]
mac-address=52:54:00:AA:BB:01

[ipv4]
method=manual
address1=10.1.1.5/24,10.1.1.1
address2=10.1.1.6/24
dns=10.1.1.53;

[ipv6]
method=auto
address1=2001:db8::5/64
"""
NETWORKD = """\
[Match]
Name=ens3
MACAddress=52:54:00:aa:bb:01

[Network]
Address=10.1.1.5/24
Address=2001:db8::5/64
Gateway=10.1.1.1
DNS=10.1.1.53

[Route]
Destination=10.5.0.0/16
Gateway=10.1.1.2
"""
NETPLAN = """\
# by hand
network:
  version: 2
  ethernets:
    id0:
      match: {macaddress: "52:54:00:aa:bb:01"}
      set-name: ens3
      addresses: [10.1.1.5/24, "2001:db8::5/64"]
      routes:
      - {to: default, via: 10.1.1.1}
      - {to: 10.5.0.0/16, via: 10.1.1.2}
      nameservers: {addresses: [10.1.1.53], search: [example.org]}
"""
CLOUD = """\
version: 1
config:
- type: physical
  name: ens3
  mac_address: "52:54:00:aa:bb:01"
  subnets:
  - {type: static, address: 10.1.1.5, netmask: 255.255.255.0, gateway: 10.1.1.1}
"""
FORMATS: dict[str, tuple[Any, str]] = {
    "/etc/network/interfaces": (interfaces, INTERFACES),
    "/etc/sysconfig/network-scripts/ifcfg-ens3": (ifcfg, IFCFG),
    "/etc/NetworkManager/system-connections/a b.nmconnection": (keyfile, KEYFILE),
    "/etc/systemd/network/10-lan.network": (networkd, NETWORKD),
    "/etc/netplan/50-lan.yaml": (netplan, NETPLAN),
    "/var/lib/cloud/seed/nocloud/network-config": (netplan, CLOUD),
}
every = pytest.mark.parametrize("path", FORMATS)


def first(path: str, text: str) -> Found:
    return next(found for found in FORMATS[path][0].find(text, path) if found.name == "ens3")


@every
def test_an_interface_is_found_with_its_address_and_hardware_address(path: str) -> None:
    found = first(path, FORMATS[path][1])
    assert found.addresses[0] == OLD
    assert found.mac == MAC


@every
def test_an_interface_gets_another_address_and_only_that(path: str) -> None:
    module, text = FORMATS[path]
    changed = module.rewrite(text, path, {"ens3": TARGET}, {MAC: NEW_MAC})
    found = first(path, changed)
    assert (found.addresses[0], found.mac) == (TARGET.address, NEW_MAC)
    for told in ("10.9.0.1", "10.9.0.53"):
        assert told in changed
    for gone in ("10.1.1.5", "10.1.1.53", "255.255.255.0"):
        assert gone not in changed
    assert "10.1.1.1\n" not in changed
    assert ("10.5.0.0/16" in text) == ("10.5.0.0/16" in changed)
    assert ("2001:db8::5/64" in text) == ("2001:db8::5/64" in changed)
    assert module.rewrite(changed, path, {"ens3": TARGET}, {MAC: NEW_MAC}) == changed


@every
def test_without_a_gateway_there_is_none_and_name_servers_stay(path: str) -> None:
    module, text = FORMATS[path]
    changed = module.rewrite(text, path, {"ens3": BARE}, {})
    assert first(path, changed).addresses[0] == BARE.address
    assert "10.1.1.1\n" not in changed
    assert ",10.1.1.1" not in changed
    assert ("10.1.1.53" in text) == ("10.1.1.53" in changed)


@every
def test_what_is_not_named_stays_to_the_last_letter(path: str) -> None:
    module, text = FORMATS[path]
    assert module.rewrite(text, path, {}, {}) == text
    assert module.rewrite(text, path, {"ens9": TARGET}, {NEW_MAC: MAC}) == text


@every
@settings(deadline=None)
@given(text=st.text(max_size=200), address=st.ip_addresses(v=4), prefix=st.integers(0, 32))
def test_no_text_breaks_a_format_and_twice_is_once(path: str, text: str, address: IPv4Address, prefix: int) -> None:
    module, sound = FORMATS[path]
    target = Target(IPv4Interface(f"{address}/{prefix}"))
    for given_text in (text, sound + text, text + "\n" + sound):
        names = {found.name: target for found in module.find(given_text, path)}
        once = module.rewrite(given_text, path, names, {MAC: NEW_MAC})
        assert module.rewrite(once, path, names, {MAC: NEW_MAC}) == once
        assert module.rewrite(given_text, path, {}, {}) == given_text


def test_dhcp_stays_dhcp() -> None:
    text = "network: {version: 2, ethernets: {ens3: {dhcp4: true}}}\n"
    assert netplan.rewrite(text, "", {"ens3": TARGET}, {}) == text
    text = "auto ens3\niface ens3 inet dhcp\n"
    assert interfaces.rewrite(text, "", {"ens3": TARGET}, {}) == text


def test_interfaces_are_matched_by_hardware_address_then_by_address_then_by_being_alone() -> None:
    one = GuestNic(mac=NEW_MAC, source_mac=MAC)
    two = GuestNic(mac="52:54:00:00:00:03", known=("10.2.2.5",))
    three = GuestNic(mac="52:54:00:00:00:04")
    found = [
        Found("a", "", (IPv4Interface("10.2.2.5/24"),)),
        Found("b", MAC, (OLD,)),
        Found("c", "", (IPv4Interface("10.3.3.5/24"),)),
        Found("dhcp", "", ()),
    ]
    assert match(found, [one, two, three]) == {"b": one, "a": two, "c": three}
    assert match([*found, Found("d", "", (OLD,))], [one, two, three]) == {"b": one, "a": two}
