"""Runs: steps, machines, cycles, progress."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control.clock import iso
from farshore.control.nearby import unknown
from farshore.control.store.records import Cycle, Report, Run, RunMachine, RunStep, Task

#: A run waits for approval, then for the orchestrator, then it runs; it is paused while it neither orders nor awaits
#: anything.
WAITING_APPROVAL: Final = "waiting-approval"
PAUSED: Final = "paused"
OPEN: Final = ("pending", WAITING_APPROVAL, "running", PAUSED)


def runs(
    session: Session, plan: str | None = None, kind: str | None = None, state: str | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """Return runs, newest first. ``state`` may be ``open`` for those that have not ended."""
    query = select(Run).order_by(Run.created_at.desc(), Run.run_id.desc()).limit(limit)
    if plan is not None:
        query = query.where(Run.plan == plan)
    if kind is not None:
        query = query.where(Run.kind == kind)
    if state is not None:
        query = query.where(Run.state.in_(OPEN if state == "open" else (state,)))
    return [_run(session, row) for row in session.scalars(query)]


def run(session: Session, run_id: str) -> dict[str, Any]:
    """Return one run; ``NotFound`` with the newest ones."""
    return _run(session, record(session, run_id))


def record(session: Session, run_id: str) -> Run:
    """Return a run's record; ``NotFound`` with the newest ones."""
    row = session.get(Run, run_id)
    if row is None:
        known = session.scalars(select(Run.run_id).order_by(Run.created_at.desc()).limit(5))
        raise unknown("run", run_id, known, field="run_id", hint="List them: `farshore run list`.")
    return row


def _run(session: Session, row: Run) -> dict[str, Any]:
    steps = session.scalars(select(RunStep).where(RunStep.run_id == row.run_id).order_by(RunStep.position)).all()
    machines = session.scalars(select(RunMachine).where(RunMachine.run_id == row.run_id).order_by(RunMachine.position))
    cycles = session.scalars(select(Cycle).where(Cycle.run_id == row.run_id).order_by(Cycle.created_at)).all()
    return {
        "run_id": row.run_id,
        "kind": row.kind,
        "plan": row.plan,
        "plan_revision": row.plan_revision,
        "state": row.state,
        "cancel_requested": row.cancel,
        "pause_requested": row.pause,
        "approval": row.approval,
        "retry_of": row.retry_of,
        "retried_by": _successor(session, row),
        "next": _next(row),
        "created_at": iso(row.created_at),
        "started_at": iso(row.started_at),
        "ended_at": iso(row.ended_at),
        "actor": row.actor,
        "params": row.params,
        "url": f"/runs/{row.run_id}",
        "report_url": f"/api/v1/runs/{row.run_id}/report" if session.get(Report, row.run_id) else None,
        "error": row.error,
        "steps": [
            {
                "name": step.name,
                "machine": step.machine or None,
                "state": step.state,
                "attempts": step.attempt + 1,
                "started_at": iso(step.started_at),
                "ended_at": iso(step.ended_at),
                "seconds": (
                    round(step.ended_at - step.started_at, 3)
                    if step.ended_at is not None and step.started_at is not None
                    else None
                ),
                "detail": step.detail,
                "error": step.error,
                "evidence": step.evidence,
            }
            for step in steps
        ],
        "machines": [
            {
                "name": machine.name,
                "state": machine.state,
                "machine_id": machine.target_machine_id,
                "target_name": machine.target_name,
                "rpo_s": machine.rpo_s,
                "rto_s": machine.rto_s,
                "checkpoint_id": machine.checkpoint_id,
                "probes": machine.probes,
                "address": machine.address,
            }
            for machine in machines
        ],
        "cycles": [
            {
                "group_id": cycle.group_id,
                "checkpoint_id": cycle.checkpoint_id if cycle.stats else None,
                "state": cycle.state,
                "stats": cycle.stats,
                "error": cycle.error,
            }
            for cycle in cycles
        ],
        "facts": row.facts,
        "progress": _progress(session, row, cycles, steps),
    }


def _successor(session: Session, row: Run) -> str | None:
    """Return the run that goes on with this one."""
    query = select(Run.run_id).where(Run.retry_of == row.run_id).order_by(Run.created_at.desc())
    return session.scalars(query).first() if row.ended_at is not None else None


def _next(row: Run) -> str:
    """Say what somebody has to do for the run to go on; empty where nobody has to."""
    if row.state == WAITING_APPROVAL and row.approval is not None:
        missing = row.approval["people"] - len(row.approval["by"])
        who = "one person" if missing == 1 else f"{missing} people"
        return f"waits for {who} other than {row.actor} to approve it: `farshore run approve {row.run_id}`"
    if row.state == PAUSED:
        gate = row.facts.get("gate")
        what = f"at the gate {gate['step']!r} " if gate else ""
        return f"paused {what}until it is resumed: `farshore run resume {row.run_id}`"
    if row.pause:
        return "is to pause: nothing new is begun, what runs ends"
    return ""


def _progress(session: Session, row: Run, cycles: Any, steps: Any) -> dict[str, Any]:
    """Add up the bytes of what runs now, with a sentence of what that is."""
    if row.state not in OPEN:
        return {"done_bytes": 0, "total_bytes": 0, "wire_bytes_per_s": None, "note": ""}
    done = total = 0
    rate: float | None = None
    note = ""
    moving = [cycle.task_id for cycle in cycles] + [step.task_id for step in steps if step.state == "running"]
    for task_id in moving:
        task = session.get(Task, task_id) if task_id else None
        if task is not None and task.kind in {"replicate", "scrub"} and task.progress:
            done += int(task.progress.get("done_bytes", 0))
            total += int(task.progress.get("total_bytes", 0))
            note = str(task.progress.get("note", "")) or note
            told = task.progress.get("detail", {}).get("wire_bytes_per_s")
            if told is not None and task.state == "assigned":
                rate = (rate or 0.0) + told
    if not note:
        running = [step for step in steps if step.state == "running"]
        note = f"{running[0].name} {running[0].machine}".strip() if running else ""
    return {"done_bytes": done, "total_bytes": total, "wire_bytes_per_s": rate, "note": note}
