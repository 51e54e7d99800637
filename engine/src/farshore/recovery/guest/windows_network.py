"""Addresses and the name of a Windows guest: found in its registry, given by a script that it runs once.

A fixed address belongs to a device, and the target's devices are new to Windows: without this it would ask DHCP. What
an interface had at first is kept in the guest, and is what it has again where the plan names no other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import Final

from farshore.model.guest import GuestNic
from farshore.recovery.guest import windows
from farshore.recovery.guest.guest import Guest
from farshore.recovery.guest.hives import Hive, Setting
from farshore.recovery.guest.trees import Tree
from farshore.recovery.readdress import firstboot
from farshore.recovery.readdress.interface import Found, Target, address, match, target

RECORD: Final = f"{firstboot.FOLDER}/guest.json"
_CMD: Final = "%SystemRoot%\\System32\\cmd.exe"


@dataclass(frozen=True, slots=True)
class Fixed:
    """A fixed address as the registry has it."""

    found: Found
    target: Target


def apply(guest: Guest, tree: Tree) -> None:
    """Lay the script down, and have it started once, where there is anything for it to do."""
    system = Hive.load(tree.read(windows.SYSTEM, 512 << 20))
    if system is None:
        return
    kept = _load(tree.read(RECORD))
    had = kept if kept is not None else _fixed(system, windows.control_set(system))
    meant = match([one.found for one in had], guest.params.nics)
    goals: list[tuple[GuestNic, Target]] = []
    for nic in guest.params.nics:
        own = next((one for one in had if meant.get(one.found.name) is nic), None)
        example = own.found if own else Found("", "", tuple(item for item in [address(f"{nic.address}/24")] if item))
        chosen = target(nic, example) or (own.target if own else None)
        if chosen is not None:
            goals.append((nic, chosen))
    unmatched = [one.found.name for one in had if one.found.name not in meant]
    if unmatched:
        guest.find(
            "interface-unmatched",
            "warning",
            f"{len(unmatched)} fixed addresses in the registry, and it cannot be told which interface has them",
            "Name addresses for this purpose in the plan.",
        )
    if not goals and guest.params.hostname is None:
        return
    settings = [
        Setting(_service(system), "Type", 0x10),
        Setting(_service(system), "Start", 2),
        Setting(_service(system), "ErrorControl", 0),
        Setting(_service(system), "ObjectName", "LocalSystem"),
        # What a service starts is ended when it does not answer; what that has started is not.
        Setting(
            _service(system),
            "ImagePath",
            f'{_CMD} /d /c start "farshore" /b {_CMD} /d /c C:\\Farshore\\firstboot.cmd',
            expand=True,
        ),
    ]
    said = ", ".join(f"{nic.mac}: {goal.address}" for nic, goal in goals) or "a name"
    if windows.set_values(guest, tree, settings, "addresses", f"a script gives them at the first start: {said}"):
        script = firstboot.script(goals, guest.params.hostname)
        guest.change(tree, f"{firstboot.FOLDER}/firstboot.cmd", firstboot.command(), "script")
        guest.change(tree, f"{firstboot.FOLDER}/firstboot.ps1", script, "script")
        if kept is None:
            guest.change(tree, RECORD, _dump(had), "record", "what was there before is kept in the guest")


def _service(system: Hive) -> str:
    return f"{windows.control_set(system)}\\Services\\{firstboot.SERVICE}"


def _fixed(system: Hive, chosen: str) -> list[Fixed]:
    """Return the fixed addresses of a control set (Tcpip parameters: one key for each device)."""
    base = f"{chosen}\\Services\\Tcpip\\Parameters\\Interfaces"
    found = []
    for name in system.keys(base):
        key = f"{base}\\{name}"
        if system.number(key, "EnableDHCP") != 0:
            continue
        masks = system.texts(key, "SubnetMask")
        parsed = [
            one
            for text, mask in zip(system.texts(key, "IPAddress"), masks, strict=False)
            if (one := address(text, mask)) and int(one.ip)
        ]
        if parsed:
            gateways = [gate for text in system.texts(key, "DefaultGateway") if (gate := _plain(text))]
            servers = str(system.value(key, "NameServer") or "").replace(",", " ").split()
            dns = tuple(server for text in servers if (server := _plain(text)))
            goal = Target(parsed[0], gateways[0] if gateways else None, dns)
            found.append(Fixed(Found(name, "", tuple(parsed)), goal))
    return found


def _plain(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text.strip())
    except AddressValueError:
        return None


def _dump(had: list[Fixed]) -> bytes:
    return json.dumps(
        [
            {
                "name": one.found.name,
                "address": str(one.target.address),
                "gateway": str(one.target.gateway) if one.target.gateway else None,
                "dns": [str(server) for server in one.target.dns],
            }
            for one in had
        ],
        indent=1,
    ).encode()


def _load(data: bytes | None) -> list[Fixed] | None:
    """Read what was kept; None if nothing was, or it is not ours."""
    if data is None:
        return None
    found = []
    try:
        for entry in json.loads(data):
            parsed = address(entry["address"])
            dns = tuple(IPv4Address(server) for server in entry["dns"])
            if parsed:
                goal = Target(parsed, IPv4Address(entry["gateway"]) if entry["gateway"] else None, dns)
                found.append(Fixed(Found(str(entry["name"]), "", (parsed,)), goal))
    except (ValueError, TypeError, KeyError):
        return None
    return found
