"""One machine's guest: what checks look at, and the findings, writes and changes that they come to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from farshore.model.guest import GuestChange, MachinePrepareParams
from farshore.model.machine import Finding
from farshore.recovery.guest.trees import Tree
from farshore.recovery.guest.volumes import Layout, Volume
from farshore.recovery.guest.writing import Write


@dataclass(slots=True)
class Guest:
    """A guest that is off. Writes are gathered first, and done in one go for each volume."""

    params: MachinePrepareParams
    layout: Layout
    findings: list[Finding] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    changes: list[GuestChange] = field(default_factory=list)
    system: str = ""

    def find(
        self,
        code: str,
        severity: Literal["info", "warning", "error"],
        message: str,
        remedy: str = "",
        subject: str = "",
    ) -> None:
        """Add a finding."""
        self.findings.append(
            Finding(code=code, severity=severity, message=message, remedy=remedy, subject=subject or self.params.name)
        )

    def change(self, tree: Tree, path: str, content: bytes | None, what: str, detail: str = "") -> bool:
        """Have a file written where it differs; False if there is nowhere to write it."""
        # A file that is there is changed where its links lead; a new one is made beside what its folder leads to.
        place = tree.find(path)
        if place is not None:
            mode, owner, group = place.system.permissions(place.node)
            volume, where = place.volume, place.path
        else:
            volume, where = _new(tree, path)
            mode, owner, group = 0o644, 0, 0
        earlier = [item for item in self.writes if (item.volume.name, item.path) == (volume.name, where)]
        if (earlier[0].content if earlier else tree.read(path)) == content:
            return True
        self.writes = [item for item in self.writes if item not in earlier]
        self.writes.append(Write(volume, where, content, mode, owner, group))
        self.changes.append(GuestChange(what=what, detail=detail or path))
        return True

    def read(self, tree: Tree, path: str) -> bytes | None:
        """Return a file as it will be when all is written."""
        place = tree.find(path)
        if place is not None:
            for item in self.writes:
                if (item.volume.name, item.path) == (place.volume.name, place.path):
                    return item.content
        return tree.read(path)

    def bus(self) -> str:
        """Return what the system disk is plugged into."""
        disks = self.params.disks
        return next((disk.bus for disk in disks if disk.boot), disks[0].bus if disks else "virtio")

    def boot_disk(self) -> str:
        """Return the id of the disk that the firmware starts from."""
        disks = self.params.disks
        return next((disk.disk_id for disk in disks if disk.boot), disks[0].disk_id if disks else "")


def _new(tree: Tree, path: str) -> tuple[Volume, str]:
    """Return where a file that is not there yet would be."""
    parts = [part for part in path.split("/") if part]
    for depth in range(len(parts) - 1, -1, -1):
        place = tree.find("/" + "/".join(parts[:depth]))
        if place is not None:
            return place.volume, "/" + "/".join([*(p for p in place.path.split("/") if p), *parts[depth:]])
    return tree.volume, path
