"""``farshore checkpoint``: the points in time that can be recovered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from farshore.cli import formats
from farshore.cli.context import shell
from farshore.cli.output import facts, grid
from farshore.cli.remote.watch import settle

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(help="Checkpoints: the points in time that can be recovered.", no_args_is_help=True)

Identifier = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Id from 'checkpoint list'.")]
PlanName = Annotated[str, typer.Argument(metavar="PLAN", help="Name of the plan.")]


def table(items: list[dict[str, Any]], title: str = "") -> RenderableType:
    """Return checkpoints as a table, in the order given."""
    return grid(
        (
            "checkpoint",
            "machines",
            "published",
            ">age",
            "level",
            "integrity",
            "mode",
            ">moved",
            ">disk size",
            ">share",
            "kept",
        ),
        (
            (
                item["checkpoint_id"],
                ", ".join(item["machines"]),
                formats.clock(item["published_at"]),
                formats.ago(item["ordered_at"]).removesuffix(" ago"),
                item["level"],
                formats.state(item["integrity"]),
                (item["stats"] or {}).get("mode", "—"),
                formats.size((item["stats"] or {}).get("moved_bytes")),
                formats.size((item["stats"] or {}).get("disk_bytes")),
                formats.share((item["stats"] or {}).get("moved_bytes"), (item["stats"] or {}).get("disk_bytes")),
                kept(item),
            )
            for item in items
        ),
        title=title,
        empty="none yet; 'farshore replicate PLAN' makes one",
    )


def kept(item: dict[str, Any]) -> str:
    """Return why retention leaves a checkpoint alone: its pin, label, and the runs that use it."""
    marks = ["pinned"] if item["pinned"] else []
    if item["label"]:
        marks.append(f"label {item['label']}")
    if item["in_use_by"]:
        marks.append("in use by " + ", ".join(item["in_use_by"]))
    if item["state"] != "published":
        marks.append(item["state"])
    return "; ".join(marks)


@app.command("list")
def list_checkpoints(
    ctx: typer.Context,
    plan: Annotated[str | None, typer.Option(help="Only of this plan.")] = None,
    machine: Annotated[str | None, typer.Option(help="Only with this machine.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many, the newest first.", min=1)] = 50,
) -> None:
    """List checkpoints with the bytes that each moved against the size of its disks."""
    here = shell(ctx)
    items = here.client.items("/checkpoints", plan=plan, machine=machine, limit=limit)
    here.out.show({"items": items}, lambda: table(items))


@app.command()
def show(ctx: typer.Context, checkpoint: Identifier) -> None:
    """Show one checkpoint with its disks."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    item = here.client.get(f"/checkpoints/{segment(checkpoint)}")

    def render() -> list[RenderableType]:
        stats = item["stats"] or {}
        return [
            facts(
                (
                    ("checkpoint", item["checkpoint_id"]),
                    ("plan", f"{item['plan']} (revision {item['plan_revision']})"),
                    ("group", item["group_id"]),
                    ("machines", ", ".join(item["machines"])),
                    ("level", item["level"]),
                    ("integrity", formats.state(item["integrity"])),
                    ("epoch, sequence", f"{item['epoch']}, {item['sequence']}"),
                    ("ordered", formats.clock(item["ordered_at"])),
                    ("taken", formats.clock(item["taken_at"])),
                    ("published", f"{formats.clock(item['published_at'])}, {formats.ago(item['published_at'])}"),
                    ("kept", kept(item) or None),
                    ("note", item["note"] or None),
                    (
                        "cycle",
                        f"{stats['mode']}: moved {formats.size(stats['moved_bytes'])} of "
                        f"{formats.size(stats['disk_bytes'])} in {formats.duration(stats['seconds'])}"
                        + (f" ({stats['reason']})" if stats.get("reason") else "")
                        if stats
                        else None,
                    ),
                )
            ),
            grid(
                ("disk", ">size", "point", "tree root"),
                (
                    (disk["disk_key"], formats.size(disk["size_bytes"]), disk["point"], disk["tree_root"][:16] + "…")
                    for disk in item["disks"]
                ),
                title="\ndisks",
            ),
            *_findings(item),
        ]

    here.out.show(item, render)


def _findings(item: dict[str, Any]) -> list[RenderableType]:
    """Return what audits and scrubs have found out, with the places."""
    if not item["addenda"]:
        return []
    rows: list[tuple[Any, ...]] = []
    for addendum in item["addenda"]:
        head = (formats.clock(addendum["at"]), addendum["by"], formats.state(addendum["verdict"]))
        rows.append((*head, addendum["origin"], "", "", addendum["reason"]))
        rows.extend(
            ("", "", "", damage["disk_key"], damage["offset"], formats.size(damage["length"]), damage["kind"])
            for damage in addendum["damages"]
        )
        if addendum["more"]:
            rows.append(("", "", "", f"and {addendum['more']} more", "", "", ""))
    columns = ("at", "by", "verdict", "found by, disk", ">offset", ">length", "what")
    return [grid(columns, rows, title="\nfindings")]


@app.command()
def scrub(
    ctx: typer.Context,
    checkpoint: Identifier,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the scrub to its end.")] = True,
) -> None:
    """Read a checkpoint back at its site and compare every byte with its manifest.

    Exit status 0: it is verified. Damage is named by disk and offset; the checkpoint is then suspect, and neither drill
    nor failover takes it unless told to.
    """
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    answer = here.client.post(f"/checkpoints/{segment(checkpoint)}:scrub", {}).body
    run = answer["run"]["run_id"]
    if not wait:
        here.out.show(answer, lambda: f"run {run} reads it back; follow with 'farshore run watch {run}'")
        return
    here.out.say(f"run {run} reads checkpoint {checkpoint} back; page {here.page(answer['run']['url'])}")
    settle(here, run)


@app.command()
def create(
    ctx: typer.Context,
    plan: PlanName,
    label: Annotated[str, typer.Option(help="Its name; the same label again changes nothing.")],
    pin: Annotated[bool, typer.Option("--pin/--no-pin", help="Keep it whatever retention says.")] = True,
    max_age: Annotated[
        str | None, typer.Option(help="A newer one than this may take the label: no cycle is run.", metavar="DURATION")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the cycle.")] = True,
) -> None:
    """Make sure that a checkpoint with this label exists."""
    from farshore.cli.remote.client import segment
    from farshore.cli.remote.token import seconds

    here = shell(ctx)
    body: dict[str, Any] = {"pin": pin}
    if max_age is not None:
        body["max_age_s"] = seconds(max_age, "--max-age")
    path = f"/plans/{segment(plan)}/checkpoints/{segment(label)}"
    reply = here.client.put(path, body).body
    if reply["run"] is None or not wait:
        here.out.show(reply, lambda: _created(label, reply))
        return
    run = settle(here, reply["run"]["run_id"], quiet=True)
    made = here.client.put(path, body).body | {"run": run, "changed": True}
    here.out.show(made, lambda: _created(label, made))


def _created(label: str, reply: dict[str, Any]) -> str:
    if reply["checkpoint"]:
        did = "is made" if reply["changed"] else "exists already"
        return f"checkpoint {reply['checkpoint']['checkpoint_id']} with label {label} {did}"
    return f"run {reply['run']['run_id']} makes it; follow with 'farshore run watch {reply['run']['run_id']}'"


def _change(ctx: typer.Context, checkpoint: str, body: dict[str, Any], said: str) -> None:
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    item = here.client.patch(f"/checkpoints/{segment(checkpoint)}", body).body
    here.out.show(item, lambda: f"checkpoint {checkpoint} {said}")


@app.command()
def pin(
    ctx: typer.Context,
    checkpoint: Identifier,
    note: Annotated[str | None, typer.Option(help="Why; for people.")] = None,
) -> None:
    """Keep a checkpoint whatever retention says."""
    _change(ctx, checkpoint, {"pin": True} | ({"note": note} if note is not None else {}), "is pinned")


@app.command()
def unpin(ctx: typer.Context, checkpoint: Identifier) -> None:
    """Let retention have a checkpoint again."""
    _change(ctx, checkpoint, {"pin": False}, "is no longer pinned")


@app.command()
def delete(ctx: typer.Context, checkpoint: Identifier) -> None:
    """Delete a checkpoint that is neither pinned nor in use."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    here.client.delete(f"/checkpoints/{segment(checkpoint)}")
    here.out.show({"checkpoint_id": checkpoint, "deleted": True}, lambda: f"checkpoint {checkpoint} is deleted")
