"""What a preview adds to what a run makes: how long it takes, what room is left, what is at risk. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import clock, inventory
from farshore.control.clock import iso
from farshore.control.direction import direction
from farshore.control.store.records import Checkpoint, Cycle, Plan, PlanMachine, Run, RunStep
from farshore.control.views.protection import members, ordered
from farshore.model.plan import Plan as Definition
from farshore.model.task import MachineCreateParams
from farshore.recovery import forecast
from farshore.recovery.forecast import History
from farshore.recovery.plan import Order
from farshore.recovery.readiness import DRILL_SHARE

#: Runs of the plan that are looked at.
_NEWEST_RUNS = 20
#: Drills that are looked at: the newest one of each machine counts, and not every drill gets to all of them.
_NEWEST_DRILLS = 5
#: A step may have been called otherwise by an earlier version.
_CALLED = {"power-on": "power on", "probe": "validate"}


def of(
    session: Session,
    plan: Plan,
    orders: Mapping[str, MachineCreateParams],
    chosen: Mapping[str, Checkpoint],
    *,
    verb: str,
    planned: bool = False,
) -> dict[str, Any]:
    """Return ``rto``, ``capacity``, ``risk`` and ``guests`` of a run that makes ``orders`` from checkpoints ``chosen``.

    ``verb``: ``drill`` or what changes the primary; ``planned``: the source takes part, and nothing is lost.
    """
    definition = Definition.model_validate(plan.definition)
    return {
        "rto": _rto(session, plan, definition, list(orders), planned=planned),
        "capacity": _capacity(session, plan, orders, drill=verb == "drill"),
        "risk": {name: _risk(session, plan, name, point, planned=planned) for name, point in chosen.items()},
        "guests": _guests(session, plan.name, list(orders)),
    }


def _guests(session: Session, plan: str, names: list[str]) -> dict[str, Any]:
    """Return what each machine's newest drill found in its guest and changed there; None: none has looked into it."""
    found: dict[str, Any] = dict.fromkeys(names)
    drills = select(Run.run_id, Run.ended_at).where(Run.plan == plan, Run.kind == "drill", Run.ended_at.is_not(None))
    for drill in session.execute(drills.order_by(Run.ended_at.desc()).limit(_NEWEST_DRILLS)):
        steps = select(RunStep.machine, RunStep.evidence).where(
            RunStep.run_id == drill.run_id, RunStep.name == "prepare", RunStep.ended_at.is_not(None)
        )
        for name, evidence in session.execute(steps):
            if name in found and found[name] is None and evidence and "findings" in evidence:
                found[name] = {
                    "run": drill.run_id,
                    "at": iso(drill.ended_at),
                    "system": evidence.get("system", ""),
                    "findings": evidence["findings"],
                    "changes": evidence.get("changes", []),
                }
        if None not in found.values():
            break
    return found


def _rto(session: Session, plan: Plan, definition: Definition, names: list[str], *, planned: bool) -> dict[str, Any]:
    order = Order.of(definition).only(names)
    steps = ("sync", "stop", "final sync", "fence") if planned else ()
    history = _history(session, plan.name)
    found = forecast.forecast(order, history, steps, list(reversed(order.waves())), prepared=history.knows("prepare"))
    words = {
        "machine": "each step as it took the same machine before",
        "plan": "some steps as they took other machines of the plan",
        "default": "some steps were never seen here; defaults stand for them",
    }
    return {
        "seconds": found.seconds,
        "basis": found.basis,
        "known_from": words[found.basis],
        "ready_s": found.ready_s,
        "critical_path": [
            {"step": time.step, "machine": time.machine, "seconds": time.seconds, "basis": time.basis}
            for time in found.path
        ],
    }


def _history(session: Session, plan: str) -> History:
    runs = select(Run.run_id).where(Run.plan == plan, Run.ended_at.is_not(None)).order_by(Run.ended_at.desc())
    newest = session.scalars(runs.limit(_NEWEST_RUNS)).all()
    times: dict[tuple[str, str], list[float]] = {}
    rows = session.scalars(
        select(RunStep)
        .where(RunStep.run_id.in_(newest), RunStep.state == "succeeded", RunStep.ended_at.is_not(None))
        .order_by(RunStep.ended_at.desc())
    )
    for row in rows:
        if row.started_at is not None and row.ended_at is not None:
            key = (_CALLED.get(row.name, row.name), row.machine)
            times.setdefault(key, []).append(max(0.0, row.ended_at - row.started_at))
    return History(times)


def _capacity(
    session: Session, plan: Plan, orders: Mapping[str, MachineCreateParams], *, drill: bool
) -> dict[str, Any]:
    site = direction(plan).target
    found = inventory.at(session, site)
    disks = sum(disk.size_bytes for order in orders.values() for disk in order.disks)
    need = int(disks * DRILL_SHARE) if drill else disks
    pool = found.pool if found is not None else None
    quota = getattr(found, "quota", None)
    cpus = sum(order.cpus for order in orders.values())
    return {
        "site": site,
        "machines": len(orders),
        "cpus": cpus,
        "memory_bytes": sum(order.memory_bytes for order in orders.values()),
        "pool_bytes": need,
        "pool_left_bytes": pool.free_bytes - need if pool is not None else None,
        "machines_left": quota.machines - quota.machines_used - len(orders)
        if quota is not None and quota.machines is not None
        else None,
        "cpus_left": quota.cpus - quota.cpus_used - cpus if quota is not None and quota.cpus is not None else None,
    }


def _risk(session: Session, plan: Plan, name: str, point: Checkpoint, *, planned: bool) -> dict[str, Any]:
    """Return what a machine loses: as time, and as bytes by the rate at which its group changed lately."""
    age_s = round(clock.now().age_s(ordered(point)), 3)
    row = next((row for row in members(session, plan.name) if row.name == name), None)
    rate = _rate(session, row) if row is not None else None
    return {
        "seconds": 0.0 if planned else age_s,
        "bytes": 0 if planned else None if rate is None else int(rate * age_s),
        "bytes_per_s": None if rate is None else round(rate, 1),
        # Of a group it is what all of its machines have changed together.
        "group": row.group_id if row is not None else None,
        "checkpoint": point.checkpoint_id,
    }


def _rate(session: Session, row: PlanMachine) -> float | None:
    """Return how many bytes per second the group changed between its newest checkpoints; None if that is not known."""
    cycles = session.scalars(
        select(Cycle)
        .where(Cycle.group_id == row.group_id, Cycle.state == "done", Cycle.ordered_at.is_not(None))
        .order_by(Cycle.ordered_at.desc())
        .limit(6)
    ).all()
    changed = 0
    times = [cycle.ordered_at for cycle in cycles if cycle.ordered_at is not None]
    for cycle in cycles[:-1]:
        if (cycle.stats or {}).get("mode") != "incremental":
            return None
        changed += int((cycle.stats or {}).get("changed_bytes", 0))
    spent = times[0] - times[-1] if len(times) > 1 else 0.0
    return changed / spent if spent > 0 else None
