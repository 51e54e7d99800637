"""How values of the API look to people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from farshore.model.tones import tone
from farshore.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from rich.text import Text

#: How a tone looks in a terminal.
_STYLES: Final = {"good": "green", "busy": "cyan", "warn": "yellow", "bad": "bold red", "plain": ""}


def state(value: str | None, conditions: list[Any] | None = None) -> Text:
    """Return a state in its colour, with the conditions beside it."""
    from rich.text import Text

    text = Text(value or "—", style=_STYLES[tone(value)])
    for condition in conditions or []:
        name = condition_name(condition)
        text.append(f" {name}", style=_STYLES[tone(name)] or "yellow")
    return text


def condition_name(condition: Any) -> str:
    """Return the name of a condition, which is a word or a document with more."""
    if isinstance(condition, dict):
        return str(condition.get("name") or condition.get("code") or condition.get("condition") or condition)
    return str(condition)


def parse_time(value: str) -> datetime:
    """Return the instant that an ISO 8601 text of the API names."""
    parsed = datetime.fromisoformat(value)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def clock(value: str | None) -> str:
    """Return an instant as local date and time of day."""
    return parse_time(value).astimezone().strftime("%Y-%m-%d %H:%M:%S") if value else "—"


def ago(value: str | None, now: datetime | None = None) -> str:
    """Return how long ago an instant was: ``"12 s ago"``, or ``"in 3 min 0 s"``."""
    if not value:
        return "never"
    seconds = ((now or datetime.now(UTC)) - parse_time(value)).total_seconds()
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"


def span(seconds: float) -> str:
    """Return a duration that grows while it is read: no tenths."""
    return f"{int(seconds)} s" if seconds < 60 else format_duration(seconds)


def took(begin: str | None, end: str | None) -> str:
    """Return the time between two instants; a dash if one is still to come."""
    return format_duration((parse_time(end) - parse_time(begin)).total_seconds()) if begin and end else "—"


def rpo(seconds: float | None, target_s: float | None = None) -> Text:
    """Return a measured RPO, green within its target and red beyond."""
    from rich.text import Text

    if seconds is None:
        return Text("—", style="dim")
    style = "" if not target_s else "green" if seconds <= target_s else "bold red"
    return Text(format_duration(seconds), style=style)


def size(value: float | None) -> str:
    """Return a size in bytes for people."""
    return "—" if value is None else format_size(value)


def rate(value: float | None) -> str:
    """Return bytes per second for people."""
    return "unlimited" if value is None else format_rate(value)


def duration(value: float | None) -> str:
    """Return seconds for people."""
    return "—" if value is None else format_duration(value)


def share(part: float | None, whole: float | None) -> str:
    """Return ``part`` of ``whole`` in percent."""
    return f"{100 * part / whole:.1f} %" if part is not None and whole else "—"


def yes(value: object) -> str:
    """Return a truth for people."""
    return "yes" if value else "no"
