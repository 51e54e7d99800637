"""What audits and scrubs have found out about checkpoints, taken over from the addenda at the target sites.

A projection, as the catalogue itself: the addenda lie beside the manifests and are read again with every scan.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import audit
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint
from farshore.model.integrity import Addendum, integrity_of

log = logging.getLogger(__name__)


def learn(tx: Transaction, found: Iterable[Addendum]) -> None:
    """Record addenda; those that are known, or of checkpoints that are not, change nothing."""
    by_checkpoint: dict[str, list[Addendum]] = {}
    for one in found:
        by_checkpoint.setdefault(one.checkpoint_id, []).append(one)
    for checkpoint_id, addenda in by_checkpoint.items():
        row = tx.get(Checkpoint, checkpoint_id)
        if row is not None and row.group_id == addenda[0].group_id:
            _learn(tx, row, addenda)


def _learn(tx: Transaction, row: Checkpoint, found: list[Addendum]) -> None:
    known = known_of(row)
    new = [one for one in found if one not in known]
    if not new:
        return
    before, known = row.integrity, sorted([*known, *new], key=lambda one: (one.at, one.origin))
    row.addenda = [one.model_dump(mode="json") for one in known]
    row.integrity = integrity_of(known)
    for one in new:
        if one.verdict == "suspect":
            log.error("checkpoint %s of plan %s is suspect: %s", row.checkpoint_id, row.plan, one.reason)
        audit.record(
            tx,
            f"site {row.target_site}",
            f"checkpoint_{one.verdict}",
            row.checkpoint_id,
            plan=row.plan,
            by=one.by,
            origin=one.origin,
            reason=one.reason,
            before=before,
            after=row.integrity,
        )
    tx.flush()
    tx.changed("checkpoint", row.checkpoint_id)
    tx.changed("plan", row.plan)


def known_of(row: Checkpoint) -> list[Addendum]:
    """Return what is known of a checkpoint, oldest first."""
    return [Addendum.model_validate(one) for one in row.addenda]


def any_suspect(session: Session, plan: str) -> bool:
    """Say whether a checkpoint of the plan that is offered is suspect."""
    query = select(Checkpoint.checkpoint_id).where(
        Checkpoint.plan == plan, Checkpoint.state == "published", Checkpoint.integrity == "suspect"
    )
    return session.scalars(query.limit(1)).first() is not None
