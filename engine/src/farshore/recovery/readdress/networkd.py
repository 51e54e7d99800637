"""systemd-networkd's files (systemd.network(5)), ``/etc/systemd/network/*.network``."""

from __future__ import annotations

from collections.abc import Mapping

from farshore.recovery.readdress import sections
from farshore.recovery.readdress.interface import Found, Target, address, swapped
from farshore.recovery.readdress.sections import Line

_MACS = frozenset({"macaddress", "permanentmacaddress"})


def _called(lines: list[Line], name: str) -> str:
    return sections.value(lines, "match", "Name") or name.rsplit("/", 1)[-1]


def _fixed(lines: list[Line]) -> list[Line]:
    found = [line for line in lines if line.section in {"network", "address"} and line.key.lower() == "address"]
    return [line for line in found if address(line.value)]


def find(text: str, name: str) -> list[Found]:
    """Return the file's one interface."""
    lines = list(sections.read(text))
    has = [one for line in _fixed(lines) if (one := address(line.value))]
    mac = sections.value(lines, "match", "MACAddress", "PermanentMACAddress").split(" ")[0].lower()
    return [Found(_called(lines, name), mac, tuple(has))]


def rewrite(text: str, name: str, targets: Mapping[str, Target], macs: Mapping[str, str]) -> str:
    """Return the file readdressed."""
    lines = list(sections.read(text))
    fixed = _fixed(lines)
    target = targets.get(_called(lines, name)) if fixed else None
    elsewhere = {line.number for line in lines if line.section == "route" and line.key.lower() == "destination"}
    gone = {
        line.number
        for line in lines
        if target is not None
        and line.section == "route"
        and line.key.lower() == "gateway"
        and line.number not in elsewhere
        and address(line.value)
    }
    result: list[str] = []
    for line in lines:
        key = line.key.lower()
        if line.section in {"match", "link"} and key in _MACS:
            result.append(f"{line.key}={' '.join(swapped(mac, macs) for mac in line.value.split())}")
        elif target is None:
            result.append(line.text)
        elif line.number in gone and line.section == "route":
            continue
        elif line is fixed[0]:
            result.append(f"{line.key}={target.address}")
            extra = [f"Gateway={target.gateway}"] if target.gateway else []
            extra += [f"DNS={server}" for server in target.dns]
            # An [Address] section takes neither: they go where the interface's own settings are.
            result += extra if line.section == "network" else (["[Network]", *extra] if extra else [])
        elif line.section == "network" and (
            (key == "gateway" and address(line.value)) or (key == "dns" and target.dns)
        ):
            continue
        else:
            result.append(line.text)
    return "\n".join(result)
