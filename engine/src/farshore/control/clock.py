"""Readings of two clocks, so that a jump of one never makes a recovery point look younger than it is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Stamp:
    """One instant: ``wall_s`` since the epoch, ``boot_s`` since the boot named ``boot_id`` (suspend counted)."""

    wall_s: float
    boot_s: float
    boot_id: str

    def age_s(self, earlier: Stamp) -> float:
        """Return the seconds from ``earlier`` to this reading, never less than the true ones.

        Within one boot the larger of both clocks' differences. Across boots at least this boot's own length has
        passed, however the wall clock was set meanwhile.
        """
        wall_s = self.wall_s - earlier.wall_s
        boot_s = self.boot_s - earlier.boot_s if self.boot_id == earlier.boot_id else self.boot_s
        return max(wall_s, boot_s, 0.0)


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def now() -> Stamp:
    """Return both clocks' readings."""
    return Stamp(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), _boot_id())


def iso(seconds: float | None) -> str | None:
    """Return seconds since the epoch as ISO 8601 in UTC with milliseconds: ``2026-11-22T02:45:00.123Z``."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_iso(text: str) -> float | None:
    """Return the seconds since the epoch that ``text`` names, None if it is no time. Without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
