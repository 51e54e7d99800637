"""The figure ``aws-throughput``: our writer and reader beside bare boto3 with as many threads, in one process."""

from __future__ import annotations

import statistics

from benchmarks.aws_peer import endless, measured
from benchmarks.results import Check, Figure
from benchmarks.workshop import Workshop

_MIB = {"full": 512, "quick": 64}
_THREADS = 16
_BOUND = 0.9


def figure(shop: Workshop, size: str) -> Figure:
    """Measure it: the median of the turns' ratios, for writing and for reading."""
    result = Figure("aws-throughput")
    with endless(64) as url:
        found = measured("throughput", url, str(_MIB[size]), str(_THREADS), str(shop.run))
    shop.say(str(found))
    for ours in ("write", "read"):
        ratio = statistics.median(one / bare for one, bare in zip(found[ours], found[f"bare_{ours}"], strict=True))
        result.checks.append(Check(ours, ratio, ">=", _BOUND, "of bare boto3"))
    result.details |= {"threads": _THREADS, "mib_per_s": found}
    return result
