"""The order in which machines start: boot groups, and dependencies within and between them. Pure.

A group begins when every machine of the groups before it has settled; a machine begins when all that it depends on is
green. Machines of one group start together as far as their dependencies allow. A failure in a critical group halts the
run; in another one it only keeps back what depends on the failed machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from farshore.model.plan import Plan

State = Literal["pending", "starting", "green", "failed", "skipped"]
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
    """Who starts when. Members stand in the plan's order within their groups."""

    members: tuple[Member, ...]

    @classmethod
    def of(cls, plan: Plan) -> Order:
        """Return the order that ``plan`` (validated: no cycles, every machine in one group) describes."""
        return cls(
            tuple(
                Member(name, index, group.critical, plan.machine(name).depends_on)
                for index, group in enumerate(plan.groups())
                for name in group.machines
            )
        )

    def ready(self, states: Mapping[str, State]) -> list[str]:
        """Return the machines that may start now, in order; none once a critical machine has failed."""
        if self.halted(states):
            return []
        current = self._current(states)
        return [
            member.name
            for member in self.members
            if member.group == current
            and states[member.name] == "pending"
            and all(states[other] == "green" for other in member.depends_on)
        ]

    def blocked(self, states: Mapping[str, State]) -> list[str]:
        """Return the pending machines that can never start: the run is halted, or a dependency has not come up."""
        halted = self.halted(states)
        gone = {member.name for member in self.members if states[member.name] in {"failed", "skipped"}}
        found: list[str] = []
        for _ in self.members:  # a chain of dependencies is at most as long as there are members
            before = len(found)
            for member in self.members:
                if states[member.name] != "pending" or member.name in found:
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
            (member.name for member in self.members if member.critical and states[member.name] == "failed"), None
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

    def _current(self, states: Mapping[str, State]) -> int | None:
        return min((member.group for member in self.members if states[member.name] not in _SETTLED), default=None)
