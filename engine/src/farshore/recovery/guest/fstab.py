"""fstab(5): what it mounts, and devices named by their place written as what they hold. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: Names that depend on the order in which disks are found, and on what they are plugged into.
BY_PLACE: Final = re.compile(
    r"^/dev/(?P<family>sd|hd|vd|xvd)(?P<letter>[a-z]+)(?P<number>\d*)$|^/dev/nvme\d+n\d+(p\d+)?$"
)
#: The family of names that a bus gives its disks.
FAMILY: Final = {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "sd", "usb": "sd", "nvme": "nvme", "xen": "xvd"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. ``line`` counts from 0."""

    line: int
    device: str
    point: str
    kind: str
    options: tuple[str, ...]

    @property
    def needed(self) -> bool:
        """Whether a start waits for it, and gives up without it."""
        return not {"noauto", "nofail"} & set(self.options) and self.kind not in {"swap", "nfs", "nfs4", "cifs"}


def parse(text: str) -> list[Entry]:
    """Return the entries of a table; lines that are none are passed over."""
    entries = []
    for number, line in enumerate(text.split("\n")):
        fields = line.split()
        if not fields or fields[0].startswith("#") or len(fields) < 2:
            continue
        kind = fields[2] if len(fields) > 2 else "auto"
        options = tuple(fields[3].split(",")) if len(fields) > 3 else ()
        entries.append(Entry(number, _plain(fields[0]), _plain(fields[1]), kind, options))
    return entries


def disk_index(device: str) -> tuple[int, int] | None:
    """Return which disk and partition (0: the whole disk) a name by place means; None if it is no such name."""
    found = BY_PLACE.match(device)
    if found is None:
        return None
    if found["letter"] is None:
        numbers = [int(number) for number in re.findall(r"\d+", device)]
        return numbers[0], (numbers[2] if len(numbers) > 2 else 0)
    index = 0
    for letter in found["letter"]:
        index = index * 26 + ord(letter) - ord("a") + 1
    return index - 1, int(found["number"] or 0)


def fits(device: str, bus: str) -> bool:
    """Say whether a disk on ``bus`` is given a name of this family."""
    return device.removeprefix("/dev/").startswith(FAMILY.get(bus, "sd"))


def renamed(text: str, names: Mapping[str, str]) -> str:
    """Return the table with devices called by their new ``names``; all else stays as it was, to the last space."""
    lines = text.split("\n")
    for entry in parse(text):
        if entry.device in names:
            lines[entry.line] = lines[entry.line].replace(entry.device, names[entry.device], 1)
    return "\n".join(lines)


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text).strip('"')
