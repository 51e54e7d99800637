"""Which checkpoints show signs of encryption, and which came after such a one and hold the same damage.

A flag is set once, when the checkpoint is recorded. It taints all that follow in the group, until somebody says of one
of them that it is clean: of the flagged one itself, because it was harmless, or of a later one, because the machine was
restored.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from sqlalchemy import select

from farshore.checkpoints.score import HISTORY_MAX, Score, score
from farshore.control import audit
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Group
from farshore.model.checkpoint import DiskContent, Manifest

log = logging.getLogger(__name__)


def rate(tx: Transaction, manifest: Manifest) -> dict[str, Any]:
    """Return what is thought of a checkpoint that is about to be recorded, as the record keeps it."""
    before = tx.scalars(
        select(Checkpoint)
        .where(
            Checkpoint.group_id == manifest.group_id,
            Checkpoint.target_site == manifest.target_site,
            Checkpoint.epoch == manifest.epoch,
            Checkpoint.sequence < manifest.sequence,
        )
        .order_by(Checkpoint.sequence.desc())
        .limit(HISTORY_MAX + 1)
    ).all()
    earlier: dict[str, list[DiskContent]] = {}
    for row in reversed(before):
        for disk in row.manifest["disks"] if is_clean(row) else ():
            if disk.get("content") is not None:
                earlier.setdefault(disk["disk_key"], []).append(DiskContent.model_validate(disk["content"]))
    found = score(manifest, earlier)
    taint = _taint_of(before[0]) if before else None
    found = found.model_copy(update={"tainted_by": taint})
    _mark(tx, manifest.group_id, taint or (manifest.checkpoint_id if found.flagged else None))
    if found.flagged:
        log.error("checkpoint %s of plan %s: %s", manifest.checkpoint_id, manifest.plan, "; ".join(found.reasons))
        audit.record(
            tx,
            f"site {manifest.target_site}",
            "checkpoint_flagged",
            manifest.checkpoint_id,
            plan=manifest.plan,
            score=found.value,
            reasons=list(found.reasons),
        )
    return found.model_dump(mode="json")


def score_of(row: Checkpoint) -> Score:
    """Return what is thought of a checkpoint."""
    return Score.model_validate(row.score or {})


def is_clean(row: Checkpoint) -> bool:
    """Say whether neither a checkpoint nor one that it follows shows signs of encryption, or somebody said so."""
    found = score_of(row)
    return row.cleared is not None or not (found.flagged or found.tainted_by)


def _taint_of(row: Checkpoint) -> str | None:
    """Return which flagged checkpoint taints what follows ``row``."""
    if is_clean(row):
        return None
    return score_of(row).tainted_by or row.checkpoint_id


def _mark(tx: Transaction, group_id: str, taint: str | None) -> None:
    """Note at the group which checkpoint taints its newest one."""
    group = tx.get(Group, group_id)
    if group is not None:
        group.tainted_by = taint


def verdict(row: Checkpoint) -> str:
    """Return in a word what is thought of a checkpoint: ``clean flagged tainted cleared`` or ``unscored``."""
    found = score_of(row)
    if row.cleared is not None:
        return "cleared"
    if found.flagged:
        return "flagged"
    if found.tainted_by:
        return "tainted"
    return "clean" if found.scored else "unscored"


def clear(tx: Transaction, row: Checkpoint, actor: str, note: str) -> bool:
    """Say that a checkpoint is clean, and with it what follows up to the next flag; False if it was."""
    if is_clean(row):
        return False
    row.cleared = {"by": actor, "at": time.time(), "note": note}
    tx.changed("checkpoint", row.checkpoint_id)
    later = select(Checkpoint).where(
        Checkpoint.group_id == row.group_id,
        Checkpoint.target_site == row.target_site,
        Checkpoint.epoch == row.epoch,
        Checkpoint.sequence > row.sequence,
    )
    taint: str | None = None
    for other in tx.scalars(later.order_by(Checkpoint.sequence)):
        if other.score is not None:
            other.score = {**other.score, "tainted_by": taint}
            tx.changed("checkpoint", other.checkpoint_id)
        taint = _taint_of(other)
    _mark(tx, row.group_id, taint)
    tx.changed("plan", row.plan)
    return True
