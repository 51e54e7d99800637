"""NetworkManager's keyfiles (nm-settings-keyfile(5)), ``/etc/NetworkManager/system-connections/*.nmconnection``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from farshore.recovery.readdress import sections
from farshore.recovery.readdress.interface import Found, Target, address, swapped
from farshore.recovery.readdress.sections import Line

_ADDRESS = re.compile(r"^address\d+$|^addresses$")
_MAC_SECTIONS = frozenset({"ethernet", "802-3-ethernet"})
_MACS = frozenset({"mac-address", "cloned-mac-address"})


def _called(lines: list[Line], name: str) -> str:
    return sections.value(lines, "connection", "interface-name") or name.rsplit("/", 1)[-1]


def _fixed(lines: list[Line]) -> list[Line]:
    if sections.value(lines, "ipv4", "method") != "manual":
        return []
    return [line for line in lines if line.section == "ipv4" and _ADDRESS.match(line.key)]


def find(text: str, name: str) -> list[Found]:
    """Return the file's one interface."""
    lines = list(sections.read(text))
    written = [item for line in _fixed(lines) for item in line.value.split(";") if item]
    has = [one for item in written if (one := address(item.split(",")[0]))]
    macs = [line.value.lower() for line in lines if line.section in _MAC_SECTIONS and line.key == "mac-address"]
    return [Found(_called(lines, name), macs[0] if macs else "", tuple(has))]


def rewrite(text: str, name: str, targets: Mapping[str, Target], macs: Mapping[str, str]) -> str:
    """Return the file readdressed; the one address replaces the first of those that it had."""
    lines = list(sections.read(text))
    fixed = _fixed(lines)
    target = targets.get(_called(lines, name)) if find(text, name)[0].addresses else None
    result = []
    for line in lines:
        if line.section in _MAC_SECTIONS and line.key in _MACS:
            result.append(f"{line.key}={swapped(line.value, macs)}")
        elif target is None or line.section != "ipv4":
            result.append(line.text)
        elif fixed and line is fixed[0]:
            _, *others = [item for item in line.value.split(";") if item]
            result.append(f"{line.key}={';'.join([str(target.address), *others])}")
            result += [f"gateway={target.gateway}"] if target.gateway else []
            result += [f"dns={';'.join(map(str, target.dns))};"] if target.dns else []
        elif line.key == "gateway" or (line.key == "dns" and target.dns):
            continue
        else:
            result.append(line.text)
    return "\n".join(result)
