"""The group manifest: the one object whose creation publishes a checkpoint."""

from __future__ import annotations

from typing import Any, Final, Literal

from farshore.model.base import Report
from farshore.model.integrity import DiskAudit
from farshore.model.machine import MachineFacts

Level = Literal["crash", "machine", "group", "application"]
#: From the lowest to the highest.
LEVELS: Final[tuple[Level, ...]] = ("crash", "machine", "group", "application")


class DiskContent(Report):
    """What a cycle wrote to a disk, judged by samples of 4 KiB.

    Attributes:
        mode: how the disk was copied.
        written_bytes: data that crossed the link, zeroes not counted.
        held_bytes: data that the disk holds, as far as the copies so far show.
        samples: how many were looked at.
        noisy: how many of them look like noise, as encrypted or compressed data does.
        entropy_bits: mean entropy of a byte, 0 to 8.
        uniformity: chi-squared of the noisy samples' bytes together, per degree of freedom: about 1 for what a cipher
            makes, more for most of what a compressor makes; 0 where there is too little to tell.
    """

    mode: str
    written_bytes: int
    held_bytes: int
    samples: int = 0
    noisy: int = 0
    entropy_bits: float = 0.0
    uniformity: float = 0.0


class DiskPoint(Report):
    """One disk in a checkpoint.

    Attributes:
        disk_key: ``"<machine id>/<disk id>"`` at the source.
        size_bytes: the source's size; the rest of a larger target reads as zero.
        point: the target platform's native recovery point.
        tree_root: hex root of the disk's digest tree (``farshore.blocks.tree``).
        source_point: the source's point that these bytes are; the base of the next cycle.
        audit: which leaves were compared with the source; None in manifests of before there was an audit.
        content: what the cycle wrote looks like; None in manifests of before that was looked at.
    """

    disk_key: str
    size_bytes: int
    point: str
    tree_root: str
    source_point: str
    audit: DiskAudit | None = None
    content: DiskContent | None = None


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


class LevelChange(Report):
    """A disk's window went from one level to another, both in bytes; ``at_s`` counts from the disk's begin."""

    at_s: float
    from_bytes: int
    to_bytes: int
    reason: str


class DiskStats(Report):
    """What one disk of a cycle took. ``level_bytes`` is its window at the end.

    ``read_back_bytes`` is data that the last attempt read back; where it is all of ``moved_bytes``, nothing that was
    written is unproven.
    """

    disk_key: str
    mode: str
    moved_bytes: int
    resent_bytes: int = 0
    read_back_bytes: int = 0
    retries: int = 0
    seconds: float
    level_bytes: int = 0
    level_changes: tuple[LevelChange, ...] = ()
    content: DiskContent | None = None


class SourceStats(Report):
    """What a session took at the source. ``cpu_s`` is of the whole process since the session was opened."""

    read_bytes: int = 0
    sent_bytes: int = 0
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0


class CycleStats(Report):
    """What one cycle of a group moved and why.

    ``moved_bytes`` is payload that crossed the link, ``changed_bytes`` what the source reported as changed,
    ``disk_bytes`` the sum of the disks' sizes; ``audited_bytes`` what was not reported, and compared with the source
    nevertheless; ``mode`` is the widest of the disks' modes.
    """

    mode: Literal["full", "incremental", "verify"]
    disk_bytes: int
    changed_bytes: int
    moved_bytes: int
    zero_bytes: int = 0
    resent_bytes: int = 0
    audited_bytes: int = 0
    seconds: float
    reason: str = ""
    retries: int = 0
    source: SourceStats | None = None
    disks: tuple[DiskStats, ...] = ()
