"""The group manifest: the one object whose creation publishes a checkpoint."""

from __future__ import annotations

from typing import Any, Literal

from farshore.model.base import Report
from farshore.model.machine import MachineFacts

Level = Literal["crash", "machine", "group", "application"]


class DiskPoint(Report):
    """One disk in a checkpoint.

    Attributes:
        disk_key: ``"<machine id>/<disk id>"`` at the source.
        size_bytes: the source's size; the rest of a larger target reads as zero.
        point: the target platform's native recovery point.
        tree_root: hex root of the disk's digest tree (``farshore.blocks.tree``).
        source_point: the source's point that these bytes are; the base of the next cycle.
    """

    disk_key: str
    size_bytes: int
    point: str
    tree_root: str
    source_point: str


class Manifest(Report):
    """A published checkpoint of a consistency group.

    Times are seconds since the epoch. ``ordered_at`` is the control plane's own clock just before it ordered the
    source point, the time that RPO is counted from. ``sequence`` grows by one with each checkpoint of the group within
    one epoch; ``parent`` is the checkpoint that it follows.
    """

    version: Literal[1] = 1
    checkpoint_id: str
    group_id: str
    plan: str
    plan_revision: int
    catalog_id: str
    generation: int
    epoch: int
    term: int
    sequence: int
    parent: str | None = None
    source_site: str
    target_site: str
    level: Level
    evidence: dict[str, Any] = {}
    ordered_at: float
    taken_at: float
    machines: tuple[MachineFacts, ...]
    disks: tuple[DiskPoint, ...]
    settings: dict[str, Any] = {}


class CycleStats(Report):
    """What one cycle of a group moved and why.

    ``moved_bytes`` is payload that crossed the link, ``changed_bytes`` what the source reported as changed,
    ``disk_bytes`` the sum of the disks' sizes; ``mode`` is the widest of the disks' modes.
    """

    mode: Literal["full", "incremental", "verify"]
    disk_bytes: int
    changed_bytes: int
    moved_bytes: int
    zero_bytes: int = 0
    resent_bytes: int = 0
    seconds: float
    reason: str = ""
