"""What may happen to a protected machine, so that it never runs at two sites. Pure.

``source`` and ``target`` say what the control plane knows of the machine at both sites, ``raised`` whether the epoch of
this change of sites was raised. The rule behind all guards: at the target nothing is made before the epoch is raised,
and the epoch is raised only when the machine at the source is fenced (read back), or when somebody who is named in the
audit trail says that the source is lost (``force-epoch``). After a force the source is ``stale``; the first thing that
happens to it when it answers again is the fence. Once raised, nothing at the source is unfenced or started any more.

Two ways lead on. ``reprotect`` turns the roles: what ran at the target is the source of the other direction, and what
was the source rests, fenced, as the old primary. ``roll-back`` gives up what was made at the target, which has to be
fenced first, and makes the source the primary again, in an epoch of its own. Where the target is lost, somebody who is
named gives it up unseen (``forsake``); it is ``stale`` then, as a source is after a force.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from farshore.errors import Conflict

State = Literal["unprotected", "seeding", "protected", "failing-over", "failed-over", "reprotecting", "rolling-back"]
Source = Literal["running", "stopped", "fenced", "stale"]
Target = Literal["absent", "created", "running", "fenced", "stale"]
Event = Literal[
    "protect",
    "unprotect",
    "copied",
    "begin",
    "stopped",
    "fenced",
    "raise-epoch",
    "force-epoch",
    "unfenced",
    "restarted",
    "abort",
    "created",
    "started",
    "finish",
    "reprotect",
    "begin-rollback",
    "give-up",
    "forsake",
    "roll-back",
    "rolled-back",
    "abort-rollback",
]


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of a plan as the control plane knows it."""

    state: State = "unprotected"
    epoch: int = 1
    source: Source = "running"
    target: Target = "absent"
    raised: bool = False

    @property
    def primaries(self) -> int:
        """How many sites may run the machine by our doing. Never more than one."""
        return (not self.raised) + (self.target not in {"absent", "fenced", "stale"})


#: Event: the states in which it is allowed.
_STATES: Final[dict[Event, frozenset[State]]] = {
    "protect": frozenset({"unprotected"}),
    "unprotect": frozenset({"unprotected", "seeding", "protected", "failed-over", "reprotecting"}),
    "copied": frozenset({"seeding", "protected", "reprotecting"}),
    "begin": frozenset({"seeding", "protected"}),
    "stopped": frozenset({"failing-over"}),
    "fenced": frozenset({"failing-over", "failed-over", "rolling-back", "unprotected"}),
    "raise-epoch": frozenset({"failing-over"}),
    "force-epoch": frozenset({"failing-over"}),
    "unfenced": frozenset({"failing-over", "rolling-back"}),
    "restarted": frozenset({"failing-over", "rolling-back"}),
    "abort": frozenset({"failing-over"}),
    "created": frozenset({"failing-over"}),
    "started": frozenset({"failing-over"}),
    "finish": frozenset({"failing-over"}),
    "reprotect": frozenset({"failed-over"}),
    "begin-rollback": frozenset({"failing-over", "failed-over"}),
    "give-up": frozenset({"rolling-back"}),
    "forsake": frozenset({"rolling-back"}),
    "roll-back": frozenset({"rolling-back"}),
    "rolled-back": frozenset({"rolling-back"}),
    "abort-rollback": frozenset({"rolling-back"}),
}


def apply(machine: Machine, event: Event) -> Machine:
    """Return the machine after ``event``.

    Raises:
        Conflict: the event is not allowed now; nothing may be done that would make it true.
    """
    if machine.state not in _STATES[event]:
        raise _refused(machine, event, f"the machine is {machine.state}")
    before = not machine.raised
    if event == "protect":
        _need(machine, event, before, "its primary is at the other site")
        return replace(machine, state="seeding")
    if event == "unprotect":
        return replace(machine, state="unprotected")
    if event == "copied":
        return replace(machine, state="protected")
    if event == "begin":
        return replace(machine, state="failing-over")
    if event == "stopped":
        _need(machine, event, before and machine.source in {"running", "stopped"}, "the source is fenced or given up")
        return replace(machine, source="stopped")
    if event == "fenced":
        # Of a stale source whatever it shows: it is the first contact.
        _need(machine, event, machine.state != "rolling-back" or machine.raised, "it was made the primary again")
        _need(machine, event, machine.source != "running", "the machine at the source is not verified off")
        return replace(machine, source="fenced")
    if event == "raise-epoch":
        _need(machine, event, before and machine.source == "fenced", "the machine at the source is not fenced")
        return replace(machine, epoch=machine.epoch + 1, raised=True)
    if event == "force-epoch":
        _need(machine, event, before, "the epoch was raised already")
        source: Source = "fenced" if machine.source == "fenced" else "stale"
        return replace(machine, epoch=machine.epoch + 1, source=source, raised=True)
    if event == "unfenced":
        _need(machine, event, before, "the epoch was raised; only failback leads back")
        return replace(machine, source="stopped" if machine.source == "fenced" else machine.source)
    if event == "restarted":
        _need(machine, event, before and machine.source in {"stopped", "running"}, "the machine is fenced")
        return replace(machine, source="running")
    if event == "abort":
        _need(machine, event, before, "the epoch was raised; only failback leads back")
        return replace(machine, state="protected")
    if event == "created":
        _need(machine, event, machine.raised, "the epoch was not raised")
        return replace(machine, target="created" if machine.target == "absent" else machine.target)
    if event == "started":
        _need(machine, event, machine.target != "absent", "the machine at the target was not made")
        return replace(machine, target="running")
    if event == "reprotect":
        _need(machine, event, machine.raised and machine.target == "running", "nothing of it runs at the other site")
        _need(machine, event, machine.source == "fenced", "the old primary is not fenced")
        return Machine(state="reprotecting", epoch=machine.epoch)
    if event in _ROLLBACK:
        return _roll_back(machine, event)
    # finish
    _need(machine, event, machine.target == "running", "the machine at the target does not run")
    return replace(machine, state="failed-over")


_ROLLBACK: Final = frozenset({"begin-rollback", "give-up", "forsake", "roll-back", "rolled-back", "abort-rollback"})


def _roll_back(machine: Machine, event: Event) -> Machine:
    if event == "begin-rollback":
        _need(machine, event, machine.raised, "the epoch was not raised: there is nothing to roll back")
        _need(machine, event, machine.source == "fenced", "the old primary is not fenced: nobody knows how it is")
        return replace(machine, state="rolling-back")
    if event in {"give-up", "forsake"}:
        _need(machine, event, machine.raised, "it was made the primary again")
        given_up: Target = "fenced" if event == "give-up" else "stale"
        return replace(machine, target="absent" if machine.target == "absent" else given_up)
    if event == "roll-back":
        _need(machine, event, machine.raised, "it was made the primary again already")
        over = machine.target in {"absent", "fenced", "stale"}
        _need(machine, event, over, "the machine at the target is not fenced")
        return replace(machine, epoch=machine.epoch + 1, raised=False)
    if event == "abort-rollback":
        _need(machine, event, machine.raised, "it was made the primary again; only going on leads further")
        return replace(
            machine, state="failed-over" if machine.target != "absent" else "failing-over", target=_up(machine)
        )
    _need(machine, event, not machine.raised and machine.source == "running", "the machine at the source does not run")
    return replace(machine, state="protected", target="absent")


def _up(machine: Machine) -> Target:
    """Return what a machine at the target is once it was started again there."""
    return "absent" if machine.target == "absent" else "running"


def _need(machine: Machine, event: Event, condition: bool, why: str) -> None:
    if not condition:
        raise _refused(machine, event, why)


def _refused(machine: Machine, event: Event, why: str) -> Conflict:
    return Conflict(
        f"{event} is not allowed: {why}",
        code="state-conflict",
        hint="Look at the plan: `farshore plan show NAME`.",
        state=machine.state,
        epoch=machine.epoch,
        source=machine.source,
        target=machine.target,
        raised=machine.raised,
    )
