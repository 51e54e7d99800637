"""Facts about this control plane that never change by accident."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from farshore.control import ids
from farshore.control.store.database import Transaction
from farshore.control.store.records import Setting


def ensure_identity(tx: Transaction) -> None:
    """Give a new database its catalogue id and generation."""
    if tx.get(Setting, "catalog_id") is None:
        tx.add(Setting(key="catalog_id", value={"value": ids.new("cat")}))
        tx.add(Setting(key="generation", value={"value": 1}))


def catalog_id(session: Session) -> str:
    """Return the id of this catalogue of checkpoints."""
    return str(session.get_one(Setting, "catalog_id").value["value"])


def generation(session: Session) -> int:
    """Return the catalogue's generation; nodes obey the highest that they have seen."""
    return int(session.get_one(Setting, "generation").value["value"])


def head(session: Session, chain: str) -> dict[str, Any] | None:
    """Return number and digest of what the chain ``evidence`` or ``audit`` goes on from; None: it begins here."""
    row = session.get(Setting, f"head-{chain}")
    return dict(row.value) if row is not None else None


def count(tx: Transaction, name: str) -> int:
    """Return the next number of a count that begins with 1."""
    row = tx.get(Setting, f"count-{name}")
    if row is None:
        tx.add(Setting(key=f"count-{name}", value={"value": 1}))
        return 1
    row.value = {"value": int(row.value["value"]) + 1}
    return int(row.value["value"])
