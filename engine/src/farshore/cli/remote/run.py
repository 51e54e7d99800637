"""``farshore run``: what was done and what is being done."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farshore.cli.context import shell
from farshore.cli.output import grid
from farshore.cli.remote import watch as watching
from farshore.cli.remote.status import run_rows

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(help="Runs: replications, drills and failovers, and their reports.", no_args_is_help=True)

Identifier = Annotated[str, typer.Argument(metavar="RUN", help="Id from 'run list'.")]


class Format(StrEnum):
    """How a report is written."""

    JSON = "json"
    HTML = "html"


@app.command("list")
def list_runs(
    ctx: typer.Context,
    plan: Annotated[str | None, typer.Option(help="Only of this plan.")] = None,
    kind: Annotated[str | None, typer.Option(help="replicate, drill, failover, checkpoint or cleanup.")] = None,
    state: Annotated[
        str | None, typer.Option(help="pending, running, succeeded, partial, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(help="At most so many, the newest first.", min=1)] = 30,
) -> None:
    """List runs, the newest first."""
    here = shell(ctx)
    items = here.client.items("/runs", plan=plan, kind=kind, state=state, limit=limit)
    here.out.show({"items": items}, lambda: run_rows(items) if items else grid((), (), empty="none"))


@app.command()
def show(ctx: typer.Context, run: Identifier) -> None:
    """Show one run: steps, machines with RPO and RTO, probes, cycles."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    document = here.client.get(f"/runs/{segment(run)}")

    def render() -> list[RenderableType]:
        error = watching.failure(document)
        return [*watching.summary(here, document), *([f"\n{error}"] if error else [])]

    here.out.show(document, render)


@app.command()
def watch(ctx: typer.Context, run: Identifier) -> None:
    """Follow a run until it ends; Ctrl-C leaves it going. Exit status 1 if it does not succeed."""
    watching.settle(shell(ctx), run)


@app.command()
def cancel(ctx: typer.Context, run: Identifier) -> None:
    """Stop a run at its next safe point and clean up."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    body = here.client.post(f"/runs/{segment(run)}:cancel").body
    here.out.show(
        body if body is not None else {"run_id": run, "cancelled": True},
        lambda: f"run {run} is asked to stop; 'farshore run watch {run}' shows how it ends",
    )


@app.command()
def report(
    ctx: typer.Context,
    run: Identifier,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file, else to stdout.")] = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="Default: what the file's name says, else json.")
    ] = None,
) -> None:
    """Fetch a run's evidence."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    by_name = output is not None and output.suffix.lower() in {".html", ".htm"}
    chosen = form or (Format.HTML if by_name else Format.JSON)
    path = f"/runs/{segment(run)}/report" + (".html" if chosen is Format.HTML else "")
    text = here.client.text(path)
    if output is None:
        typer.echo(text, nl=not text.endswith("\n"))
        return
    from farshore import durable

    durable.write(output, text.encode(), mode=0o644)
    here.out.show({"run_id": run, "file": str(output)}, lambda: f"report of {run} is in {output}")
