"""``farshore drill show``, ``screen`` and ``console``: when a plan is rehearsed, and what its machines showed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from farshore.cli import formats
from farshore.cli.context import shell
from farshore.cli.output import facts

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the drill.")]
MachineName = Annotated[str, typer.Argument(metavar="MACHINE", help="Name of the machine in the plan.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: standard output.")]


def show(ctx: typer.Context, plan: Annotated[str, typer.Argument(metavar="PLAN", help="Name of the plan.")]) -> None:
    """Show when a plan is rehearsed next, how the last drill ended, and what was missed."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    found: dict[str, Any] = here.client.get(f"/plans/{segment(plan)}")["drill"]
    last, missed = found.get("last"), found.get("missed")
    rows = [
        ("schedule", found.get("schedule") or "none"),
        ("next", formats.ago(found.get("next_at")) if found.get("next_at") else "none"),
        ("waits for", found.get("waits_for") or "—"),
        ("last", f"{last['run_id']}, {last['state']}" if last else "none"),
        ("missed", f"{formats.clock(missed['due_at'])}: {missed['reason']}" if missed else "none"),
    ]
    here.out.show(found, lambda: facts(rows))


def screen(ctx: typer.Context, run: RunId, machine: MachineName, output: Output = None) -> None:
    """Write the picture of a machine's screen in a drill, a PNG."""
    _fetch(ctx, run, machine, "screen", output)


def console(ctx: typer.Context, run: RunId, machine: MachineName, output: Output = None) -> None:
    """Write the end of a machine's console text in a drill."""
    _fetch(ctx, run, machine, "console", output)


def _fetch(ctx: typer.Context, run: str, machine: str, what: str, output: Path | None) -> None:
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    content = here.client.download(f"/runs/{segment(run)}/machines/{segment(machine)}/{what}")
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    output.write_bytes(content)
    here.out.show({"file": str(output), "bytes": len(content)}, lambda: f"{output}: {len(content)} bytes")


def register(app: typer.Typer) -> None:
    """Add the commands to ``farshore drill``."""
    app.command("show")(show)
    app.command("screen")(screen)
    app.command("console")(console)
