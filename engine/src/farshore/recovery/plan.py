"""The order in which machines are made and start: boot groups, and dependencies within and between them. Pure.

A group begins when every machine of the groups before it has settled, and after the delay that it asks for; a machine
begins when all that it depends on is green. Machines of one group start together as far as their dependencies and the
plan's limits allow. A failure in a critical group halts the run; in another one it only keeps back what depends on the
failed machine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from farshore.model.plan import Plan

#: ``making``: it is at work; ``unmade``: it is not, and whatever is not made yet cannot start.
State = Literal["unmade", "making", "pending", "starting", "green", "failed", "skipped"]
_SETTLED = frozenset({"green", "failed", "skipped"})


@dataclass(frozen=True, slots=True)
class Member:
    """One machine in the order. ``group`` is its boot group's index."""

    name: str
    group: int
    critical: bool
    depends_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """Who starts when. Members stand in the plan's order within their groups.

    ``groups`` are the boot groups' names, ``delays`` their pauses in seconds. ``most_made`` and ``most_starting`` limit
    how many machines are being made, and are between power-on and green; None is no limit.
    """

    members: tuple[Member, ...]
    groups: tuple[str, ...] = ()
    delays: tuple[float, ...] = ()
    most_made: int | None = None
    most_starting: int | None = None

    @classmethod
    def of(cls, plan: Plan) -> Order:
        """Return the order that ``plan`` (validated: no cycles, every machine in one group) describes."""
        depends_on = {machine.name: machine.depends_on for machine in plan.machines}
        groups = plan.groups()
        return cls(
            tuple(
                Member(name, index, group.critical, depends_on[name])
                for index, group in enumerate(groups)
                for name in group.machines
            ),
            tuple(group.name for group in groups),
            tuple(group.delay for group in groups),
            plan.limits.create,
            plan.limits.start,
        )

    def only(self, names: Collection[str]) -> Order:
        """Return the order of those machines alone; what they depend on beyond them is taken for given."""
        kept = set(names)
        if all(member.name in kept for member in self.members):
            return self
        return replace(
            self,
            members=tuple(
                replace(member, depends_on=tuple(other for other in member.depends_on if other in kept))
                for member in self.members
                if member.name in kept
            ),
        )

    def to_make(self, waiting: Collection[str], making: int) -> list[str]:
        """Return those of ``waiting`` that may be made now, while ``making`` others are, first what starts first."""
        room = len(self.members) if self.most_made is None else self.most_made - making
        return [member.name for member in self.members if member.name in waiting][: max(room, 0)]

    def ready(self, states: Mapping[str, State]) -> list[str]:
        """Return the machines whose turn it is, in order; none once a critical machine has failed."""
        if self.halted(states):
            return []
        current = self.current(states)
        return [
            member.name
            for member in self.members
            if member.group == current
            and states[member.name] == "pending"
            and all(states[other] == "green" for other in member.depends_on)
        ]

    def to_start(
        self, states: Mapping[str, State], settled_at: Mapping[str, float | None], now: float
    ) -> tuple[list[str], float | None]:
        """Return the machines that may start now, and when to look again if only a delay keeps some from it.

        ``settled_at``: when each machine came up or was given up, on the clock of ``now``.
        """
        ready = self.ready(states)
        if not ready:
            return [], None
        opens_at = self._opens_at(states, settled_at)
        if opens_at > now:
            return [], opens_at
        starting = sum(state == "starting" for state in states.values())
        room = len(ready) if self.most_starting is None else self.most_starting - starting
        return ready[: max(room, 0)], None

    def blocked(self, states: Mapping[str, State]) -> list[str]:
        """Return the machines that can never start: the run is halted, or a dependency has not come up.

        Those at work are not among them; what becomes of them is known when that has ended.
        """
        halted = self.halted(states)
        gone = {member.name for member in self.members if states[member.name] in {"failed", "skipped"}}
        if not gone:
            return []
        found: list[str] = []
        for _ in self.members:  # a chain of dependencies is at most as long as there are members
            before = len(found)
            for member in self.members:
                if states[member.name] not in {"unmade", "pending"} or member.name in gone:
                    continue
                if halted or any(other in gone for other in member.depends_on):
                    found.append(member.name)
                    gone.add(member.name)
            if len(found) == before:
                break
        return found

    def halted(self, states: Mapping[str, State]) -> str | None:
        """Return the failed machine of a critical group that halts the run, None if it goes on."""
        return next(
            (member.name for member in self.members if states[member.name] == "failed" and member.critical), None
        )

    def settled(self, states: Mapping[str, State]) -> bool:
        """Say whether nothing starts any more and nothing is starting."""
        return all(states[member.name] in _SETTLED for member in self.members)

    def waves(self) -> list[list[str]]:
        """Return the machines in the waves in which they start when each comes up green."""
        states: dict[str, State] = {member.name: "pending" for member in self.members}
        waves: list[list[str]] = []
        while ready := self.ready(states):
            waves.append(ready)
            states.update(dict.fromkeys(ready, "green"))
        return waves

    def current(self, states: Mapping[str, State]) -> int | None:
        """Return the index of the group whose turn it is, None when all have settled."""
        return next((member.group for member in self.members if states[member.name] not in _SETTLED), None)

    def _opens_at(self, states: Mapping[str, State], settled_at: Mapping[str, float | None]) -> float:
        """Return when the current group may begin: its delay counts from the end of the groups before it."""
        current = self.current(states)
        if current is None or current >= len(self.delays) or not self.delays[current]:
            return 0.0
        ends = [settled_at.get(member.name) or 0.0 for member in self.members if member.group < current]
        return max(ends) + self.delays[current] if ends else 0.0
