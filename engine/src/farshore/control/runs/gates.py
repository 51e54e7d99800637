"""Gates: where a run waits until somebody resumes it, or until the gate's time is over."""

from __future__ import annotations

import time

from farshore.control.runs import ledger
from farshore.control.store.database import Transaction
from farshore.control.store.records import Run, RunStep
from farshore.errors import Permanent
from farshore.units import format_duration


def close(tx: Transaction, run: Run, step: str, machine: str, timeout_s: float) -> None:
    """Let a run wait at a gate."""
    ledger.begin(tx, run.run_id, step, machine, f"waits for `farshore run resume {run.run_id}`")
    run.pause = True
    run.wake_at = time.time() + timeout_s
    ledger.note(tx, run, gate={"step": step, "machine": machine or None, "until": run.wake_at, "expired": False})


def tend(tx: Transaction, run: Run) -> None:
    """Let a paused run that waits at a gate look again when the gate's time is over, and go on then."""
    gate = run.facts.get("gate") if run.pause else None
    if not gate:
        return
    if time.time() < gate["until"]:
        run.wake_at = gate["until"]
        return
    run.pause = False
    if run.state == ledger.PAUSED:
        run.state = "running"
    ledger.note(tx, run, gate={**gate, "expired": True})


def leave(tx: Transaction, run: Run, row: RunStep, timeout_s: float) -> Permanent | None:
    """Close the record of a gate that a run does not wait at any more; return why it was not opened, if it was not."""
    expired = (run.facts.get("gate") or {}).get("expired", False)
    error = None
    if expired:
        error = Permanent(
            f"{row.name}: nobody has opened the gate within {format_duration(timeout_s)}",
            code="gate-timeout",
            hint=f"Do what it waits for, then go on: `farshore run retry {run.run_id}`.",
        )
        ledger.end(tx, row, "failed", error.message, error)
    else:
        ledger.end(tx, row, "succeeded", "opened: the run was resumed")
    ledger.note(tx, run, gate=None)
    return error
