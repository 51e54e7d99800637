"""What machines showed in a run: pictures of their screens and the text of their consoles, kept beside its report.

The report carries their digests, so that a picture that was changed afterwards does not pass for evidence.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy.orm import Session

from farshore import durable
from farshore.control.clock import iso
from farshore.control.context import Context
from farshore.control.runs import ledger
from farshore.control.store.database import Transaction
from farshore.control.store.records import Run, RunSight
from farshore.control.views.history import record
from farshore.errors import NotFound
from farshore.model.task import LookResult
from farshore.recovery.pages import media_type

_PNG: Final = b"\x89PNG\r\n\x1a\n"


def keep(tx: Transaction, ctx: Context, run: Run, machine: str, seen: LookResult) -> str:
    """Keep what a machine showed and put its digests into the run's facts; return it in words. Again: nothing new."""
    try:
        screen = base64.b64decode(seen.screen, validate=True)
    except binascii.Error:
        screen = b""
    if not screen.startswith(_PNG):
        screen = b""
    if tx.get(RunSight, (run.run_id, machine)) is None:
        tx.add(
            RunSight(
                run_id=run.run_id,
                machine=machine,
                taken_at=seen.taken_at,
                console=seen.console,
                screen=screen or None,
                note=seen.note,
            )
        )
        tx.flush()
    console = seen.console.encode()
    fact: dict[str, Any] = {
        "taken_at": iso(seen.taken_at),
        "console_bytes": len(console),
        "console_sha256": hashlib.sha256(console).hexdigest(),
        "console_url": _url(run.run_id, machine, "console"),
        "screen_bytes": len(screen),
        "screen_sha256": hashlib.sha256(screen).hexdigest() if screen else None,
        "screen_url": _url(run.run_id, machine, "screen") if screen else None,
        "note": seen.note,
    }
    ledger.note(tx, run, sights={**run.facts.get("sights", {}), machine: fact})

    def export() -> None:
        folder = ctx.home.reports
        durable.write(folder / f"{run_id}-{machine}.console.txt", console, 0o640)
        if screen:
            kind = media_type(screen).removeprefix("image/")
            durable.write(folder / f"{run_id}-{machine}.{kind}", screen, 0o640)

    run_id = run.run_id
    tx.after(export)
    shown = [f"{len(screen)} bytes of screen"] if screen else []
    return ", ".join([*shown, f"{len(console)} bytes of console", *([seen.note] if seen.note else [])])


def of(session: Session, run_id: str, machine: str) -> RunSight:
    """Return what a machine showed in a run; ``NotFound``."""
    record(session, run_id)
    row = session.get(RunSight, (run_id, machine))
    if row is None:
        raise NotFound(
            f"run {run_id} has no picture of a machine {machine!r}",
            code="sight-unknown",
            hint="Drills have one of each machine that they made.",
        )
    return row


def screen(session: Session, run_id: str, machine: str) -> bytes:
    """Return the picture of a machine's screen, a PNG; ``NotFound``."""
    row = of(session, run_id, machine)
    if row.screen is None:
        raise NotFound(
            f"machine {machine!r} showed no screen in run {run_id}{': ' if row.note else ''}{row.note}",
            code="sight-unknown",
            hint="Its console text may say more.",
        )
    return row.screen


def _url(run_id: str, machine: str, what: str) -> str:
    return f"/api/v1/runs/{run_id}/machines/{quote(machine, safe='')}/{what}"
