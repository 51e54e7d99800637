"""Judges what a simulated provider was asked, from its own record and nothing else.

It shares no code with what it judges: concurrency is counted from the calls' times, rates from their beginnings, and
what was made twice from the keys.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """Return the calls that a provider has written down, by their beginning."""
    calls = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return sorted(calls, key=lambda call: (call["began_at"], call["number"]))


@dataclass(slots=True)
class Verdict:
    """What was asked of an account, and what is wrong with that (empty: nothing)."""

    wrong: list[str] = field(default_factory=list)
    calls: int = 0
    peaks: dict[str, int] = field(default_factory=dict)
    peak_calls_per_s: float = 0.0
    throttled: int = 0
    lost: int = 0


def judge(calls: Sequence[Mapping[str, Any]], *, creates: int, starts: int, calls_per_s: float, burst: int) -> Verdict:
    """Judge calls against the limits of their account."""
    verdict = Verdict(calls=len(calls), lost=sum(bool(call["lost"]) for call in calls))
    work = [call for call in calls if not call["joined"] and call["error"] is None]
    for operation, most in (("create", creates), ("start", starts)):
        peak = _peak([call for call in work if call["operation"] == operation])
        verdict.peaks[operation] = peak
        if peak > most:
            verdict.wrong.append(f"{peak} calls of {operation} at once, {most} are allowed")
    over = Counter(str(call["limit"]) for call in calls if call["limit"])
    verdict.throttled = sum(over.values())
    verdict.wrong += [f"{count} calls were refused by the limit {name}" for name, count in sorted(over.items())]
    verdict.peak_calls_per_s = _peak_rate([call["began_at"] for call in calls], calls_per_s, burst, verdict.wrong)
    for key, made in _made(work).items():
        if len(made) > 1:
            verdict.wrong.append(f"{key} was made {len(made)} times: {', '.join(sorted(made))}")
    return verdict


def leftovers(machines: Iterable[Mapping[str, Any]], wanted: Mapping[str, str], tag: str) -> list[str]:
    """Return what is wrong with the machines of an account that carry ``tag``.

    ``wanted`` maps the ids that somebody knows to their names: others are orphans, and missing ones are missing.
    """
    found = {str(item["machine_id"]): str(item["name"]) for item in machines if item["tags"].get("farshore") == tag}
    wrong = [f"orphan {name} ({machine_id})" for machine_id, name in found.items() if machine_id not in wanted]
    wrong += [f"{name} ({machine_id}) is gone" for machine_id, name in wanted.items() if machine_id not in found]
    twice = [name for name, count in Counter(found.values()).items() if count > 1]
    return wrong + [f"{name} exists twice" for name in twice]


def out_of_order(
    calls: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    groups: Sequence[Sequence[str]],
    depends_on: Mapping[str, Sequence[str]],
) -> list[str]:
    """Return machines that were started before a group before theirs had ended, or before what they depend on.

    A machine is up from the first time that its console was seen to be ready; ``names`` maps ids to names.
    """
    started: dict[str, float] = {}
    for call in calls:
        if call["operation"] == "start" and call["of"] in names:
            started.setdefault(names[call["of"]], call["began_at"])
    up: dict[str, float] = {}
    for call in calls:
        name = names.get(call["of"])
        if call["operation"] == "console" and name is not None and str(call["result"] or "").endswith("ready\n"):
            up.setdefault(name, call["ended_at"])
    wrong = []
    for number, group in enumerate(groups[1:], 1):
        before = [name for name in groups[number - 1] if name in started]
        ends = max((up.get(name, float("inf")) for name in before), default=0.0)
        early = [name for name in group if started.get(name, float("inf")) < ends]
        wrong += [f"{name} was started before {groups[number - 1][0]}'s group was up" for name in early]
    for name, others in depends_on.items():
        late = [other for other in others if started.get(name, float("inf")) < up.get(other, float("inf"))]
        wrong += [f"{name} was started before {other} was up" for other in late if name in started]
    return wrong


def _peak(calls: Iterable[Mapping[str, Any]]) -> int:
    """Return how many of the calls were at work at once, at most."""
    edges = [(call["began_at"], 1) for call in calls] + [(call["ended_at"], -1) for call in calls]
    at_work = peak = 0
    for _, step in sorted(edges):  # at the same instant, an end comes before a beginning
        at_work += step
        peak = max(peak, at_work)
    return peak


def _peak_rate(began: Sequence[float], per_s: float, burst: int, wrong: list[str]) -> float:
    """Return the most calls in any second; say where more came than ``burst`` and the rate allow."""
    most, first = 0, 0
    for last, at in enumerate(began):
        while at - began[first] > 1.0:
            first += 1
        most = max(most, last - first + 1)
    if most > burst + per_s:
        wrong.append(f"{most} calls in a second, {burst} at once and then {per_s:g} are allowed")
    return float(most)


def _made(calls: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    made: dict[str, set[str]] = defaultdict(set)
    for call in calls:
        if call["operation"] == "create" and isinstance(call["result"], str):
            made[str(call["key"])].add(call["result"])
    return made
