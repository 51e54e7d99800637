"""Whether a plan could be recovered now: facts in, findings and a score out. Pure.

Nothing is asked of anybody here: what is not known is told as not known, never taken for good.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from farshore.model.machine import Finding
from farshore.recovery.readiness import kits, machines, networks, plans, sites
from farshore.recovery.readiness.facts import Facts, MachineState, NodeState, Rehearsal, Severity, SiteState
from farshore.recovery.readiness.sites import DRILL_SHARE

__all__ = [
    "DRILL_SHARE",
    "Facts",
    "MachineState",
    "NodeState",
    "Readiness",
    "Rehearsal",
    "SiteState",
    "evaluate",
    "score",
]

#: What findings take from 100: the first of a code, and each further one. One error is never outweighed by the rest.
_COSTS: Final[dict[Severity, tuple[int, int]]] = {"error": (30, 5), "warning": (8, 2), "info": (0, 0)}


@dataclass(frozen=True, slots=True)
class Readiness:
    """``ready``: nothing stands in the way of a recovery. ``score``: 100 is all that could be asked."""

    ready: bool
    score: int
    findings: tuple[Finding, ...]


def evaluate(facts: Facts) -> Readiness:
    """Return what is wrong, worst first, and what it adds up to."""
    found = [
        *plans.state(facts),
        *sites.places(facts),
        *networks.networks(facts),
        *networks.addresses(facts),
        *sites.room(facts),
        *sites.quotas(facts),
        *sites.groups(facts),
        *sites.bounds(facts),
        *kits.kits(facts),
        *machines.machines(facts),
        *plans.rehearsed(facts),
        *plans.afterlife(facts),
    ]
    rank: dict[str, int] = {"error": 0, "warning": 1, "info": 2}
    found.sort(key=lambda finding: rank[finding.severity])
    return Readiness(all(finding.severity != "error" for finding in found), score(found), tuple(found))


def score(findings: list[Finding]) -> int:
    """Return 100 less what the findings cost; many of one kind cost little more than one."""
    lost = 0
    for (severity, _code), number in Counter((finding.severity, finding.code) for finding in findings).items():
        first, further = _COSTS[severity]
        lost += first + further * (number - 1)
    return max(0, 100 - lost)
