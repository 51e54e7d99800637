"""The way between two sites: who listens, and how much of it may be used at what time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from farshore.model.base import Model, Rate

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
#: In the order of ``date.weekday()``.
DAYS: Final[tuple[Day, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES: Final = 24 * 60
#: All changes of clocks that are known fall on such a minute.
_CLOCK_CHANGE_S: Final = 900


def _minutes(value: str | int) -> int:
    """Return the minutes after midnight of ``"18:30"``. YAML reads that as 1110, which is the same."""
    if isinstance(value, int) and value >= 60:  # YAML never makes less of a time; a bare 8 may mean anything
        minutes = value
    else:
        hour, colon, minute = str(value).partition(":")
        if not (colon and hour.isdecimal() and minute.isdecimal() and len(minute) == 2 and int(minute) < 60):
            raise ValueError(f"{value!r} is no time of day; write it as 18:30")
        minutes = int(hour) * 60 + int(minute)
    if not 0 <= minutes <= _DAY_MINUTES:
        raise ValueError(f"{value!r} is no time of day; it is between 00:00 and 24:00")
    return minutes


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


#: Minutes after midnight, written ``"18:30"``.
TimeOfDay = Annotated[int, BeforeValidator(_minutes), PlainSerializer(_clock, return_type=str)]
#: A rate in bytes per second, or None for ``unlimited``.
MaybeRate = Annotated[Rate | None, BeforeValidator(lambda value: None if value == "unlimited" else value)]


class Hours(Model):
    """A part of the week with a limit of its own.

    ``to`` before ``from`` goes on into the next day. Times are those of the wall clock.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    days: tuple[Day, ...] = Field(DAYS, min_length=1, description="days on which it begins")
    begin: TimeOfDay = Field(alias="from", description="from when on")
    end: TimeOfDay = Field(alias="to", description="until when, not included")
    limit: MaybeRate = Field(description="bytes per second; unlimited takes all that there is")

    @model_validator(mode="after")
    def _has_length(self) -> Self:
        if self.begin % _DAY_MINUTES == self.end % _DAY_MINUTES and not (self.begin == 0 and self.end == _DAY_MINUTES):
            raise ValueError("to: it is the same as from; write from 00:00 to 24:00 for whole days")
        return self

    def covers(self, weekday: int, minute: int) -> bool:
        """Say whether ``minute`` of a day (Monday is 0) lies in these hours."""
        today, before = DAYS[weekday] in self.days, DAYS[weekday - 1] in self.days
        if self.begin < self.end:
            return today and self.begin <= minute < self.end
        return (today and minute >= self.begin) or (before and minute < self.end)


class Bandwidth(Model):
    """How many bytes per second may be sent, and when. In a document also a rate alone.

    The first entry of ``calendar`` that covers a time holds, else ``limit``.
    """

    limit: MaybeRate = Field(None, description="bytes per second; unlimited takes all that there is")
    calendar: tuple[Hours, ...] = Field((), max_length=64)
    timezone: str = Field("UTC", description="whose clock the calendar means, for example Europe/Berlin")

    @model_validator(mode="before")
    @classmethod
    def _is_rate_alone(cls, value: Any) -> Any:
        return {"limit": value} if isinstance(value, (str, int, float)) else value

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"{value!r} is no time zone that is known here; write it as Europe/Berlin") from error
        return value

    @property
    def limited(self) -> bool:
        """Whether there is a limit at any time."""
        return self.limit is not None or any(hours.limit is not None for hours in self.calendar)

    def limit_at(self, now_s: float) -> int | None:
        """Return the bytes per second that are allowed at ``now_s`` (seconds since the epoch); None: all that go."""
        local = datetime.fromtimestamp(now_s, ZoneInfo(self.timezone))
        for hours in self.calendar:
            if hours.covers(local.weekday(), local.hour * 60 + local.minute):
                return hours.limit
        return self.limit

    def next_change(self, now_s: float) -> float | None:
        """Return when :meth:`limit_at` changes next after ``now_s``; None if it never does."""
        if not self.calendar:
            return None
        current = self.limit_at(now_s)
        first = datetime.fromtimestamp(now_s, ZoneInfo(self.timezone)).date() - timedelta(days=1)
        # A week and a day on each side: what begins once a week may have begun just before.
        moments = sorted({at for day in range(10) for at in self._moments(first + timedelta(days=day)) if at > now_s})
        return next((at for at in moments if self.limit_at(at) != current), None)

    def _moments(self, day: date) -> Iterator[float]:
        """Yield when a limit may change on ``day``: where hours begin or end, and where the clock is put."""
        zone = ZoneInfo(self.timezone)
        midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
        minutes = {0, *(at % _DAY_MINUTES for hours in self.calendar for at in (hours.begin, hours.end))}
        for minute in minutes:
            for fold in (0, 1):  # a time that comes twice
                yield midnight.replace(hour=minute // 60, minute=minute % 60, fold=fold).timestamp()
        begins = int(midnight.timestamp()) // _CLOCK_CHANGE_S * _CLOCK_CHANGE_S
        before = midnight.utcoffset()
        for at in range(begins, begins + 26 * 3600, _CLOCK_CHANGE_S):
            after = datetime.fromtimestamp(at, UTC).astimezone(zone).utcoffset()
            if after != before:
                yield float(at)
            before = after


class SiteLink(Model):
    """How data goes from one site to another. Where there is none, the source site's setting and no limit hold."""

    data_listen: Literal["source", "target"] = Field(
        "source", description="which of the two waits for connections; data goes the same way with either"
    )
    bandwidth: Bandwidth = Field(Bandwidth(), description="what all cycles over the link together may take")


def link_limit(source_site: str, target_site: str) -> str:
    """Return the name of the rate that all cycles between two sites share."""
    return f"link:{source_site}/{target_site}"


def plan_limit(plan: str) -> str:
    """Return the name of the rate that all cycles of a plan share."""
    return f"plan:{plan}"
