"""``farshore status``: the whole on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from farshore.cli import formats
from farshore.cli.context import shell
from farshore.cli.output import facts, grid

if TYPE_CHECKING:
    from rich.console import RenderableType

    from farshore.cli.remote.client import Client


def gather(client: Client) -> dict[str, Any]:
    """Return health, sites, plans with their newest checkpoint, and the runs that are not over."""
    health = client.health()
    plans = client.items("/plans")
    for plan in plans:
        newest = client.items("/checkpoints", plan=plan["name"], limit=1)
        plan["newest_checkpoint"] = newest[0] if newest else None
    runs = client.items("/runs", state="open")
    return {"health": health, "sites": client.items("/sites"), "plans": plans, "runs": runs}


def plan_rows(plans: list[dict[str, Any]], title: str = "") -> RenderableType:
    """Return the plans as a table."""
    return grid(
        ("plan", "activity", "state", "active at", ">machines", ">RPO", ">target", "newest checkpoint", "next cycle"),
        (
            (
                plan["name"],
                formats.state(plan["activity"]),
                formats.state(plan["state"], plan["conditions"]),
                plan["active_site"],
                len(plan["machines"]),
                formats.rpo(plan["rpo_s"], plan["rpo_target_s"]),
                formats.duration(plan["rpo_target_s"]),
                formats.ago(plan["newest_checkpoint"]["published_at"]) if plan.get("newest_checkpoint") else "—",
                formats.ago(plan["next_cycle_at"]) if plan["next_cycle_at"] else "—",
            )
            for plan in plans
        ),
        title=title,
        empty="none yet; 'farshore plan init --source-site A --target-site B' writes one from what is there",
    )


def progress_text(run: dict[str, Any]) -> str:
    """Return how far a run is: percent where bytes are known, and its note."""
    progress = run.get("progress") or {}
    done, total = progress.get("done_bytes") or 0, progress.get("total_bytes") or 0
    parts = [f"{100 * done / total:.0f} %"] if total else []
    return " ".join([*parts, progress.get("note") or ""]).strip() or "—"


def run_rows(runs: list[dict[str, Any]], title: str = "") -> RenderableType:
    """Return runs as a table."""
    return grid(
        ("run", "kind", "plan", "state", "started", ">took", "progress"),
        (
            (
                run["run_id"],
                run["kind"],
                run["plan"],
                formats.state(run["state"]),
                formats.ago(run["started_at"] or run["created_at"]),
                formats.took(run["started_at"], run["ended_at"]),
                _text(run["error"]) if run["error"] else progress_text(run),
            )
            for run in runs
        ),
        title=title,
    )


def status(ctx: typer.Context) -> None:
    """Show sites, plans with RPO against target, and running runs."""
    from farshore.cli.remote.site import table

    here = shell(ctx)
    found = gather(here.client)

    def render() -> list[RenderableType]:
        problems = [f"{plan['name']}: {_text(plan['last_error'])}" for plan in found["plans"] if plan["last_error"]]
        parts: list[RenderableType] = [
            facts((("control plane", f"{here.endpoint.url}, version {found['health']['version']}"),)),
            table(found["sites"], title="\nsites"),
            plan_rows(found["plans"], title="\nplans"),
            run_rows(found["runs"], title="\nruns under way"),
        ]
        if problems:
            parts += ["\nerrors", *problems]
        return parts

    here.out.show(found, render)


def _text(error: Any) -> str:
    """Return the sentence of an error, which is a text or a document."""
    if isinstance(error, dict):
        return str(error.get("detail") or error.get("message") or error)
    return str(error)


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to ``app``."""
    app.command(rich_help_panel=panel)(status)
