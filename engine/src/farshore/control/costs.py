"""What a plan is likely to cost at its providers: prices as sites tell them, changes as cycles measured them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.checkpoints import costs
from farshore.checkpoints.costs import Load
from farshore.control import inventory
from farshore.control.direction import turned
from farshore.control.planning.apply import Outcome, group_of
from farshore.control.scheduling.due import LATEST_SHARE
from farshore.control.store.records import Cycle, Plan, PlanMachine, Site
from farshore.model.machine import MachineFacts
from farshore.model.plan import Plan as Definition
from farshore.model.prices import Prices

#: Cycles of a group that say how much of it changes.
_CYCLES: Final = 20


def of_change(session: Session, name: str, result: Outcome) -> dict[str, Any]:
    """Return the estimates ``before`` and ``after`` a plan's change; None where there are no prices, or no plan."""
    rows = session.execute(select(PlanMachine.name, PlanMachine.machine_id).where(PlanMachine.plan == name))
    ids = {**{row.name: row.machine_id for row in rows}, **result.machine_ids}
    return {
        "before": _of(session, result.before, ids) if result.before is not None else None,
        "after": _of(session, result.after, ids),
    }


def _of(
    session: Session, definition: Mapping[str, Any], machine_ids: Mapping[str, str | None]
) -> dict[str, Any] | None:
    plan = Definition.model_validate(definition)
    record = session.get(Plan, plan.name)
    way = turned(plan.source_site, plan.target_site, record.active_site if record else plan.source_site)
    source, target = (_prices(session, site) for site in (way.source, way.target))
    if source is None and target is None:
        return None
    present = {one.machine_id: one for one in inventory.machines(session, way.source)}
    groups: dict[str, list[MachineFacts]] = {}
    missing = []
    for machine in plan.machines:
        facts = present.get(machine_ids.get(machine.name) or "")
        if facts is None:
            missing.append(machine.name)
        else:
            groups.setdefault(group_of(plan, machine.name), []).append(facts)
    loads = [_load(session, group, members) for group, members in groups.items()]
    found = costs.estimate(
        loads,
        interval_s=plan.rpo * LATEST_SHARE,
        rules=plan.retention,
        audit_fraction=plan.transport.audit_fraction,
        source=source,
        target=target,
    )
    return {**found, "unknown_machines": missing}


def _prices(session: Session, site: str) -> Prices | None:
    row = session.get(Site, site)
    found = (row.inventory or {}).get("prices") if row is not None else None
    return Prices.model_validate(found) if found else None


def _load(session: Session, group_id: str, members: list[MachineFacts]) -> Load:
    rows = session.execute(
        select(Cycle.ordered_at, Cycle.stats)
        .where(Cycle.group_id == group_id, Cycle.stats.is_not(None), Cycle.ordered_at.is_not(None))
        .order_by(Cycle.ordered_at.desc())
        .limit(_CYCLES + 1)
    ).all()
    changed = seconds = compared = 0.0
    count = 0
    for newer, older in pairwise(rows):
        if newer.stats["mode"] == "incremental" and newer.ordered_at > older.ordered_at:
            changed += newer.stats["changed_bytes"]
            compared += newer.stats.get("audited_bytes", 0)
            seconds += newer.ordered_at - older.ordered_at
            count += 1
    disks = tuple(disk.size_bytes for facts in members for disk in facts.disks)
    return Load(disks, changed / seconds, compared / count) if count else Load(disks)
