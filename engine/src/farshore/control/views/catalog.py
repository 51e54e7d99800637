"""The catalogue as a whole: who obeys it, and what is kept of it where."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import bundle
from farshore.control.catalog import rebuilding
from farshore.control.clock import iso
from farshore.control.store import settings
from farshore.control.store.records import Setting, SiteBundle


def catalog(session: Session, *, key_is_here: bool) -> dict[str, Any]:
    """Return the catalogue's generation and which site keeps which bundle of it.

    ``key_is_here``: nobody has taken the recovery key away from the home yet.
    """
    wanted = bundle.digest(session)
    higher = session.get(Setting, "superseded")
    return {
        "catalog_id": settings.catalog_id(session),
        "generation": settings.generation(session),
        "rebuilding": rebuilding(session),
        "superseded_by": int(higher.value["generation"]) if higher is not None else None,
        "recovery_key_is_here": key_is_here,
        "bundles": [
            {
                "site": row.site,
                "number": row.number,
                "written_at": iso(row.written_at),
                "current": row.digest == wanted,
                "error": row.error,
            }
            for row in session.scalars(select(SiteBundle).order_by(SiteBundle.site))
        ],
    }
