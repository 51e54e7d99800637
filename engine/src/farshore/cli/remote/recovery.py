"""``farshore replicate``, ``drill`` and ``failover``: the verbs."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farshore.cli import formats
from farshore.cli.context import Shell, shell
from farshore.cli.output import facts, grid
from farshore.cli.remote import forecast
from farshore.cli.remote.watch import settle

if TYPE_CHECKING:
    from rich.console import RenderableType

drill = typer.Typer(help="Rehearse a recovery in an isolated network.", no_args_is_help=True)

PlanName = Annotated[str, typer.Argument(metavar="PLAN", help="Name of the plan.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run to its end; else only start it.")]
Check = Annotated[bool, typer.Option("--check", "--plan", help="Only show what would be done, and what to expect.")]
Selector = Annotated[
    str | None,
    typer.Option("--checkpoint", help="latest, latest_clean, an id, a label, or a time such as 2026-01-31T08:00Z."),
]
Settings = Annotated[
    str | None,
    typer.Option("--settings", help="current, or captured: those that the checkpoint carries.", metavar="WHICH"),
]
Groups = Annotated[
    list[str] | None,
    typer.Option("--group", help="Only this boot group's machines; may be given again.", metavar="GROUP"),
]
AllowSuspect = Annotated[
    bool, typer.Option("--allow-suspect", help="Take a checkpoint too that an audit or a scrub has found wanting.")
]


class Mode(StrEnum):
    """Whether the source site still answers."""

    PLANNED = "planned"
    UNPLANNED = "unplanned"


def _verb(here: Shell, plan: str, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    from farshore.cli.remote.client import segment

    answer: dict[str, Any] = here.client.post(f"/plans/{segment(plan)}:{verb}", body).body
    return answer


def _started(here: Shell, answer: dict[str, Any], *, wait: bool, unchanged: str) -> None:
    """Follow the run in ``answer``, or say that there is none to follow."""
    run = answer["run"]
    if run is None:
        here.out.show(answer, lambda: unchanged)
    elif wait:
        here.out.say(f"run {run['run_id']} is started; page {here.page(run['url'])}")
        settle(here, run["run_id"])
    else:
        here.out.show(
            answer, lambda: f"run {run['run_id']} is started; follow with 'farshore run watch {run['run_id']}'"
        )


def _order(
    here: Shell, plan: str, verb: str, body: dict[str, Any], *, wait: bool, check: bool, unchanged: str, ask: str = ""
) -> None:
    """Order a verb and follow its run.

    ``check``: only show what it would do. ``ask``: on a terminal show that and ask this first.
    """
    asks = bool(ask) and not here.out.as_json and sys.stdin.isatty() and sys.stdout.isatty()
    if check or asks:
        preview = _verb(here, plan, f"{verb}-preview", body)
        here.out.show(preview, lambda: preview_table(preview))
        if check:
            return
        if preview.get("changed") and not typer.confirm(ask):
            raise typer.Abort
    _started(here, _verb(here, plan, verb, body), wait=wait, unchanged=unchanged)


def preview_table(preview: dict[str, Any]) -> list[RenderableType]:
    """Return a preview for people: what would be made, in which order, with how much data lost."""
    after = preview.get("after")
    if not preview.get("changed") or not isinstance(after, dict):
        parts: list[RenderableType] = ["nothing would be done"]
    else:
        before = preview.get("before")
        parts = [facts(_changes(before if isinstance(before, dict) else {}, after))]
        if after.get("machines"):
            parts.append(_machines(after))
    return [*parts, *(f"warning: {_plain(warning)}" for warning in preview.get("warnings") or [])]


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what changes, name and value; the machines have a table of their own."""
    names = {"order": "boot order", "stop": "stop first", "networks": "networks made", "active_site": "active at"}
    rows = []
    for key, value in after.items():
        if key in forecast.KEYS:
            continue
        if (key in {"machines", "checkpoints", "rpo_s"} and after.get("machines")) or value in (None, [], {}):
            continue
        if key in {"order", "stop"} and isinstance(value, list):
            text = " → ".join(", ".join(wave) if isinstance(wave, list) else str(wave) for wave in value)
        elif key == "differences":
            text = "\n".join(f"{one['key']}: {_plain(one['current'])} → {_plain(one['captured'])}" for one in value)
        elif key == "networks":
            text = "\n".join(f"{each['name']} {each.get('subnet') or ''}".strip() for each in value)
        else:
            was = before.get(key)
            text = f"{_plain(was)} → {_plain(value)}" if was not in (None, value) else _plain(value)
        rows.append((names.get(key, key.replace("_", " ")), text))
    return [*rows, *forecast.rows(after)]


def _machines(after: dict[str, Any]) -> RenderableType:
    checkpoints, at_risk = after.get("checkpoints") or {}, after.get("rpo_s") or {}

    def plug(nic: dict[str, Any]) -> str:
        return f"{nic['network']} {nic['address']}" if nic.get("address") else str(nic["network"])

    return grid(
        ("machine", "of", ">cpus", ">memory", ">disks", "plugged into", "checkpoint", ">data at risk"),
        (
            (
                machine["name"],
                machine.get("of"),
                machine["cpus"],
                formats.size(machine["memory_bytes"]),
                len(machine["disks"]),
                "\n".join(plug(nic) for nic in machine["nics"]),
                checkpoints.get(machine.get("of")) or checkpoints.get(machine["name"]),
                formats.duration(at_risk.get(machine.get("of"), at_risk.get(machine["name"]))),
            )
            for machine in after["machines"]
        ),
        title="\nmachines",
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item not in (None, "", [], {}))
    if isinstance(value, list):
        return "\n".join(_plain(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "—" if value is None else str(value)


def replicate(
    ctx: typer.Context,
    plan: PlanName,
    machine: Annotated[list[str] | None, typer.Option(help="Only these machines' groups.")] = None,
    max_age: Annotated[
        str | None, typer.Option(help="Do nothing if the newest checkpoint is younger: 5m.", metavar="DURATION")
    ] = None,
    wait: Wait = True,
    check: Check = False,
) -> None:
    """Run a replication cycle now and publish checkpoints."""
    from farshore.cli.remote.token import seconds

    here = shell(ctx)
    body: dict[str, Any] = {"machines": machine} if machine else {}
    if max_age is not None:
        body["max_age_s"] = seconds(max_age, "--max-age")
    unchanged = f"plan {plan}: the newest checkpoint is younger than that; nothing to do"
    _order(here, plan, "replicate", body, wait=wait, check=check, unchanged=unchanged)


@drill.command("start")
def drill_start(
    ctx: typer.Context,
    plan: PlanName,
    checkpoint: Selector = "latest",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the machines up until 'drill end'.")] = False,
    allow_suspect: AllowSuspect = False,
    settings: Settings = None,
    group: Groups = None,
    wait: Wait = True,
    check: Check = False,
) -> None:
    """Boot the plan's machines from a checkpoint, isolated; probe them; clean up. Replication goes on."""
    here = shell(ctx)
    body: dict[str, Any] = {"checkpoint": checkpoint or "latest", "keep": keep}
    if group:
        body["groups"] = group
    if allow_suspect:
        body["allow_suspect"] = True
    if settings is not None:
        body["recovery_settings"] = settings
    _order(here, plan, "drill", body, wait=wait, check=check, unchanged=f"plan {plan}: nothing to do")


@drill.command("end")
def drill_end(ctx: typer.Context, plan: PlanName, wait: Wait = True) -> None:
    """Clean up a drill that was kept."""
    here = shell(ctx)
    _started(
        here, _verb(here, plan, "drill-end", {}), wait=wait, unchanged=f"plan {plan}: no drill is up; nothing to do"
    )


def failover(
    ctx: typer.Context,
    plan: PlanName,
    to: Annotated[str, typer.Option("--to", help="The site that takes over.", metavar="SITE")],
    mode: Annotated[Mode, typer.Option(help="unplanned makes no call at all to the source site.")] = Mode.PLANNED,
    checkpoint: Selector = None,
    force: Annotated[bool, typer.Option("--force", help="Go on where a check would stop it; audited.")] = False,
    allow_suspect: AllowSuspect = False,
    settings: Settings = None,
    group: Groups = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    wait: Wait = True,
    check: Check = False,
) -> None:
    """Make the plan's machines active at another site. Already there: nothing changes."""
    here = shell(ctx)
    body: dict[str, Any] = {"to_site": to, "mode": mode.value}
    if group:
        body["groups"] = group
    if checkpoint is not None:
        body["checkpoint"] = checkpoint
    if force:
        body["force"] = True
    if allow_suspect:
        body["allow_suspect"] = True
    if settings is not None:
        body["recovery_settings"] = settings
    unchanged = f"plan {plan} is active at {to} already; nothing to do"
    ask = "" if yes else f"Fail plan {plan} over to {to} ({mode.value})?"
    _order(here, plan, "failover", body, wait=wait, check=check, unchanged=unchanged, ask=ask)


def reprotect(
    ctx: typer.Context,
    plan: PlanName,
    to: Annotated[str | None, typer.Option("--to", help="Where to; default: the site that it left.")] = None,
    accept_divergence: Annotated[
        bool,
        typer.Option(
            "--accept-divergence", help="Know that the old primary may hold what nobody else has; it is kept."
        ),
    ] = False,
    wait: Wait = True,
    check: Check = False,
) -> None:
    """After a failover: replicate from where the plan runs back to the site that it left. Only what differs is sent."""
    here = shell(ctx)
    body: dict[str, Any] = {"to_site": to} if to else {}
    if accept_divergence:
        body["accept_divergence"] = True
    unchanged = f"plan {plan} is replicated from where it runs; nothing to do"
    _order(here, plan, "reprotect", body, wait=wait, check=check, unchanged=unchanged)


def rollback(
    ctx: typer.Context,
    plan: PlanName,
    force: Annotated[
        bool, typer.Option("--force", help="The site that is given up is lost: fence what runs there at first contact.")
    ] = False,
    wait: Wait = True,
    check: Check = False,
) -> None:
    """Give up a failover that was not committed: stop what it made, start the old primary again."""
    here = shell(ctx)
    body = {"force": True} if force else {}
    _order(here, plan, "rollback", body, wait=wait, check=check, unchanged=f"plan {plan}: nothing to roll back")


def commit(ctx: typer.Context, plan: PlanName) -> None:
    """Say that a failover is not rolled back any more."""
    here = shell(ctx)
    answer = _verb(here, plan, "commit", {})
    said = "its failover is committed" if answer["changed"] else "no failover waits for that; nothing to do"
    here.out.show(answer, lambda: f"plan {plan}: {said}")


def migrate(
    ctx: typer.Context,
    plan: PlanName,
    to: Annotated[str | None, typer.Option("--to", help="The plan's target site, to be sure.", metavar="SITE")] = None,
    group: Groups = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    wait: Wait = True,
    check: Check = False,
) -> None:
    """Move the plan's machines to its target site for good; the source is retired, nothing is replicated back."""
    here = shell(ctx)
    body: dict[str, Any] = {"to_site": to} if to else {}
    if group:
        body["groups"] = group
    unchanged = f"plan {plan} was migrated; nothing to do"
    ask = "" if yes else f"Migrate plan {plan} for good?"
    _order(here, plan, "migrate", body, wait=wait, check=check, unchanged=unchanged, ask=ask)


def retire(
    ctx: typer.Context,
    plan: PlanName,
    machine: Annotated[list[str] | None, typer.Option(help="Only what this machine has left behind.")] = None,
    site: Annotated[str | None, typer.Option(help="Only what rests at this site.")] = None,
    accept_divergence: Annotated[
        bool, typer.Option("--accept-divergence", help="Also what may hold data that is nowhere else.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    wait: Wait = True,
    check: Check = False,
) -> None:
    """Delete the old primaries of a plan with their disks, once nobody can want them back."""
    here = shell(ctx)
    body: dict[str, Any] = {"machines": machine} if machine else {}
    if site:
        body["site"] = site
    if accept_divergence:
        body["accept_divergence"] = True
    unchanged = f"plan {plan} has left nothing behind"
    ask = "" if yes else f"Delete these machines of plan {plan} for good?"
    _order(here, plan, "retire", body, wait=wait, check=check, unchanged=unchanged, ask=ask)


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands to ``app``."""
    app.command(rich_help_panel=panel)(replicate)
    app.command(rich_help_panel=panel)(failover)
    app.command(rich_help_panel=panel)(reprotect)
    app.command(rich_help_panel=panel)(rollback)
    app.command(rich_help_panel=panel)(commit)
    app.command(rich_help_panel=panel)(migrate)
    app.command(rich_help_panel=panel)(retire)
