"""What replication is likely to cost at the providers of its two sites: pure, an estimate.

A month is 30 days of cycles at the plan's own rhythm. For each group of machines, with ``size`` of its disks, ``rate``
of changed bytes per second and a cycle every ``interval``:

    changed   = min(size, rate · interval)               of one cycle
    compared  = what a cycle's audit reads beside that, as measured, else its share of the rest of the disks
    kept      = size + what each checkpoint but the newest adds: what changed until the next one that is kept
    written   = changed, in whole blocks, a call each, at the target
    read      = changed + compared, the same at the source; one listing for each 10,000 changed blocks of a disk
    held      = size, the snapshot that the source keeps to tell what changed
    sent      = changed; what is written twice between two cycles counts once, what compression saves is not counted

Disks count as full and changes as if no byte changed twice, so that storage is rather more than it will be. Not in it:
requests for manifests, keys, recovered machines, taxes and discounts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from farshore.model.plan import Retention
from farshore.model.prices import Prices
from farshore.units import GIB

MONTH_S: Final = 30 * 86400.0
#: Of a disk that no cycle has told of yet, so much is taken to change in a day.
DAILY_CHANGE: Final = 0.05
#: For how long the checkpoints of each rule reach back, one by one.
_SPANS: Final = {"hourly": 3600.0, "daily": 86400.0, "weekly": 7 * 86400.0, "monthly": MONTH_S}


@dataclass(frozen=True, slots=True)
class Load:
    """What a group of machines asks of its copy.

    ``rate``: changed bytes per second, ``compared_bytes``: what the audit of one cycle reads; None: not measured yet.
    """

    disks: tuple[int, ...]
    rate: float | None = None
    compared_bytes: float | None = None

    @property
    def size_bytes(self) -> int:
        """Of all disks together."""
        return sum(self.disks)

    @property
    def changes(self) -> float:
        """Changed bytes per second, measured or assumed."""
        return self.rate if self.rate is not None else self.size_bytes * DAILY_CHANGE / 86400.0


def kept_bytes(load: Load, interval_s: float, rules: Retention) -> float:
    """Return what all checkpoints of a group hold together when retention has as many as it keeps."""
    total = float(load.size_bytes)
    spans = [interval_s] * (rules.count - 1)
    for rule, span in _SPANS.items():
        spans += [span] * getattr(rules, rule)
    reached = 0.0
    for span in sorted(spans):
        reached += span
        if rules.max_age is not None and reached > rules.max_age:
            break
        total += min(float(load.size_bytes), load.changes * span)
    return total


def estimate(
    loads: Sequence[Load],
    *,
    interval_s: float,
    rules: Retention,
    audit_fraction: float,
    source: Prices | None,
    target: Prices | None,
) -> dict[str, Any]:
    """Return what the first copy costs once and what a month costs, by what it is for; sums are rounded to cents.

    ``None`` for prices: that side charges nothing. ``basis`` is ``measured`` where cycles of all groups have told.
    """
    cycles = MONTH_S / interval_s
    first, month = _Bill(), _Bill()
    for load in loads:
        changed = min(float(load.size_bytes), load.changes * interval_s)
        compared = (
            load.compared_bytes if load.compared_bytes is not None else (load.size_bytes - changed) * audit_fraction
        )
        if target is not None:
            first.calls += target.write_calls * _calls(load.size_bytes, target) / 1000
            month.calls += target.write_calls * _calls(changed, target) * cycles / 1000
            month.storage += target.stored_gib_month * kept_bytes(load, interval_s, rules) / GIB
        if source is not None:
            for bill, read, listed, times in (
                (first, float(load.size_bytes), float(load.size_bytes), 1.0),
                (month, changed + compared, changed, cycles),
            ):
                lists = sum(
                    max(1, math.ceil(_calls(listed * size / max(load.size_bytes, 1), source) / source.listed))
                    for size in load.disks
                )
                bill.calls += source.read_calls * _calls(read, source) * times / 1000
                bill.calls += source.list_calls * lists * times / 1000
            month.storage += source.stored_gib_month * load.size_bytes / GIB
            first.transfer += source.sent_gib * load.size_bytes / GIB
            month.transfer += source.sent_gib * changed * cycles / GIB
    prices = [one for one in (source, target) if one is not None]
    return {
        "currency": prices[0].currency if prices else "",
        "first_copy": first.rounded(),
        "per_month": month.rounded(),
        "basis": "measured" if loads and all(load.rate is not None for load in loads) else "assumed",
        "changed_gib_per_day": round(sum(load.changes for load in loads) * 86400 / GIB, 2),
        "prices": [one.model_dump(include={"region", "as_of", "source"}) for one in prices],
    }


@dataclass(slots=True)
class _Bill:
    calls: float = 0.0
    storage: float = 0.0
    transfer: float = 0.0

    def rounded(self) -> dict[str, float]:
        total = self.calls + self.storage + self.transfer
        parts = {"calls": self.calls, "storage": self.storage, "transfer": self.transfer, "total": total}
        return {name: round(amount, 2) for name, amount in parts.items()}


def _calls(size_bytes: float, prices: Prices) -> int:
    # Float dust must not become a call.
    return math.ceil(round(size_bytes / prices.call_bytes, 6))
