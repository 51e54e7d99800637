"""When a group's next cycle begins. Pure: ages in, a wait out.

A cycle that begins at age ``a`` of the newest checkpoint and takes ``d`` seconds publishes at age ``a + d``, which is
the worst RPO of the round. So ``a + d <= rpo`` has to hold. Half of the RPO leaves as much time for the cycle as for
the wait; a cycle that needs more than a third of the RPO begins earlier, with half of its own time to spare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Share of the RPO after which a cycle begins at the latest.
LATEST_SHARE: Final = 0.5
#: What is planned for a cycle, as a multiple of what the last one took.
RESERVE: Final = 1.5
#: First pause after a failed cycle; doubles with each further failure.
FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 900.0


@dataclass(frozen=True, slots=True)
class GroupState:
    """What decides whether a group is due. Ages in seconds; None: there is none.

    ``active``: its plan is active and protecting. ``busy``: a cycle of it, or something else that needs its points,
    has not ended; a cycle that falls due meanwhile is not queued, the next one carries its changes.
    """

    rpo_s: float
    active: bool
    busy: bool
    newest_age_s: float | None
    last_cycle_s: float | None
    pause_s: float = 0.0


def is_due(state: GroupState) -> bool:
    """Say whether a cycle of the group has to begin now."""
    if not state.active or state.busy or state.pause_s > 0:
        return False
    return wait_s(state.rpo_s, state.newest_age_s, state.last_cycle_s) <= 0


def wait_s(rpo_s: float, newest_age_s: float | None, last_cycle_s: float | None) -> float:
    """Return the seconds until a group's next cycle; 0 if it is due."""
    if newest_age_s is None:
        return 0.0
    latest = min(rpo_s * LATEST_SHARE, rpo_s - RESERVE * (last_cycle_s or 0.0))
    return max(0.0, max(0.0, latest) - newest_age_s)


def pause_after(failures: int, rpo_s: float) -> float:
    """Return the pause before the next try after ``failures`` failed cycles in a row, 0 after a good one.

    Never longer than the RPO's own rhythm unless that is very short: a fault that passes should be noticed.
    """
    if failures <= 0:
        return 0.0
    limit = max(FIRST_PAUSE_S, min(LONGEST_PAUSE_S, rpo_s * LATEST_SHARE))
    return float(min(FIRST_PAUSE_S * 2 ** (failures - 1), limit))
