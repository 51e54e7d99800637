"""The figure ``aws-memory``: a volume of 16 TiB of which one block in twenty has changed, in flat memory."""

from __future__ import annotations

from benchmarks.aws_peer import endless, measured
from benchmarks.results import Check, Figure
from benchmarks.workshop import Workshop

_GIB = {"full": 16 * 1024, "quick": 256}
_BOUND_MIB = 64


def figure(shop: Workshop, size: str) -> Figure:
    """Measure it: all changes are listed page by page, some of the blocks are read, all are noted in a journal."""
    result = Figure("aws-memory")
    gib = _GIB[size]
    with endless(gib) as url:
        found = measured("memory", url, str(gib), str(shop.run))
    shop.say(str(found))
    if found["digests"] != found["changed_blocks"] or abs(found["changed_blocks"] / (gib * 2048) - 0.05) > 0.001:
        raise AssertionError(f"not all changes came: {found}")
    grown = found["peak_mib"] - found["before_mib"]
    result.checks.append(Check("memory", grown, "<=", _BOUND_MIB, "MiB more than before"))
    result.details |= {"gib": gib, **found}
    return result
