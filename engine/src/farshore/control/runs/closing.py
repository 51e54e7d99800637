"""Ends the runs that are made of cycles only, and tells the stories that wait for a cycle."""

from __future__ import annotations

from sqlalchemy import select

from farshore import errors
from farshore.control.runs import ledger
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Run
from farshore.control.views.protection import members
from farshore.units import format_size


def cycle_ended(tx: Transaction, cycle: Cycle) -> None:
    """Record the end of a run's cycle; the last one ends a ``replicate`` or ``checkpoint`` run."""
    run = tx.get(Run, cycle.run_id)
    if run is None:
        return
    tx.changed("run", run.run_id)
    if run.workflow:
        return
    _record(tx, run, cycle)
    cycles = tx.scalars(select(Cycle).where(Cycle.run_id == run.run_id)).all()
    if any(item.ended_at is None for item in cycles):
        return
    states = {item.state for item in cycles}
    failed = next((item for item in cycles if item.error is not None), None)
    error = errors.from_dict(failed.error) if failed is not None and failed.error is not None else None
    if states == {"done"}:
        ledger.finish(tx, run, "succeeded")
    elif "failed" in states:
        ledger.finish(tx, run, "partial" if "done" in states else "failed", error)
    else:
        ledger.finish(tx, run, "cancelled", error)


def poke(tx: Transaction, plan: str) -> None:
    """Let the open stories of a plan look again."""
    for run in tx.scalars(select(Run).where(Run.plan == plan, Run.workflow, Run.state.in_(ledger.OPEN))):
        run.pokes += 1


def _record(tx: Transaction, run: Run, cycle: Cycle) -> None:
    row = ledger.begin(tx, run.run_id, "replicate", cycle.group_id)
    row.started_at = cycle.started_at or row.started_at
    if cycle.stats is not None:
        stats = cycle.stats
        detail = f"{stats['mode']}: {format_size(stats['moved_bytes'])} of {format_size(stats['disk_bytes'])} moved"
        ledger.end(tx, row, "succeeded", detail)
    else:
        error = errors.from_dict(cycle.error or {})
        ledger.end(tx, row, "cancelled" if cycle.state == "cancelled" else "failed", error=error)
    for member in members(tx, cycle.plan):
        if member.group_id != cycle.group_id or member.machine_id not in (cycle.machines or []):
            continue
        ledger.add_machines(tx, run, [member.name])
        machine = ledger.machine(tx, run.run_id, member.name)
        machine.state = "succeeded" if cycle.stats is not None else "failed"
        point = tx.get(Checkpoint, cycle.checkpoint_id) if cycle.stats is not None else None
        if point is not None:
            machine.checkpoint_id = point.checkpoint_id
            machine.rpo_s = round(max(0.0, point.published_at - point.ordered_at), 3)


def begun(tx: Transaction, cycle: Cycle) -> None:
    """Record that a run's cycle is at work."""
    run = tx.get(Run, cycle.run_id) if cycle.run_id else None
    if run is None or run.workflow:
        return
    ledger.start(tx, run)
    ledger.begin(tx, run.run_id, "replicate", cycle.group_id)
