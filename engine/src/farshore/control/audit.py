"""The audit trail: each entry's digest covers the one before, so that a gap or a change shows."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import clock
from farshore.control.store import settings
from farshore.control.store.database import Transaction
from farshore.control.store.records import Audit

ORIGIN: Final = "0" * 64


def record(tx: Transaction, actor: str, action: str, subject: str, **detail: Any) -> None:
    """Add an entry in the transaction of what it tells about. ``detail`` holds no secret."""
    tx.flush()
    last = tx.scalars(select(Audit).order_by(Audit.seq.desc()).limit(1)).first()
    number, before = (last.seq, last.digest) if last else _begin(tx)
    entry = Audit(
        seq=number + 1,
        at=round(clock.now().wall_s, 3),
        actor=actor,
        action=action,
        subject=subject,
        detail=detail,
        previous=before,
        digest="",
    )
    entry.digest = digest(entry)
    tx.add(entry)


def _begin(session: Session) -> tuple[int, str]:
    """Return what the first entry here follows: nothing, or the last one of the control plane before this one."""
    head = settings.head(session, "audit")
    return (int(head["number"]), str(head["digest"])) if head else (0, ORIGIN)


def digest(entry: Audit) -> str:
    """Return the SHA-256 of an entry's canonical JSON, which includes the digest before it."""
    body = {name: getattr(entry, name) for name in ("seq", "at", "actor", "action", "subject", "detail", "previous")}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def first_break(session: Session) -> int | None:
    """Return the number of the first entry that does not follow from the one before; None if the chain is whole."""
    number, previous = _begin(session)
    expected = number + 1
    for entry in session.scalars(select(Audit).order_by(Audit.seq)):
        if entry.seq != expected or entry.previous != previous or digest(entry) != entry.digest:
            return expected
        previous, expected = entry.digest, expected + 1
    return None
