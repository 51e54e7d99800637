"""What the templates draw: words for durations and the geometry of bars. Pure; percentages of the width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from farshore.model.tones import tone
from farshore.units import LEAF_SIZE, format_duration, format_rate, format_size

#: Where the target sits in an RPO bar: right of it is room to show by how much it is missed.
RPO_MARK: Final = 75.0
#: Bars of the cycle chart, newest last.
CYCLES: Final = 32
#: Checkpoints in the table of a plan's page; all are in ``farshore checkpoint list``.
ROWS: Final = 12
#: One leaf of a disk's tree: less than this cannot move.
FLOOR_BYTES: Final = LEAF_SIZE
_NARROWEST: Final = 0.6
#: Stands for a value that is not known.
NOTHING: Final = "\N{EN DASH}"

ENDED: Final = frozenset({"succeeded", "partial", "failed", "cancelled"})
#: What a run is called in a heading, where its kind is no noun.
KINDS: Final = {"replicate": "replication", "cleanup": "clean-up"}
#: Kinds of runs that operators order; all others change where machines run.
ORDINARY: Final = frozenset({"replicate", "checkpoint", "drill", "cleanup", "scrub", "detach"})
#: Kinds that can be paused, and that can be gone on with when they did not end well.
PAUSABLE: Final = frozenset({"drill", "failover", "migrate", "reprotect", "rollback", "scrub", "detach", "retire"})
RETRYABLE: Final = PAUSABLE - {"detach", "retire"} | {"replicate"}


def moment(text: str) -> datetime:
    """Return the instant of an ISO 8601 text."""
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def span(seconds: float | None) -> str:
    """Return a duration that is looked at while it grows: whole seconds, at most two units."""
    if seconds is None:
        return NOTHING
    text = f"{int(max(seconds, 0))} s" if seconds < 60 else format_duration(seconds)
    first, unit, *rest = text.split(" ")
    return f"{first} {unit}" if rest[:1] == ["0"] else text


def exact(seconds: float | None) -> str:
    """Return a measured duration."""
    return NOTHING if seconds is None else format_duration(seconds)


def ago(text: str | None, now: datetime | None = None) -> str:
    """Return how long ago an instant was, or how soon it will be."""
    if not text:
        return "never"
    seconds = ((now or datetime.now(UTC)) - moment(text)).total_seconds()
    if seconds < 0:
        return "now" if seconds > -1 else f"in {span(-seconds)}"
    return f"{span(seconds)} ago"


def size(value: float | None) -> str:
    """Return a size in bytes for people."""
    return NOTHING if value is None else format_size(value)


def rate(value: float | None) -> str:
    """Return bytes per second for people; none is no limit."""
    return "unlimited" if value is None else format_rate(value)


def clock(text: str | None) -> str:
    """Return an instant in UTC; the page turns it into local time where it can."""
    return moment(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if text else NOTHING


def elapsed(document: dict[str, Any], now: datetime | None = None) -> float | None:
    """Return the seconds between ``started_at`` and ``ended_at``, or until now."""
    if not document.get("started_at"):
        return None
    end = moment(document["ended_at"]) if document.get("ended_at") else now or datetime.now(UTC)
    return (end - moment(document["started_at"])).total_seconds()


def percent(part: float | None, whole: float | None) -> float:
    """Return ``part`` of ``whole`` in percent, within 0 and 100; 0 where nothing is known."""
    return min(max(100.0 * part / whole, 0.0), 100.0) if part is not None and whole else 0.0


def rpo_fill(rpo_s: float | None, target_s: float) -> float:
    """Return the length of an RPO bar: at :data:`RPO_MARK` the target is reached."""
    return min(percent(rpo_s, target_s * 100 / RPO_MARK if target_s else None), 100.0)


def run_actions(run: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what may be asked of a run now: the verb and the words of its button, what is asked for most last."""
    state = run["state"]
    if state in ENDED:
        retried = run["retried_by"] is not None or run["kind"] not in RETRYABLE
        return [] if state == "succeeded" or retried else [("retry", "Go on with it")]
    found = [("cancel", "Cancel the run")]
    if state == "waiting-approval":
        return [*found, ("approve", "Approve")]
    if run["pause_requested"]:
        return [*found, ("resume", "Resume")]
    if run["kind"] in PAUSABLE and not run["cancel_requested"]:
        found.append(("pause", "Pause"))
    return found


def run_share(run: dict[str, Any]) -> float:
    """Return how far a run is, in percent: by bytes where they are known, else by steps."""
    if run["state"] in ENDED:
        return 100.0
    progress = run.get("progress") or {}
    if progress.get("total_bytes"):
        return percent(progress.get("done_bytes"), progress["total_bytes"])
    steps = run.get("steps") or []
    return percent(sum(step["state"] in ENDED | {"skipped"} for step in steps), len(steps))


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart, in percent of width and height from the top left."""

    x: float
    width: float
    y: float
    height: float
    tone: str
    title: str


def cycle_bars(checkpoints: Sequence[dict[str, Any]]) -> list[Bar]:
    """Return one bar for each of the newest cycles, oldest first.

    The height is the logarithm of the bytes moved, from :data:`FLOOR_BYTES` up: a full copy and a small change must
    both be seen.
    """
    shown = [item for item in checkpoints if item.get("stats")][:CYCLES][::-1]
    if not shown:
        return []
    top = max(_magnitude(item["stats"]["moved_bytes"]) for item in shown) or 1.0
    slot = 100.0 / max(len(shown), 12)
    bars = []
    for index, item in enumerate(shown):
        stats = item["stats"]
        height = max(96.0 * _magnitude(stats["moved_bytes"]) / top, 3.0)
        title = (
            f"{', '.join(item['machines'])}: {stats['mode']}, {size(stats['moved_bytes'])} of "
            f"{size(stats['disk_bytes'])} in {exact(stats['seconds'])}, {clock(item['published_at'])}"
        )
        bars.append(Bar(index * slot, slot * 0.78, 100 - height, height, str(stats["mode"]), title))
    return bars


def _magnitude(moved_bytes: float) -> float:
    return math.log2(max(moved_bytes / FLOOR_BYTES, 1.0))


def timeline(run: dict[str, Any], now: datetime | None = None) -> list[Bar | None]:
    """Return where each step of a run lies between the run's start and its end (or now); None if it has not begun."""
    now = now or datetime.now(UTC)
    begun = [moment(step["started_at"]) for step in run["steps"] if step["started_at"]]
    if not begun:
        return [None] * len(run["steps"])
    start = min(begun)
    end = moment(run["ended_at"]) if run["ended_at"] else now
    ends = [moment(step["ended_at"]) for step in run["steps"] if step["ended_at"]]
    whole = max((max([end, *ends]) - start).total_seconds(), 0.001)
    bars: list[Bar | None] = []
    for step in run["steps"]:
        if not step["started_at"]:
            bars.append(None)
            continue
        x = percent((moment(step["started_at"]) - start).total_seconds(), whole)
        until = moment(step["ended_at"]) if step["ended_at"] else max(end, moment(step["started_at"]))
        width = max(percent((until - moment(step["started_at"])).total_seconds(), whole), _NARROWEST)
        bars.append(Bar(min(x, 100 - _NARROWEST), min(width, 100 - x) or _NARROWEST, 0, 100, tone(step["state"]), ""))
    return bars


def condition_name(condition: Any) -> str:
    """Return the name of a condition, which is a word or a document."""
    if isinstance(condition, dict):
        return str(condition.get("name") or condition.get("code") or condition.get("condition") or "condition")
    return str(condition)


def checkpoint_id(value: Any) -> str:
    """Return the id of a checkpoint that is given as id, as document, or not at all."""
    if isinstance(value, dict):
        return str(value.get("checkpoint_id") or NOTHING)
    return str(value or NOTHING)


def probe_title(probe: dict[str, Any]) -> str:
    """Return what a probe looked at: ``tcp 10.0.0.1:22``, ``http://10.0.0.1/``."""
    kind, target = str(probe["type"]), str(probe["target"])
    return target if target.startswith(kind) else f"{kind} {target}"


def step_detail(step: dict[str, Any]) -> str:
    """Return what is to be said about a step: its error before all else."""
    return error_text(step.get("error")) or str(step["detail"] or "")


def error_text(error: Any) -> str:
    """Return the sentence of an error, which is a text or a problem document."""
    if isinstance(error, dict):
        return str(error.get("detail") or error.get("message") or error.get("title") or "error")
    return str(error or "")
