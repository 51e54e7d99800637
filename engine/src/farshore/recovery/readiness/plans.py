"""What stands in the way of the plan itself: its state, its rehearsals, what a next control plane finds. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from farshore.model.machine import Finding
from farshore.recovery.readiness.facts import Facts, finding
from farshore.units import format_duration

#: A rehearsal that is older proves little: machines, people and networks have changed since.
DRILL_EVERY_S: Final = 30 * 86400.0


def state(facts: Facts) -> Iterator[Finding]:
    """Say what the plan is in the middle of."""
    name = facts.plan.name
    if facts.superseded:
        yield finding(
            "control-plane-superseded",
            "error",
            name,
            "a node obeys another control plane, which took over from this one",
            "Stop this one: `farshore down`.",
        )
    if facts.state == "unprotected":
        yield finding(
            "plan-unprotected", "error", name, "nothing of the plan is copied", f"`farshore plan protect {name}`"
        )
    if facts.state == "failing-over":
        yield finding("plan-failing-over", "warning", name, "a failover has not ended", "Wait, or order it again.")
    if facts.state == "failed-over":
        yield finding(
            "plan-not-reprotected",
            "warning",
            name,
            f"the machines run at {facts.source.name!r} and are copied nowhere",
            f"`farshore reprotect {name}`",
        )
    for machine in facts.unfenced:
        yield finding(
            "old-primary-unfenced",
            "warning",
            machine,
            f"the old primary of {machine!r} waits to be fenced at its site",
            "Start a node of that site once: it is fenced before anything else is done there.",
        )


def rehearsed(facts: Facts) -> Iterator[Finding]:
    """Say how long ago it was proven that all this works."""
    name = facts.plan.name
    if facts.drill is not None and facts.drill.state not in {"succeeded", "cancelled"}:
        yield finding(
            "drill-failed",
            "warning",
            name,
            f"the last drill, {format_duration(facts.drill.age_s)} ago, ended {facts.drill.state}",
            f"`farshore run show {facts.drill.run_id}` tells why.",
        )
    if facts.drilled_s is None:
        yield finding(
            "drill-never", "warning", name, "no drill of the plan has ever succeeded", f"`farshore drill start {name}`"
        )
    elif facts.drilled_s > DRILL_EVERY_S:
        yield finding(
            "drill-old",
            "warning",
            name,
            f"the last drill that succeeded was {format_duration(facts.drilled_s)} ago",
            f"`farshore drill start {name}`, or let it run by itself: `drill: {{schedule: every 7d}}`.",
        )


def afterlife(facts: Facts) -> Iterator[Finding]:
    """Would a control plane that follows this one find what it needs?"""
    if facts.target.bundle != "current":
        late = facts.target.bundle == "late"
        yield finding(
            "bundle-late" if late else "bundle-missing",
            "warning",
            facts.target.name,
            f"site {facts.target.name!r} keeps "
            + ("an old bundle" if late else "no bundle")
            + " for a control plane that follows this one",
            "It is renewed as soon as a node of the site polls; `farshore catalog show` tells what went wrong.",
        )
    if facts.recovery_key_is_here:
        yield finding(
            "recovery-key-here",
            "warning",
            "recovery.key",
            "the recovery key still lies on the control plane's own machine: both are lost together",
            "Move recovery.key out of the control plane's home to a safe place.",
        )
