"""Which way a plan runs."""

from __future__ import annotations

from typing import NamedTuple

from farshore.control.store.records import Plan


class Direction(NamedTuple):
    """Where a plan's machines are, and where they are replicated to."""

    source: str
    target: str


def direction(row: Plan) -> Direction:
    """Return the source and the target site of a plan's replication as it is now: from where the plan is active."""
    source, target = str(row.definition["source_site"]), str(row.definition["target_site"])
    return Direction(source, target) if row.active_site == source else Direction(row.active_site, source)
