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
    from rich.text import Text

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
            "encryption",
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
                doubt(item),
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


def doubt(item: dict[str, Any]) -> Text:
    """Return what is thought of a checkpoint's content, with its score where there is one."""
    found = item.get("suspicion") or {"verdict": "unscored", "score": None}
    text = formats.state(found["verdict"])
    if found["score"] is not None:
        text.append(f" {found['score']}")
    return text


def kept(item: dict[str, Any]) -> str:
    """Return why a checkpoint stays: its hold, pin, label, the runs that use it, or the rules of retention."""
    marks = [f"held: {item['hold']['reason']}"] if item.get("hold") else []
    marks += ["pinned"] if item["pinned"] else []
    if item["label"]:
        marks.append(f"label {item['label']}")
    if item["in_use_by"]:
        marks.append("in use by " + ", ".join(item["in_use_by"]))
    if item["state"] != "published":
        marks.append(item["state"])
    elif rules := item.get("retention"):
        said = ", ".join(one for one in rules["reasons"] if one not in {"pinned", "legal hold", "in use"})
        if said:
            marks.append(said if rules["stays"] else f"goes: {said}")
    return "; ".join(marks)


@app.command("list")
def list_checkpoints(
    ctx: typer.Context,
    plan: Annotated[str | None, typer.Option(help="Only of this plan.")] = None,
    machine: Annotated[str | None, typer.Option(help="Only with this machine.")] = None,
    clean: Annotated[bool, typer.Option("--clean", help="None that is suspect or shows signs of encryption.")] = False,
    limit: Annotated[int, typer.Option(help="At most so many, the newest first.", min=1)] = 50,
) -> None:
    """List checkpoints with the bytes that each moved against the size of its disks."""
    here = shell(ctx)
    items = here.client.items("/checkpoints", plan=plan, machine=machine, clean="true" if clean else None, limit=limit)
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
                    ("encryption", doubt(item)),
                    *(("", reason) for reason in (item.get("suspicion") or {}).get("reasons", ())),
                    *_evidence(item.get("evidence") or {}),
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


def _evidence(evidence: dict[str, Any]) -> list[tuple[str, str]]:
    """Return how a level was reached, and why a wished one was not."""
    rows = [("taken by", evidence["method"])] if "method" in evidence else []
    stops = [
        f"{what} {formats.duration(evidence[key])}"
        for key, what in (("longest_pause_s", "paused"), ("longest_freeze_s", "frozen"))
        if key in evidence
    ]
    if stops:
        rows.append(("at longest", ", ".join(stops)))
    rows += [("not application", reason) for reason in evidence.get("below_application", ())]
    return rows


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
    consistency: Annotated[
        str | None,
        typer.Option(
            help="The least level: machine, group or application. It fails rather than be less.", metavar="LEVEL"
        ),
    ] = None,
    hold: Annotated[str | None, typer.Option(help="Place a legal hold for this reason.", metavar="REASON")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the cycle.")] = True,
) -> None:
    """Make sure that a checkpoint with this label exists."""
    from farshore.cli.remote.client import segment
    from farshore.cli.remote.token import seconds

    here = shell(ctx)
    body: dict[str, Any] = {"pin": pin}
    if max_age is not None:
        body["max_age_s"] = seconds(max_age, "--max-age")
    body |= {key: value for key, value in (("consistency", consistency), ("hold", hold)) if value is not None}
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
def hold(
    ctx: typer.Context,
    checkpoint: Identifier,
    reason: Annotated[str, typer.Option(help="Why it must stay, such as a case number.")],
) -> None:
    """Place a legal hold: nobody removes the checkpoint until an admin lifts it."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    item = here.client.put(f"/checkpoints/{segment(checkpoint)}/hold", {"reason": reason}).body
    here.out.show(item, lambda: f"checkpoint {checkpoint} is under a legal hold")


@app.command()
def release(ctx: typer.Context, checkpoint: Identifier) -> None:
    """Lift a legal hold; only an admin may."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    item = here.client.delete(f"/checkpoints/{segment(checkpoint)}/hold").body
    here.out.show(item, lambda: f"checkpoint {checkpoint} is under no legal hold")


@app.command()
def clear(
    ctx: typer.Context,
    checkpoint: Identifier,
    note: Annotated[str, typer.Option(help="Why it is clean: it was harmless, or the machine was restored.")],
) -> None:
    """Say that a checkpoint is clean although it, or one before it, shows signs of encryption."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    item = here.client.post(f"/checkpoints/{segment(checkpoint)}:clear", {"note": note}).body
    here.out.show(item, lambda: f"checkpoint {checkpoint} counts as clean")


@app.command()
def retention(
    ctx: typer.Context,
    plan: PlanName,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="Try another rule, such as daily=7 or max_age=90d; others as in the plan.", metavar="RULE=N"),
    ] = None,
) -> None:
    """Show which checkpoints retention keeps, which would go now, and why. Changes nothing."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    body: dict[str, Any] = {}
    if rule:
        definition = here.client.get(f"/plans/{segment(plan)}")["definition"]
        body["retention"] = definition["retention"] | dict(_rule(text) for text in rule)
    answer = here.client.post(f"/plans/{segment(plan)}:retention-preview", body).body

    def render() -> list[RenderableType]:
        rows = (
            (
                one["checkpoint_id"],
                one["group_id"],
                formats.clock(one["taken_at"]),
                "stays" if one["stays"] else "goes",
                ", ".join(one["reasons"]),
            )
            for one in answer["checkpoints"]
        )
        return [
            grid(("checkpoint", "group", "taken", "", "why"), rows, empty="there are no checkpoints yet"),
            *answer["warnings"],
        ]

    here.out.show(answer, render)


def _rule(text: str) -> tuple[str, str | int]:
    name, _, value = text.partition("=")
    if not name or not value:
        raise typer.BadParameter(f"{text!r} is no rule; write it as daily=7 or max_age=90d")
    return name, int(value) if value.isdigit() else value


@app.command()
def delete(ctx: typer.Context, checkpoint: Identifier) -> None:
    """Delete a checkpoint that is neither pinned nor in use."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    here.client.delete(f"/checkpoints/{segment(checkpoint)}")
    here.out.show({"checkpoint_id": checkpoint, "deleted": True}, lambda: f"checkpoint {checkpoint} is deleted")
