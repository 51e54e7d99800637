"""``/etc/network/interfaces`` (interfaces(5)): Debian's ifupdown, and BusyBox."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from farshore.recovery.readdress.interface import Found, Target, address, swapped

_STANZA = re.compile(r"^\s*(iface|mapping|auto|allow-\S+|source|source-directory|no-auto-down|no-scripts|rename)\b")
_IFACE = re.compile(r"^\s*iface\s+(\S+)\s+inet\s+static\b")
_OPTION = re.compile(r"^(\s+)(\S+)(\s+)(.*?)(\s*)$")
#: They follow from the address.
_DERIVED = frozenset({"netmask", "broadcast", "network"})


@dataclass(slots=True)
class _Stanza:
    name: str
    lines: list[int] = field(default_factory=list)


def _stanzas(lines: list[str]) -> list[_Stanza]:
    """Return the stanzas with a fixed address, each with the numbers of its options' lines."""
    found: list[_Stanza] = []
    current: _Stanza | None = None
    for number, line in enumerate(lines):
        if _STANZA.match(line):
            iface = _IFACE.match(line)
            current = _Stanza(iface[1]) if iface else None
            if current:
                found.append(current)
        elif current is not None and _OPTION.match(line) and not line.strip().startswith("#"):
            current.lines.append(number)
    return found


def _options(lines: list[str], stanza: _Stanza) -> dict[str, str]:
    found = (_OPTION.match(lines[number]) for number in stanza.lines)
    return {option[2]: option[4] for option in found if option}


def find(text: str, _name: str = "") -> list[Found]:
    """Return the interfaces with a fixed address."""
    lines = text.split("\n")
    found = []
    for stanza in _stanzas(lines):
        options = _options(lines, stanza)
        has = address(options.get("address", ""), options.get("netmask", ""))
        mac = options.get("hwaddress", "").removeprefix("ether").strip().lower()
        found.append(Found(stanza.name, mac, (has,) if has else ()))
    return found


def rewrite(text: str, _name: str, targets: Mapping[str, Target], macs: Mapping[str, str]) -> str:
    """Return the file readdressed."""
    lines: list[str | None] = list(text.split("\n"))
    plain = text.split("\n")
    for stanza in _stanzas(plain):
        target = targets.get(stanza.name)
        options = _options(plain, stanza)
        if "address" not in options:
            target = None
        for number in stanza.lines:
            option = _OPTION.match(plain[number])
            if option is None:
                continue
            indent, key, gap, value = option[1], option[2], option[3], option[4]
            if key == "hwaddress":
                kind, _, mac = value.rpartition(" ")
                lines[number] = f"{indent}{key}{gap}{kind}{' ' if kind else ''}{swapped(mac, macs)}"
            elif target is None:
                continue
            elif key == "address":
                added = [f"{indent}{key}{gap}{target.address}"]
                if target.gateway and "gateway" not in options:
                    added.append(f"{indent}gateway {target.gateway}")
                if target.dns and "dns-nameservers" not in options:
                    added.append(f"{indent}dns-nameservers {' '.join(map(str, target.dns))}")
                lines[number] = "\n".join(added)
            elif key in _DERIVED:
                lines[number] = None
            elif key == "gateway":
                lines[number] = f"{indent}{key}{gap}{target.gateway}" if target.gateway else None
            elif key == "dns-nameservers" and target.dns:
                lines[number] = f"{indent}{key}{gap}{' '.join(map(str, target.dns))}"
    return "\n".join(line for line in lines if line is not None)
