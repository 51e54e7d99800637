"""When something recurs: ``every 7d``, or five fields as cron has them. Pure; all times are UTC.

The fields are minute, hour, day of the month, month and day of the week (0 and 7 are Sunday, names such as ``mon``
too); each is ``*``, numbers, ranges ``1-5``, steps ``*/15``, and lists of these with commas. Where both days are
restricted, either suffices, as cron has it (https://man7.org/linux/man-pages/man5/crontab.5.html).
"""

from __future__ import annotations

import calendar
import datetime as dt
import re
from dataclasses import dataclass
from typing import Final

from farshore.units import parse_duration

#: Rehearsals more often than this would meet themselves.
SHORTEST_S: Final = 600.0
#: A day that no year of these has (31 February) never comes; 29 February is a Sunday after 40 years at the latest.
_YEARS: Final = 41
_MONTHS: Final = {name.lower(): number for number, name in enumerate(calendar.month_abbr) if name}
_DAYS: Final = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_FIELDS: Final[tuple[tuple[str, int, int, dict[str, int]], ...]] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)
_PART: Final = re.compile(r"(?P<first>\*|\w+)(?:-(?P<last>\w+))?(?:/(?P<step>\d+))?")


@dataclass(frozen=True, slots=True)
class Every:
    """Each ``seconds`` after the time before."""

    seconds: float

    def after(self, moment: float) -> float:
        """Return the time that follows ``moment``, which was one."""
        return moment + self.seconds


@dataclass(frozen=True, slots=True)
class Calendar:
    """At certain minutes of certain days, UTC."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    #: Whether a day has to be in both sets of days, since one of them is ``*``.
    both_days: bool

    def after(self, moment: float) -> float:
        """Return the first time later than ``moment`` (seconds since the epoch)."""
        start = dt.datetime.fromtimestamp(moment, dt.UTC).replace(second=0, microsecond=0) + dt.timedelta(minutes=1)
        day = start.date()
        for _ in range(_YEARS * 366):
            if self._has(day):
                for hour in sorted(self.hours):
                    for minute in sorted(self.minutes):
                        found = dt.datetime(day.year, day.month, day.day, hour, minute, tzinfo=dt.UTC)
                        if found >= start:
                            return found.timestamp()
            day += dt.timedelta(days=1)
        raise ValueError("it never comes")

    def _has(self, day: dt.date) -> bool:
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return (of_month and of_week) if self.both_days else (of_month or of_week)


Schedule = Every | Calendar


def parse(text: str) -> Schedule:
    """Return the schedule that ``text`` names.

    Raises:
        ValueError: it names none; the message says what is wrong and how to write it.
    """
    words = text.split()
    if words[:1] == ["every"] and len(words) == 2:
        seconds = float(parse_duration(words[1]))
        if seconds < SHORTEST_S:
            raise ValueError(f"{text!r} is more often than every 10m")
        return Every(seconds)
    if len(words) != len(_FIELDS):
        raise ValueError(f"{text!r} is no schedule; write `every 7d`, or five fields as cron has them: `30 4 * * sun`")
    minutes, hours, days, months, weekdays = (_field(word, *field) for word, field in zip(words, _FIELDS, strict=True))
    made = Calendar(
        minutes,
        hours,
        days,
        months,
        frozenset(day % 7 for day in weekdays),
        both_days=words[2].startswith("*") or words[4].startswith("*"),
    )
    try:
        first = made.after(0.0)
    except ValueError:
        raise ValueError(f"{text!r} names a day that never comes") from None
    if made.after(first) - first < SHORTEST_S:
        raise ValueError(f"{text!r} is more often than every 10m")
    return made


def _field(word: str, name: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    found: set[int] = set()
    for part in word.lower().split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no {name}; write *, 5, 1-5 or */15")
        step = int(match["step"] or 1)
        if match["first"] == "*":
            first, last = low, high
        else:
            first = _number(match["first"], name, low, high, names)
            # `5/15` is from 5 to the end, as cron has it.
            last = first if match["step"] is None else high
        if match["last"] is not None:
            last = _number(match["last"], name, low, high, names)
        if step < 1 or last < first or (match["first"] == "*" and match["last"] is not None):
            raise ValueError(f"{part!r} is no {name}: the range is empty")
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _number(word: str, name: str, low: int, high: int, names: dict[str, int]) -> int:
    value = names.get(word, int(word) if word.isdecimal() else -1)
    if not low <= value <= high:
        raise ValueError(f"{word!r} is no {name}; it is between {low} and {high}")
    return value
