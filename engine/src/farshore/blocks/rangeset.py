"""A set of byte offsets, kept as sorted, disjoint, non-touching half-open ranges."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import lt


class RangeSet:
    """Sorted disjoint ranges ``[start, stop)``.

    Ranges that touch are joined, so equal sets have equal ranges. Every operation costs O(log n) to find its place
    plus the ranges that it changes.
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        # 16 bytes per range; a resumed disk may have millions.
        self._starts = array("Q")
        self._stops = array("Q")
        for start, stop in ranges:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Put ``[start, stop)`` into the set.

        Raises:
            ValueError: if the range is negative or ends before it starts.
        """
        _check(start, stop)
        if start == stop:
            return
        # Appending in order is by far the commonest case.
        if not self._stops or start > self._stops[-1]:
            self._starts.append(start)
            self._stops.append(stop)
            return
        # first: the first range that ends at or after start; last: one past the last that starts at or before stop.
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        # 1. Nothing overlaps or touches: insert. 2. and 3. One or more do: the union of all takes their place.
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = array("Q", (start,))
        self._stops[first:last] = array("Q", (stop,))

    def add_all(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Put ascending, disjoint ``(offset, length)`` into the set; costs little where none of it was in the set."""
        if len(ranges) < 4:
            for offset, length in ranges:
                self.add(offset, offset + length)
            return
        starts = array("Q", [offset for offset, _ in ranges])
        stops = array("Q", [offset + length for offset, length in ranges])
        # All between two neighbours of the set, and no two of it touch: the whole batch goes in at one place.
        place = bisect_left(self._stops, starts[0])
        alone = place == bisect_right(self._starts, stops[-1])
        if alone and all(map(lt, stops, starts[1:])):
            self._starts[place:place] = starts
            self._stops[place:place] = stops
            return
        for start, stop in zip(starts, stops, strict=True):
            self.add(start, stop)

    def remove(self, start: int, stop: int) -> None:
        """Take ``[start, stop)`` out of the set.

        Raises:
            ValueError: if the range is negative or ends before it starts.
        """
        _check(start, stop)
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        # 1. Nothing overlaps.
        if first >= last or start == stop:
            return
        # 2. What stays of the first range on the left; 3. what stays of the last one on the right.
        left, right = self._starts[first], self._stops[last - 1]
        starts, stops = array("Q"), array("Q")
        if left < start:
            starts.append(left)
            stops.append(start)
        if stop < right:
            starts.append(stop)
            stops.append(right)
        self._starts[first:last] = starts
        self._stops[first:last] = stops

    def intersect(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield, in order, the parts of ``[start, stop)`` that are in the set."""
        _check(start, stop)
        if start == stop:
            return
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        # 1. Cut on the left; 2. whole; 3. cut on the right.
        for low, high in zip(self._starts[first:last], self._stops[first:last], strict=True):
            yield max(low, start), min(high, stop)

    def gaps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield, in order, the parts of ``[start, stop)`` that are not in the set."""
        at = start
        # 1. Before a range; 2. between two; 3. after the last.
        for low, high in self.intersect(start, stop):
            if at < low:
                yield at, low
            at = high
        if at < stop:
            yield at, stop

    def covers(self, start: int, stop: int) -> bool:
        """Say whether all of ``[start, stop)`` is in the set."""
        return next(self.gaps(start, stop), None) is None

    def total(self) -> int:
        """Return how many offsets the set holds."""
        return sum(self._stops) - sum(self._starts)

    def copy(self) -> RangeSet:
        """Return another set of the same ranges."""
        other = RangeSet()
        other._starts = self._starts[:]
        other._stops = self._stops[:]
        return other

    def clear(self) -> None:
        """Empty the set."""
        del self._starts[:]
        del self._stops[:]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._stops, strict=True))

    def __len__(self) -> int:
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __contains__(self, offset: int) -> bool:
        index = bisect_right(self._stops, offset)
        return index < len(self._starts) and self._starts[index] <= offset

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._starts == other._starts and self._stops == other._stops

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"


def align_out(start: int, stop: int, granularity: int, limit: int) -> tuple[int, int]:
    """Return ``[start, stop)`` grown to multiples of ``granularity``, its end cut at ``limit``.

    Raises:
        ValueError: if the range does not lie in ``[0, limit)``.
    """
    if not 0 <= start <= stop <= limit:
        raise ValueError(f"range {start}..{stop} is outside of 0..{limit}")
    return start // granularity * granularity, min(-(-stop // granularity) * granularity, limit)


def align_in(start: int, stop: int, granularity: int, limit: int) -> tuple[int, int]:
    """Return the whole granules of ``[start, stop)``, empty where it has none; the last of ``limit`` may be a part.

    Raises:
        ValueError: if the range does not lie in ``[0, limit)``.
    """
    if not 0 <= start <= stop <= limit:
        raise ValueError(f"range {start}..{stop} is outside of 0..{limit}")
    low = -(-start // granularity) * granularity
    high = stop if stop == limit else stop // granularity * granularity
    return low, max(low, high)


def _check(start: int, stop: int) -> None:
    if not 0 <= start <= stop:
        raise ValueError(f"{start}..{stop} is no range")
