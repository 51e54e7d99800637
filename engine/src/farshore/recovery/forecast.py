"""How long a recovery will take: the longest way through the plan's order, from what earlier runs took. Pure.

Each machine's steps follow each other; a machine starts when its turn comes (its boot group, its dependencies, the
plan's limits). The time of a run is that of the *critical path*: the chain of machines in which none could have begun
sooner. A step's time is the median of what it took the same machine before, else of what it took any machine of the
plan, else a default; the forecast says which.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from farshore.recovery.plan import Order, State

Basis = Literal["machine", "plan", "default"]

#: In the order in which a machine goes through them: those before its turn, those from its turn on.
MAKING: Final = ("create", "prepare")
STARTING: Final = ("power on", "validate")
#: Seconds for a step of which nothing is known. A guest's boot and its probes dominate; a minute is what a server with
#: a database commonly takes, and late is the better side to be wrong on.
DEFAULTS: Final[dict[str, float]] = {
    "sync": 60.0,
    "stop": 30.0,
    "final sync": 20.0,
    "fence": 2.0,
    "create": 5.0,
    "prepare": 10.0,
    "power on": 2.0,
    "validate": 60.0,
}
#: So many of the newest times count.
NEWEST: Final = 5


@dataclass(frozen=True, slots=True)
class Time:
    """How long one step of one machine (empty: of the whole run) is thought to take, and from what that is known."""

    step: str
    machine: str
    seconds: float
    basis: Basis
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Forecast:
    """``seconds`` from the order to the last green probe; ``path``: the steps that make it that long, in order."""

    seconds: float
    path: tuple[Time, ...]
    ready_s: dict[str, float]
    basis: Basis
    samples: int


class History:
    """What steps took before, newest first: ``(step, machine)`` to seconds."""

    def __init__(self, times: Mapping[tuple[str, str], Sequence[float]]) -> None:
        self._own = {key: list(found)[:NEWEST] for key, found in times.items() if found}
        self._all: dict[str, list[float]] = {}
        for (step, _machine), found in self._own.items():
            self._all.setdefault(step, []).extend(found)

    def knows(self, step: str) -> bool:
        """Say whether the step was ever seen."""
        return step in self._all

    def time(self, step: str, machine: str = "") -> Time:
        """Return what a step is thought to take."""
        own = self._own.get((step, machine))
        if own:
            return Time(step, machine, round(statistics.median(own), 3), "machine", len(own))
        others = self._all.get(step)
        if others:
            return Time(step, machine, round(statistics.median(others), 3), "plan", len(others))
        return Time(step, machine, DEFAULTS.get(step, 0.0), "default")


def forecast(
    order: Order, history: History, before: Sequence[str] = (), stops: Sequence[Sequence[str]] = (), *, prepared: bool
) -> Forecast:
    """Return how long a run of ``order`` will take.

    ``before``: steps of the whole run that come first, such as ``sync``; ``stops``: waves of machines that are stopped
    one wave after the other before that. ``prepared``: machines are worked on before they are powered on.
    """
    lead: list[Time] = []
    for step in before:
        if step == "stop":
            lead += [max((history.time(step, name) for name in wave), key=_seconds) for wave in stops if wave]
        else:
            lead.append(history.time(step))
    began = sum(time.seconds for time in lead)
    making = MAKING if prepared else MAKING[:1]
    made, made_by = _make(order, history, making, began)
    ready, path_of = _start(order, history, made, made_by, began)
    last = max(ready, key=lambda name: ready[name], default="")
    path = (*lead, *(path_of[last] if last else ()))
    return Forecast(
        round(max([began, *ready.values()]), 3),
        path,
        {name: round(seconds, 3) for name, seconds in ready.items()},
        _worst(path),
        min((time.samples for time in path), default=0),
    )


def _seconds(time: Time) -> float:
    return time.seconds


def _worst(path: Sequence[Time]) -> Basis:
    found = {time.basis for time in path if time.seconds}
    return "default" if "default" in found else "plan" if "plan" in found else "machine"


def _make(
    order: Order, history: History, steps: Sequence[str], began: float
) -> tuple[dict[str, float], dict[str, tuple[Time, ...]]]:
    """Return when each machine is made, as many at once as the plan allows."""
    lanes = [began] * (order.most_made or max(1, len(order.members)))
    heapq.heapify(lanes)
    ways: dict[float, tuple[Time, ...]] = {}
    made, made_by = {}, {}
    for member in order.members:
        start = heapq.heappop(lanes)
        times = tuple(history.time(step, member.name) for step in steps)
        end = start + sum(time.seconds for time in times)
        made[member.name], made_by[member.name] = end, (*ways.get(start, ()), *times)
        ways[end] = made_by[member.name]
        heapq.heappush(lanes, end)
    return made, made_by


def _start(
    order: Order, history: History, made: dict[str, float], made_by: dict[str, tuple[Time, ...]], began: float
) -> tuple[dict[str, float], dict[str, tuple[Time, ...]]]:
    """Return when each machine is green, and the chain of steps that made it so late.

    As in a real run, nothing is powered on before all machines are made.
    """
    states: dict[str, State] = {member.name: "pending" for member in order.members}
    slowest = max(made, key=lambda name: made[name], default="")
    now, way = (made[slowest], made_by[slowest]) if slowest else (began, ())
    path_of: dict[str, tuple[Time, ...]] = {}
    ready: dict[str, float] = {}
    running: list[tuple[float, int, str]] = []
    group = order.members[0].group if order.members else 0
    number = 0
    while True:
        begin = order.ready(states)
        room = len(order.members) if order.most_starting is None else order.most_starting - len(running)
        for name in begin[: max(0, room)]:
            index = next(member.group for member in order.members if member.name == name)
            pause = order.delays[index] if index != group and index < len(order.delays) else 0.0
            times = tuple(history.time(step, name) for step in STARTING)
            number += 1
            states[name] = "starting"
            path_of[name] = (*way, *((Time("delay", name, pause, "machine", 1),) if pause else ()), *times)
            heapq.heappush(running, (now + pause + sum(time.seconds for time in times), number, name))
        if not running:
            return ready, path_of
        now, _, name = heapq.heappop(running)
        states[name], ready[name], way = "green", now, path_of[name]
        group = next(member.group for member in order.members if member.name == name)
