"""``/etc/sysconfig/network-scripts/ifcfg-NAME`` (RHEL to 9) and ``/etc/sysconfig/network/ifcfg-NAME`` (SLES)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Interface

from farshore.recovery.readdress.interface import Found, Target, address, swapped

_LINE = re.compile(r"^(?P<key>[A-Z_]+)(?P<number>\d*)=(?P<quote>[\"']?)(?P<value>.*?)(?P=quote)\s*$")
_DERIVED = frozenset({"PREFIX", "NETMASK", "NETWORK", "BROADCAST", "PREFIXLEN"})


def _values(text: str) -> dict[str, str]:
    found = (_LINE.match(line) for line in text.split("\n"))
    return {one["key"] + one["number"]: one["value"] for one in found if one}


def _called(values: Mapping[str, str], name: str) -> str:
    return values.get("DEVICE") or name.rsplit("/", 1)[-1].removeprefix("ifcfg-")


def _first(values: Mapping[str, str]) -> tuple[str, IPv4Interface | None]:
    """Return the key of the first address, and the address; its number is that of its prefix."""
    for number in ("", "0", "1"):
        value = values.get(f"IPADDR{number}", "")
        prefix = values.get(f"PREFIX{number}") or values.get(f"NETMASK{number}") or values.get("PREFIXLEN", "")
        if value:
            return f"IPADDR{number}", address(value, prefix)
    return "", None


def find(text: str, name: str) -> list[Found]:
    """Return the file's one interface."""
    values = _values(text)
    has = _first(values)[1]
    mac = values.get("HWADDR") or values.get("LLADDR") or ""
    return [Found(_called(values, name), mac.lower(), (has,) if has else ())]


def rewrite(text: str, name: str, targets: Mapping[str, Target], macs: Mapping[str, str]) -> str:
    """Return the file readdressed."""
    values = _values(text)
    key, has = _first(values)
    target = targets.get(_called(values, name)) if has else None
    number = key.removeprefix("IPADDR")
    # SLES writes the prefix behind the address, and routes elsewhere.
    short = "/" in values.get(key, "")
    lines: list[str] = []
    for line in text.split("\n"):
        found = _LINE.match(line)
        if found is None:
            lines.append(line)
            continue
        quote, this = found["quote"], found["key"] + found["number"]
        if this in {"HWADDR", "LLADDR"}:
            lines.append(f"{this}={quote}{swapped(found['value'], macs)}{quote}")
        elif target is None:
            lines.append(line)
        elif this == key:
            written = target.address if short else target.address.ip
            lines.append(f"{this}={quote}{written}{quote}")
            if not short:
                lines.append(f"PREFIX{number}={quote}{target.address.network.prefixlen}{quote}")
            if target.gateway:
                lines.append(f"GATEWAY={quote}{target.gateway}{quote}")
            lines += [f"DNS{index}={quote}{server}{quote}" for index, server in enumerate(target.dns, 1)]
        elif not _replaced(found, number, target):
            lines.append(line)
    return "\n".join(lines)


def _replaced(found: re.Match[str], number: str, target: Target) -> bool:
    """Say whether a line tells what the new address brings with it."""
    key = found["key"]
    same = found["number"] == number
    return (key in _DERIVED and same) or (key == "GATEWAY") or (key == "DNS" and bool(target.dns))
