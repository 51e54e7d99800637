"""Removes records that nobody needs any more, so that the database does not grow without end.

Runs, reports, checkpoints, plan revisions and the audit trail stay.
"""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import delete, select

from farshore.control import tasks
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, EnrolToken, Idempotency, Task

#: Tasks and cycles are kept this long after their end, those that only look at a site much shorter.
KEPT_S: Final = 30 * 86400.0
LOOKS_KEPT_S: Final = 3600.0
KEYS_KEPT_S: Final = 86400.0


def tidy(tx: Transaction) -> None:
    """Remove what is old and ended. Newest cycles that checkpoints point to stay."""
    now = time.time()
    tx.execute(
        delete(Task).where(
            Task.kind.in_(("inventory", "check", "catalog-scan", "machine-detach")),
            Task.state.in_(tasks.ENDED),
            Task.ended_at < now - LOOKS_KEPT_S,
        )
    )
    needed = select(Checkpoint.cycle_id).where(Checkpoint.state == "published")
    tx.execute(delete(Cycle).where(Cycle.ended_at < now - KEPT_S, Cycle.cycle_id.not_in(needed)))
    tx.execute(delete(Task).where(Task.state.in_(tasks.ENDED), Task.ended_at < now - KEPT_S))
    tx.execute(delete(Idempotency).where(Idempotency.at < now - KEYS_KEPT_S))
    tx.execute(delete(EnrolToken).where(EnrolToken.expires_at < now - KEPT_S))
