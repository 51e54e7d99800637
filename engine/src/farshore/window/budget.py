"""What a node may hold in flight, all disks together."""

from __future__ import annotations

from typing import Final

from farshore.units import MIB, WINDOW_LEVELS

#: Above this more bytes in flight bring no more throughput on any link that was measured; see WINDOW_LEVELS.
NODE_BUDGET_MAX: Final = 512 * MIB
#: A node of less memory than 64 MiB could not hold one disk's lowest level; it still gets that.
NODE_BUDGET_MIN: Final = WINDOW_LEVELS[0]


def node_budget(memory_bytes: int) -> int:
    """Return the bytes that a node of ``memory_bytes`` of RAM may hold in flight: a quarter, 512 MiB at most."""
    return max(NODE_BUDGET_MIN, min(memory_bytes // 4, NODE_BUDGET_MAX))
