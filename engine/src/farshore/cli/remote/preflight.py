"""``farshore preflight``: would the plan's recovery work now?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from farshore.cli.context import shell
from farshore.cli.remote.site import findings_table


def preflight(
    ctx: typer.Context,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="Name of the plan.")],
    least: Annotated[
        int, typer.Option("--min-score", help="Exit with 1 below this score.", metavar="SCORE", min=0, max=100)
    ] = 0,
) -> None:
    """Say how ready a plan is for its recovery, and what to do about what is not. Changes nothing.

    Exits with 1 while something stands in the way of a recovery.
    """
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    found = here.client.get(f"/plans/{segment(plan)}/preflight")
    here.out.show(found, lambda: [_verdict(found), *([findings_table(found["findings"])] if found["findings"] else [])])
    if not found["ready"] or found["score"] < least:
        raise typer.Exit(1)


def _verdict(found: dict[str, Any]) -> str:
    if found["ready"]:
        return f"plan {found['plan']}: nothing stands in the way of a recovery; score {found['score']} of 100"
    return f"plan {found['plan']}: NOT READY; score {found['score']} of 100"


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to ``app``."""
    app.command(rich_help_panel=panel)(preflight)
