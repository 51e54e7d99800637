"""Remove everything that carries a tag, and prove it."""

from __future__ import annotations

from farshore.model.task import SweepResult
from farshore.platforms.contract import Compute, Target


def sweep(compute: Compute | None, target: Target, tag: str) -> SweepResult:
    """Remove machines, disks, networks and rules of ``tag``, then the leases on points; what stays is named.

    The leases go last: as long as anything of the tag is left, it may still read its point.
    """
    removed, remaining = compute.sweep(tag) if compute is not None else ([], [])
    if not remaining:
        target.release(tag)
    return SweepResult(removed=tuple(removed), remaining=tuple(remaining))
