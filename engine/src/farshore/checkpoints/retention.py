"""Which points of a group are kept, and why: pure; the times of the points are all that it knows of time.

Rules, from the strongest:

1. Nobody's rule takes a pinned point, one under a legal hold, one that is in use, the newest, the newest sound, the
   newest clean, or the one with which suspicion began. Two are left while there are two.
2. ``max_age`` takes what is older, whatever rule 3 says.
3. ``count``, ``hourly``, ``daily``, ``weekly``, ``monthly`` keep: the newest so many (pinned ones stand beside them),
   and the last point of each of the newest so many hours, days, weeks and months that have any (UTC; ISO weeks).
4. Where more than ``max_chain`` would stay, those that rule 3 keeps go too, oldest first; what rule 1 keeps does not:
   then the chain is ``crowded``, which people have to be told.

A point goes whole, and its successor takes over what it lacks, so it goes only if nobody uses the successor either.
The last point of a period that is over never changes, so thinning again takes nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from farshore.model.plan import Retention

#: Kept while there are so many: with one alone nothing is left once that turns out to be damaged.
LEAST: Final = 2

_PERIODS: Final[tuple[tuple[str, Callable[[datetime], tuple[int, ...]]], ...]] = (
    ("hourly", lambda at: (at.year, at.month, at.day, at.hour)),
    ("daily", lambda at: (at.year, at.month, at.day)),
    ("weekly", lambda at: tuple(at.isocalendar()[:2])),
    ("monthly", lambda at: (at.year, at.month)),
)


@dataclass(frozen=True, slots=True)
class Held:
    """What retention looks at of one point. ``began``: the first with a sign of encryption that nobody has cleared."""

    checkpoint_id: str
    taken_at: float
    pinned: bool = False
    legal_hold: bool = False
    in_use: bool = False
    suspect: bool = False
    clean: bool = True
    began: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a point stays; ``reasons`` says why it stays, or why it goes."""

    checkpoint_id: str
    stays: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdicts, oldest first. ``crowded``: ``max_chain`` is reached by those that no rule may take."""

    verdicts: tuple[Verdict, ...]
    crowded: bool = False

    @property
    def goes(self) -> list[str]:
        """The points that go, oldest first."""
        return [one.checkpoint_id for one in self.verdicts if not one.stays]


def decide(points: Sequence[Held], rules: Retention, now: float) -> Decision:
    """Decide over all points of one group, oldest first. ``now`` in seconds since the epoch."""
    firm = _firm(points)
    wanted = {point.checkpoint_id: list[str]() for point in points}
    for point, reason in _wanted(points, rules):
        wanted[point.checkpoint_id].append(reason)
    goes: dict[str, str] = {}
    for point in points:
        if firm[point.checkpoint_id]:
            continue
        if rules.max_age is not None and now - point.taken_at > rules.max_age:
            goes[point.checkpoint_id] = "older than max_age"
        elif not wanted[point.checkpoint_id]:
            goes[point.checkpoint_id] = "no rule keeps it"
    room = rules.max_chain - 1  # for the one that the next cycle adds
    for point in points:
        if len(points) - len(goes) <= room:
            break
        if point.checkpoint_id not in goes and not firm[point.checkpoint_id]:
            goes[point.checkpoint_id] = f"max_chain {rules.max_chain} would be passed"
    spared = _spared(points, goes)
    for checkpoint_id in spared:
        del goes[checkpoint_id]
    verdicts = []
    for point in points:
        name = point.checkpoint_id
        if name in goes:
            verdicts.append(Verdict(name, stays=False, reasons=(goes[name],)))
        else:
            reasons = (*firm[name], *wanted[name], *([spared[name]] if name in spared else []))
            verdicts.append(Verdict(name, stays=True, reasons=reasons))
    return Decision(tuple(verdicts), len(points) - len(goes) >= rules.max_chain)


def _firm(points: Sequence[Held]) -> dict[str, list[str]]:
    """Return why no rule takes a point, for each."""
    reasons = {point.checkpoint_id: list[str]() for point in points}

    def firm(point: Held | None, reason: str) -> None:
        if point is not None:
            reasons[point.checkpoint_id].append(reason)

    for point in points:
        if point.pinned:
            firm(point, "pinned")
        if point.legal_hold:
            firm(point, "legal hold")
        if point.in_use:
            firm(point, "in use")
        if point.began:
            firm(point, "the first with a sign of encryption")
    if points:
        firm(points[-1], "the newest")
    firm(next((point for point in reversed(points) if not point.suspect), None), "the newest that is sound")
    firm(next((point for point in reversed(points) if point.clean and not point.suspect), None), "the newest clean one")
    return reasons


def _wanted(points: Sequence[Held], rules: Retention) -> list[tuple[Held, str]]:
    """Return the points that a rule keeps, each with its name."""
    counted = [point for point in points if not (point.pinned or point.legal_hold)]
    found = [(point, "count") for point in counted[-rules.count :]]
    for name, period in _PERIODS:
        seen: set[tuple[int, ...]] = set()
        most = getattr(rules, name)
        for point in reversed(points):
            if len(seen) >= most:
                break
            which = period(datetime.fromtimestamp(point.taken_at, UTC))
            if which not in seen:
                seen.add(which)
                found.append((point, name))
    return found


def _spared(points: Sequence[Held], goes: dict[str, str]) -> dict[str, str]:
    """Return which of those that would go stay for now, and why."""
    spared = {}
    for point, successor in pairwise(points):
        if point.checkpoint_id in goes and successor.in_use:
            spared[point.checkpoint_id] = f"{successor.checkpoint_id}, which builds on it, is in use"
    left = len(points) - len(goes) + len(spared)
    for point in reversed(points):
        if left >= LEAST:
            break
        if point.checkpoint_id in goes and point.checkpoint_id not in spared:
            spared[point.checkpoint_id] = f"never fewer than {LEAST}"
            left += 1
    return spared
