"""Addresses and names of a Linux guest: changed in the files that hold them, and put back on the way home."""

from __future__ import annotations

import re
from typing import Final

from farshore.recovery.guest import cloud_init
from farshore.recovery.guest.guest import Guest
from farshore.recovery.guest.trees import Tree
from farshore.recovery.readdress import ifcfg, interfaces, keyfile, names, netplan, networkd, record
from farshore.recovery.readdress.interface import Format, Found, Target, match, target

#: Folder, ending and format of what systems configure their networks with; an empty ending is a file of its own.
_PLACES: Final[tuple[tuple[str, str, str], ...]] = (
    ("/etc/netplan", "", ".yaml"),
    ("/etc/network/interfaces.d", "", ""),
    ("/etc/sysconfig/network-scripts", "ifcfg-", ""),
    ("/etc/sysconfig/network", "ifcfg-", ""),
    ("/etc/NetworkManager/system-connections", "", ".nmconnection"),
    ("/etc/systemd/network", "", ".network"),
    ("/etc/cloud/cloud.cfg.d", "", ".cfg"),
)
_FILES: Final = (
    "/etc/network/interfaces",
    "/var/lib/cloud/seed/nocloud/network-config",
    "/var/lib/cloud/seed/nocloud-net/network-config",
)
_PINS: Final = "/etc/udev/rules.d/70-farshore-net.rules"
_IFACE: Final = re.compile(r"^\s*iface\s+(\S+)\s+inet\s+dhcp\b", re.MULTILINE)
_PINNED: Final = re.compile(r"e(?:n|th)[A-Za-z0-9]+")


def _format(path: str) -> Format:
    folder, _, name = path.rpartition("/")
    if folder.startswith("/etc/network"):
        found: object = interfaces
    elif name.startswith("ifcfg-"):
        found = ifcfg
    elif name.endswith(".nmconnection"):
        found = keyfile
    elif name.endswith(".network"):
        found = networkd
    else:
        found = netplan
    return found  # type: ignore[return-value]  # a module is as good as an object


def paths(tree: Tree) -> list[str]:
    """Return the files that configure networks."""
    found = [path for path in _FILES if tree.exists(path)]
    for folder, start, end in _PLACES:
        names_ = [name for name in tree.names(folder) if name.startswith(start) and name.endswith(end)]
        names_ = [name for name in names_ if f"{folder}/{name}" != cloud_init.DROP_IN]
        found += [f"{folder}/{name}" for name in names_ if name != "ifcfg-lo" and not name.endswith((".bak", "~"))]
    return found


def apply(guest: Guest, tree: Tree, kept: record.Record) -> None:
    """Give the guest the addresses of the run's purpose, or its own again where the plan names none."""
    originals: dict[str, tuple[bytes | None, str]] = {}
    for path in paths(tree):
        current = tree.read(path)
        if kept.changed_since(path, current):
            guest.find(
                "network-changed-since",
                "info",
                f"{path} was changed in the guest since it was readdressed: it is taken as it is",
            )
        original = kept.original(path, current)
        originals[path] = (original, (original or b"").decode(errors="surrogateescape"))
    found = {path: _format(path).find(text, path) for path, (_, text) in originals.items()}
    meant = match([one for several in found.values() for one in several], guest.params.nics)
    every = [one for several in found.values() for one in several]
    targets = {one.name: goal for one in every if one.name in meant and (goal := target(meant[one.name], one))}
    _unmatched(guest, every, set(meant))
    for name in targets:
        if meant[name].prefix is None:
            guest.find(
                "network-unknown",
                "warning",
                f"the plan does not say what subnet {meant[name].address} is in ({guest.params.purpose}):"
                f" {name} keeps its prefix and gets no gateway",
                f"Add guest: {{{guest.params.purpose}: {{subnet: ..., gateway: ...}}}} to the entry of its network.",
            )
    macs = {nic.source_mac.lower(): nic.mac.lower() for nic in guest.params.nics if nic.source_mac}
    for path, (original, text) in originals.items():
        made = _format(path).rewrite(text, path, targets, macs).encode(errors="surrogateescape")
        if guest.change(tree, path, made, "addresses", f"{path}: {_said(found[path], targets)}"):
            kept.note(path, original, made)
    pinned = {name: nic.mac.lower() for name, nic in meant.items() if name in targets}
    if guest.params.crossed:
        pinned |= _named(guest, [text for _, text in originals.values()], every)
    _pin(guest, tree, kept, pinned)
    _hostname(guest, tree, kept)


def _said(found: list[Found], targets: dict[str, Target]) -> str:
    moved = [f"{one.name} {one.addresses[0]} → {targets[one.name].address}" for one in found if one.name in targets]
    return ", ".join(moved) or "as it was"


def _unmatched(guest: Guest, found: list[Found], meant: set[str]) -> None:
    wanted = [nic for nic in guest.params.nics if nic.address]
    left = [one for one in found if one.addresses and one.name not in meant]
    if wanted and left:
        guest.find(
            "interface-unmatched",
            "warning",
            f"{', '.join(sorted({one.name for one in left}))}: fixed addresses, and it cannot be told"
            " which interface of the machine has them; they stay as they are",
            "Name the hardware address in the guest's configuration.",
        )


def _named(guest: Guest, texts: list[str], found: list[Found]) -> dict[str, str]:
    """Return the hardware address of the interface that a configuration calls by a name, whatever addresses it has.

    Another platform puts interfaces into other slots, and systems name them by those.
    """
    called = {one.name for one in found} | {name for text in texts for name in _IFACE.findall(text)}
    called = {name for name in called if _PINNED.fullmatch(name)}
    nics = guest.params.nics
    if len(called) == len(nics) == 1:
        return {called.pop(): nics[0].mac.lower()}
    by_mac = {mac.lower(): nic.mac.lower() for nic in nics for mac in (nic.source_mac, nic.mac) if mac}
    known = {one.name: by_mac[one.mac] for one in found if one.name in called and one.mac in by_mac}
    left = sorted(called - set(known))
    if left:
        guest.find(
            "interface-unmatched",
            "warning",
            f"{', '.join(left)}: another platform gives interfaces other names, and it cannot be told which is which",
            "Name the hardware address in the guest's configuration.",
        )
    return known


def _pin(guest: Guest, tree: Tree, kept: record.Record, macs: dict[str, str]) -> None:
    """Have an interface keep the name that its configuration has: names by slot change with the slot."""
    rules = [
        f'SUBSYSTEM=="net", ACTION=="add", ATTR{{address}}=="{mac}", NAME="{name}"\n'
        for name, mac in sorted(macs.items())
        if _PINNED.fullmatch(name)
    ]
    current = tree.read(_PINS)
    if not rules and _PINS not in kept.files:
        return
    original = kept.original(_PINS, current)
    made = "".join(rules).encode() if rules else original
    if guest.change(tree, _PINS, made, "interface names"):
        kept.note(_PINS, original, made)


def _hostname(guest: Guest, tree: Tree, kept: record.Record) -> None:
    wanted = guest.params.hostname
    if wanted is None and not {"/etc/hostname", "/etc/hosts"} & set(kept.files):
        return
    was = kept.original("/etc/hostname", tree.read("/etc/hostname"))
    made = f"{wanted}\n".encode() if wanted else was
    old = (was or b"").decode(errors="replace").strip()
    if guest.change(tree, "/etc/hostname", made, "name", f"{old} → {wanted or old}"):
        kept.note("/etc/hostname", was, made)
    table = kept.original("/etc/hosts", tree.read("/etc/hosts"))
    if table is not None and old:
        text = table.decode(errors="surrogateescape")
        renamed = names.hosts(text, old, wanted) if wanted else text
        changed = renamed.encode(errors="surrogateescape")
        if guest.change(tree, "/etc/hosts", changed, "name", "/etc/hosts"):
            kept.note("/etc/hosts", table, changed)
