"""The audit's rotation: which leaves are compared with the source in which cycle. Pure.

Change tracking may lie. So in every incremental cycle some of the leaves that it did not report are asked for at the
source, in an order that gives each of them its turn once in ``slots`` cycles:

* Leaves go by *units* of 64 (4 MiB), so that a question reads a run; ``slots`` units side by side are a *stripe*.
* In turn ``t`` one unit of each stripe is due: the one at place ``(t + r) mod slots``, where ``r`` is derived from the
  disk's key and the stripe. So each turn reads the same share, spread over the disk, in an order of the disk's own.

The manifest keeps each disk's turn, and the next cycle takes the next one: the record of a leaf's last clean audit is
the newest manifest in whose turn it was due.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from blake3 import blake3

from farshore.model.checkpoint import DiskPoint, Manifest
from farshore.model.integrity import DiskAudit

#: Leaves that have their turn together: 4 MiB.
UNIT_LEAVES: Final = 64


def slots_of(fraction: float) -> int:
    """Return how many cycles a rotation takes; 0: there is none."""
    # 1 / 0.02 must give 50, whatever binary fractions make of it.
    return math.ceil(round(1 / fraction, 6)) if fraction > 0 else 0


def due(disk_key: str, leaves: int, slots: int, turn: int) -> Iterator[tuple[int, int]]:
    """Yield the runs ``[first, stop)`` of leaves whose turn it is, ascending; the disk has ``leaves`` of them."""
    if slots <= 0:
        return
    span = slots * UNIT_LEAVES
    for stripe in range(-(-leaves // span)):
        first = stripe * span + (turn + _shift(disk_key, stripe)) % slots * UNIT_LEAVES
        if first < leaves:
            yield first, min(first + UNIT_LEAVES, leaves)


def covers(audit: DiskAudit | None, disk_key: str, first: int, stop: int) -> bool:
    """Say whether all leaves ``[first, stop)`` were compared with the source in a cycle with this ``audit``."""
    if audit is None:
        return False
    if audit.whole:
        return True
    return audit.slots > 0 and all(
        _is_due(disk_key, unit, audit) for unit in range(first // UNIT_LEAVES, -(-stop // UNIT_LEAVES))
    )


def following(before: DiskAudit | None, fraction: float, *, whole: bool) -> DiskAudit:
    """Return the record of the cycle after the one with the record ``before``."""
    return DiskAudit(slots=slots_of(fraction), turn=before.turn + 1 if before else 0, whole=whole)


def touched(history: Sequence[Manifest], disk_key: str, first: int, stop: int) -> list[Manifest]:
    """Return the checkpoints that a missed change in the leaves ``[first, stop)`` may have touched, newest first.

    ``history`` is the group's checkpoints before the one that found it, newest first. They are those back to the last
    one in which these leaves were compared with the source, which is sound itself.
    """
    found: list[Manifest] = []
    for manifest in history:
        disk = disk_of(manifest, disk_key)
        if disk is None:
            continue
        if covers(disk.audit, disk_key, first, stop):
            break
        found.append(manifest)
    return found


def most_touched(history: Sequence[Manifest], disk_key: str) -> int:
    """Return how many checkpoints :func:`touched` names at most: those back to the last whole comparison."""
    disks = [disk for manifest in history if (disk := disk_of(manifest, disk_key)) is not None]
    whole = (index for index, disk in enumerate(disks) if disk.audit is not None and disk.audit.whole)
    return next(whole, len(disks))


def disk_of(manifest: Manifest, disk_key: str) -> DiskPoint | None:
    """Return one disk of a checkpoint, None if it has no such disk."""
    return next((disk for disk in manifest.disks if disk.disk_key == disk_key), None)


def _is_due(disk_key: str, unit: int, audit: DiskAudit) -> bool:
    stripe, place = divmod(unit, audit.slots)
    return place == (audit.turn + _shift(disk_key, stripe)) % audit.slots


def _shift(disk_key: str, stripe: int) -> int:
    digest = blake3(f"{stripe} {disk_key}".encode(), derive_key_context="farshore.dr audit rotation v1").digest(8)
    return int.from_bytes(digest)
