"""What a site's bundle tells of the past: the newest runs that have ended with evidence, their steps and reports.

Bounded, for a bundle is renewed often: the newest runs, and no more of them than fit in a size. What machines showed
(screens, consoles) is not in it; the evidence holds its digests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control.store.database import Transaction
from farshore.control.store.records import Base, Report, Run, RunMachine, RunStep
from farshore.units import MIB

#: Runs that a bundle tells of at most.
MOST_RUNS: Final = 100
#: What they take at most before they are packed: reading and packing as much costs a fifth of a second at each renewal.
MOST_BYTES: Final = 4 * MIB
#: In the order in which they can be inserted.
_TABLES: Final[tuple[type[Base], ...]] = (Run, RunStep, RunMachine, Report)


def carried(session: Session, most_bytes: int = MOST_BYTES) -> list[dict[str, Any]]:
    """Return the rows of the newest runs with evidence, by table, newest first; a run is there whole or not at all."""
    newest = session.scalars(select(Report.run_id).order_by(Report.position.desc()).limit(MOST_RUNS)).all()
    found: list[dict[str, Any]] = []
    left = most_bytes
    for run_id in newest:
        rows = {table.__tablename__: _rows(session, table, run_id) for table in _TABLES}
        left -= len(json.dumps(rows, separators=(",", ":")))
        if left < 0:
            break
        found.append(rows)
    return found


def _rows(session: Session, table: type[Base], run_id: str) -> list[dict[str, Any]]:
    columns = list(table.__table__.columns)
    rows = session.execute(select(*columns).where(table.__table__.c.run_id == run_id))
    return [dict(zip([column.key for column in columns], row, strict=True)) for row in rows]


def restore(tx: Transaction, told: Iterable[Mapping[str, Any]]) -> None:
    """Insert what a bundle tells; columns that this version does not know are passed over."""
    for rows in told:
        for table in _TABLES:
            known = {column.key for column in table.__table__.columns}
            for row in rows[table.__tablename__]:
                tx.add(table(**{key: value for key, value in row.items() if key in known}))
            tx.flush()
