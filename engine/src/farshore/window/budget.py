"""What a node may hold in flight, all disks together."""

from __future__ import annotations

from typing import Final

from farshore.units import CHUNK_SIZE, MIB, WINDOW_LEVELS

#: Above this more bytes in flight bring no more throughput on any link that was measured; see WINDOW_LEVELS.
NODE_BUDGET_MAX: Final = 512 * MIB
#: A node of less memory than 64 MiB could not hold one disk's lowest level; it still gets that.
NODE_BUDGET_MIN: Final = WINDOW_LEVELS[0]
#: A disk with work may always have this much in flight, however much others want, as far as the budget goes round.
SHARE_MAX: Final = WINDOW_LEVELS[0]

#: More in flight than this many times what a path holds brings nothing but waiting; less may hide that it holds more.
NEED_TIMES: Final = 4


def node_budget(memory_bytes: int, node_window: int | None = None) -> int:
    """Return the bytes that a node of ``memory_bytes`` of RAM may hold in flight: a quarter, 512 MiB at most.

    ``node_window`` is the setting that says otherwise; it holds as it is, but for one chunk at least.
    """
    if node_window is not None:
        return max(CHUNK_SIZE, node_window)
    return max(NODE_BUDGET_MIN, min(memory_bytes // 4, NODE_BUDGET_MAX))


def guaranteed_share(budget_bytes: int, disks: int) -> int:
    """Return what each of ``disks`` disks with work has for sure: whole chunks, one at least.

    Where the budget has no room for a chunk per disk the shares do not go round, and disks are parked in turn.
    """
    share = min(SHARE_MAX, budget_bytes // max(disks, 1))
    return max(CHUNK_SIZE, share // CHUNK_SIZE * CHUNK_SIZE)


def in_use(budget_bytes: int, disks: int, need_bytes: int) -> int:
    """Return how much of the budget ``disks`` disks with work share, where the paths hold ``need_bytes``."""
    return min(budget_bytes, max(WINDOW_LEVELS[-1], disks * CHUNK_SIZE, NEED_TIMES * need_bytes))
