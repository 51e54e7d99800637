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
    return turned(str(row.definition["source_site"]), str(row.definition["target_site"]), row.active_site)


def turned(source: str, target: str, active: str) -> Direction:
    """Return the direction of a plan from ``source`` to ``target`` that is active at ``active``."""
    return Direction(source, target) if active == source else Direction(active, source)
