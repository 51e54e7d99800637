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

    from farshore.cli.context import Shell

app = typer.Typer(help="Runs: replications, drills and failovers, and their reports.", no_args_is_help=True)

Identifier = Annotated[str, typer.Argument(metavar="RUN", help="Id from 'run list'.")]


class Step(StrEnum):
    """A step that a run can go on from."""

    CREATE = "create"
    PREPARE = "prepare"
    POWER_ON = "power on"
    VALIDATE = "validate"


class Format(StrEnum):
    """How a report is written."""

    JSON = "json"
    HTML = "html"
    JUNIT = "junit"


@app.command("list")
def list_runs(
    ctx: typer.Context,
    plan: Annotated[str | None, typer.Option(help="Only of this plan.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="drill, failover, migrate, reprotect, rollback, replicate, checkpoint, scrub, detach, retire or"
            " approval."
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(help="open, pending, waiting-approval, running, paused, succeeded, partial, failed or cancelled."),
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
    _ask(shell(ctx), run, "cancel", f"run {run} is asked to stop; 'farshore run watch {run}' shows how it ends")


@app.command()
def pause(ctx: typer.Context, run: Identifier) -> None:
    """Let a run begin nothing new; what it has at work ends."""
    _ask(shell(ctx), run, "pause", f"run {run} begins nothing new; go on with 'farshore run resume {run}'")


@app.command()
def resume(ctx: typer.Context, run: Identifier) -> None:
    """Let a paused run go on; this opens the gate that it waits at."""
    _ask(shell(ctx), run, "resume", f"run {run} goes on; 'farshore run watch {run}' shows how")


@app.command()
def approve(ctx: typer.Context, run: Identifier) -> None:
    """Agree to a run that somebody else has ordered and that waits for that."""
    _ask(shell(ctx), run, "approve", f"run {run} is approved")


@app.command()
def retry(
    ctx: typer.Context,
    run: Identifier,
    step: Annotated[
        Step | None, typer.Option(help="Do this step again, and those after it; default: the first that failed.")
    ] = None,
    machine: Annotated[str | None, typer.Option(help="Do this machine again, although it is up.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it to its end.")] = True,
) -> None:
    """Go on with a run that failed, was cancelled or ended partial; what succeeded is not done again.

    The new run takes over what the old one has done, and has a report of its own.
    """
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    wish = {key: value for key, value in (("step", step and step.value), ("machine", machine)) if value is not None}
    body = here.client.post(f"/runs/{segment(run)}:retry", wish).body
    made = body["run"]
    here.out.say(f"{made['kind']} of {made['plan']} goes on as {made['run_id']}")
    if wait:
        watching.settle(here, made["run_id"])
    else:
        here.out.show(body, lambda: f"follow it: 'farshore run watch {made['run_id']}'")


def _ask(here: Shell, run: str, verb: str, done: str) -> None:
    """Ask something of a run, and say what comes of it."""
    from farshore.cli.remote.client import segment

    answer = here.client.post(f"/runs/{segment(run)}:{verb}")
    body = answer.body

    def render() -> str:
        if answer.changed is False:
            return f"nothing was to be done: run {run} is {body['state']}"
        return body["next"] or done if verb == "approve" else done

    here.out.show(body, render)


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
    by_name = {".html": Format.HTML, ".htm": Format.HTML, ".xml": Format.JUNIT}
    chosen = form or by_name.get(output.suffix.lower() if output is not None else "", Format.JSON)
    suffix = {Format.JSON: "", Format.HTML: ".html", Format.JUNIT: ".xml"}[chosen]
    path = f"/runs/{segment(run)}/report{suffix}"
    text = here.client.text(path)
    if output is None:
        typer.echo(text, nl=not text.endswith("\n"))
        return
    from farshore import durable

    durable.write(output, text.encode(), mode=0o644)
    here.out.show({"run_id": run, "file": str(output)}, lambda: f"report of {run} is in {output}")
