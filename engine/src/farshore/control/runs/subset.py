"""Which machines of a plan a recovery is about: all of them, or those of some of its boot groups.

What is left out goes on as it was: it runs where it ran, and is replicated. So a subset never tears apart machines that
are kept consistent with each other, and nothing comes up somewhere without what it depends on.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import Field
from sqlalchemy.orm import Session

from farshore.control.nearby import suggestion
from farshore.control.store.records import Plan, PlanMachine
from farshore.control.views.protection import members
from farshore.errors import Invalid
from farshore.model.base import Name
from farshore.model.plan import Plan as Definition

#: Names of boot groups; None: all machines.
Groups = Annotated[tuple[Name, ...], Field(min_length=1)] | None


def rows(session: Session, plan: Plan, groups: Groups, *, moves: bool = False) -> list[PlanMachine]:
    """Return the plan's records of the machines of ``groups``, in the plan's order.

    ``moves``: they are to run elsewhere from then on. Nothing is torn by a rehearsal.

    Raises:
        Invalid: no such group; or the choice tears a consistency group, or lacks what it depends on.
    """
    found = members(session, plan.name)
    if groups is None:
        return found
    definition = Definition.model_validate(plan.definition)
    known = {group.name: group.machines for group in definition.groups()}
    for index, name in enumerate(groups):
        if name not in known:
            raise Invalid(
                f"plan {plan.name!r} has no boot group {name!r}",
                code="group-unknown",
                field=f"groups[{index}]",
                hint=suggestion(name, known, " in the plan"),
            )
    names = {machine for group in groups for machine in known[group]}
    chosen = [row for row in found if row.name in names]
    staying = {
        row.name: row for row in found if row.name not in names and row.activity != "inactive" and not row.raised
    }
    together = {row.group_id for row in chosen}
    torn = [row.name for row in staying.values() if row.group_id in together]
    if moves and torn:
        raise Invalid(
            f"plan {plan.name!r} keeps its machines consistent as one group; {', '.join(torn)} cannot be left out",
            code="group-torn",
            field="groups",
            hint="Leave out `groups`, or let the plan say `consistency: machine`.",
            machines=torn,
        )
    of = {machine: group for group, machines in known.items() for machine in machines}
    for row in chosen:
        for other in definition.machine(row.name).depends_on:
            if other in staying:
                raise Invalid(
                    f"machine {row.name!r} of group {of[row.name]!r} depends on {other!r} of group {of[other]!r},"
                    " which is left out",
                    code="dependency-left-out",
                    field="groups",
                    hint=f"Take it along: `--group {of[other]}`.",
                    machines=[row.name, other],
                )
    return chosen


def left_out(session: Session, plan: Plan, chosen: Collection[str]) -> list[str]:
    """Return the protected machines of the plan that a run of those ``chosen`` leaves as they are."""
    return [row.name for row in members(session, plan.name) if row.activity != "inactive" and row.name not in chosen]


def stranded(plan: Plan, chosen: Collection[str], left: Collection[str]) -> list[str]:
    """Return a warning for each machine that stays although what it depends on leaves."""
    definition = Definition.model_validate(plan.definition)
    return [
        f"machine {name!r} stays where it is and depends on {other!r}, which leaves"
        for name in left
        for other in definition.machine(name).depends_on
        if other in chosen
    ]
