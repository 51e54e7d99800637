"""What a link can carry at the most, and what is said about rates. Pure.

A segment of a full MTU costs the wire its frame: 38 bytes of Ethernet (preamble 8, header 14, check 4, gap 12), 20 of
IPv4 (RFC 791), 20 of TCP (RFC 9293), 12 of the time-stamp option (RFC 7323), which Linux uses unless told not to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MTU: Final = 1500
FRAMING: Final = 38
HEADERS: Final = 20 + 20
TIME_STAMPS: Final = 12


def payload_rate(wire_bit_s: float, *, time_stamps: bool = True, mtu: int = MTU) -> float:
    """Return the bytes of TCP payload per second that a link of ``wire_bit_s`` carries in full segments."""
    payload = mtu - HEADERS - (TIME_STAMPS if time_stamps else 0)
    return wire_bit_s / 8 * payload / (mtu + FRAMING)


def steady_rate(samples: Sequence[Sequence[float]], *, first: float = 0.20, last: float = 0.95) -> float | None:
    """Return bytes per second between the shares ``first`` and ``last`` of all bytes.

    Args:
        samples: ``[seconds, bytes so far]``, both growing; the last one holds all bytes.
        first: the share of all bytes at which to begin.
        last: the share of all bytes at which to end.

    Returns:
        The rate; None where the samples are too few to tell.
    """
    if len(samples) < 3:
        return None
    whole = samples[-1][1]
    begin, end = _moment(samples, first * whole), _moment(samples, last * whole)
    return (last - first) * whole / (end - begin) if end > begin else None


def _moment(samples: Sequence[Sequence[float]], wanted: float) -> float:
    """Return when ``wanted`` bytes were reached, on the line between two samples."""
    previous: Sequence[float] = (0.0, 0.0)
    for sample in samples:
        if sample[1] >= wanted:
            grown = sample[1] - previous[1]
            return previous[0] + (sample[0] - previous[0]) * ((wanted - previous[1]) / grown if grown else 1.0)
        previous = sample
    return samples[-1][0]


def jain(values: Sequence[float]) -> float:
    """Return Jain's index of fairness: 1 where all get the same, 1/n where one gets all (Jain, Chiu, Hawe 1984)."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def worst_share(samples: Sequence[Sequence[float]], rate: float, span_s: float) -> tuple[float, float]:
    """Return the least and the greatest share of ``rate`` that was used in any ``span_s`` seconds.

    Args:
        samples: ``[seconds, bytes so far]``, both growing. A span begins at one and ends at the first that is far
            enough.
        rate: bytes per second.
        span_s: how long is looked at.

    Raises:
        ValueError: the samples cover no such time.
    """
    shares, end = list[float](), 0
    for begin, first in enumerate(samples):
        end = max(end, begin)
        while end < len(samples) and samples[end][0] - first[0] < span_s:
            end += 1
        if end == len(samples):
            break
        last = samples[end]
        shares.append((last[1] - first[1]) / (last[0] - first[0]) / rate)
    if not shares:
        raise ValueError(f"the samples are too few for {span_s:g} s")
    return min(shares), max(shares)
