"""``farshore plan``: protection plans, written as YAML files and applied."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farshore.cli import formats
from farshore.cli.context import Shell, shell
from farshore.cli.output import facts, grid
from farshore.cli.remote import costs, hook_files
from farshore.cli.remote.status import plan_rows
from farshore.errors import FarshoreError, Invalid, NotFound

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(help="Protection plans: which machines, how often, and how they come up.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="PLAN", help="Name of the plan.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="The plan as YAML.")]
Machines = Annotated[list[str] | None, typer.Option("--machine", help="Only these machines.")]


def read_plan(path: Path) -> tuple[str, str]:
    """Return the name of the plan in the file and the file's text.

    Everything but the name is for the control plane to judge.

    Raises:
        NotFound: if the file cannot be read.
        Invalid: with line and column, if it is no YAML or names no plan.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(
            f"the plan file {path} cannot be read: {error.strerror}", hint="Name a readable file."
        ) from error
    except UnicodeDecodeError as error:
        raise Invalid(
            f"the plan file {path} is no UTF-8 text", code="plan-invalid", hint="Save it as UTF-8."
        ) from error
    try:
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Invalid(
            f"this is no YAML: {error.problem or error.context}",
            code="plan-invalid",
            hint="Look at the indentation and the quotes there.",
            file=str(path),
            line=mark.line + 1 if mark else None,
            column=mark.column + 1 if mark else None,
        ) from error
    except yaml.YAMLError as error:
        raise Invalid(
            f"{path} is no YAML: {error}", code="plan-invalid", hint="Save it as plain UTF-8 YAML."
        ) from error
    name = document.get("name") if isinstance(document, dict) else None
    if not isinstance(name, str) or not name:
        raise Invalid(
            "the plan has no name",
            code="plan-invalid",
            field="name",
            hint="Begin the file with 'name: ...'; 'farshore plan init' writes a complete one.",
            file=str(path),
            line=1,
        )
    return name, text


def _in_file(error: FarshoreError, path: Path) -> FarshoreError:
    """Return ``error`` with the file's name beside the line that the control plane named."""
    error.evidence.setdefault("file", str(path))
    return error


@app.command("list")
def list_plans(ctx: typer.Context) -> None:
    """List the plans with RPO against target."""
    here = shell(ctx)
    items = here.client.items("/plans")
    here.out.show({"items": items}, lambda: plan_rows(items))


@app.command()
def show(
    ctx: typer.Context,
    name: Name,
    source: Annotated[bool, typer.Option("--source", help="Print the YAML text as it was applied.")] = False,
) -> None:
    """Show one plan with its machines."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    plan = here.client.get(f"/plans/{segment(name)}")
    if source and not here.out.as_json:
        typer.echo(plan["source"] or _yaml(plan["definition"]), nl=not (plan["source"] or "\n").endswith("\n"))
        return
    here.out.show(plan, lambda: _details(plan))


def _direction(plan: dict[str, Any]) -> str:
    """Return which way a plan is replicated, or that it is not."""
    way = plan.get("direction") or {key: plan["definition"].get(f"{key}_site") for key in ("source", "target")}
    text = f"{way['source']} → {way['target']}"
    return text if plan.get("turned", True) else f"{text}, not yet: farshore reprotect {plan['name']}"


def _details(plan: dict[str, Any]) -> list[RenderableType]:
    definition = plan["definition"] or {}
    error = plan["last_error"] or {}
    return [
        facts(
            (
                ("plan", f"{plan['name']} (revision {plan['revision']})"),
                ("description", definition.get("description") or None),
                ("direction", _direction(plan)),
                ("active at", plan["active_site"]),
                ("activity", formats.state(plan["activity"])),
                ("state", formats.state(plan["state"], plan["conditions"])),
                ("epoch", plan["epoch"]),
                ("RPO", formats.rpo(plan["rpo_s"], plan["rpo_target_s"])),
                ("RPO target", formats.duration(plan["rpo_target_s"])),
                ("next cycle", formats.ago(plan["next_cycle_at"]) if plan["next_cycle_at"] else None),
                ("last error", error.get("message")),
                ("what to do", error.get("hint") or None),
            )
        ),
        grid(
            ("machine", "state", "runs at", ">RPO", "newest checkpoint"),
            (
                (
                    machine["name"],
                    formats.state(machine["state"]),
                    machine["active_site"],
                    formats.rpo(machine["rpo_s"], plan["rpo_target_s"]),
                    checkpoint_id(machine["newest_checkpoint"]),
                )
                for machine in plan["machines"]
            ),
            title="\nmachines",
        ),
    ]


def checkpoint_id(value: Any) -> str:
    """Return the id of a checkpoint that is given as id, as document, or not at all."""
    if isinstance(value, dict):
        return str(value.get("checkpoint_id", "—"))
    return str(value or "—")


def _yaml(document: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return text


@app.command()
def apply(ctx: typer.Context, file: File) -> None:
    """Create or change the plan that FILE describes. It protects nothing until 'plan protect'."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    name, text = read_plan(file)
    try:
        reply = here.client.put(f"/plans/{segment(name)}", hook_files.body(here.client, name, text, file))
    except FarshoreError as error:
        raise _in_file(error, file) from None
    plan = reply.body
    for warning in plan.get("warnings", []):
        here.out.warn(warning)
    did = "is created" if reply.status == 201 else "is changed" if reply.changed else "is unchanged"
    here.out.show(
        plan | {"changed": reply.status == 201 or bool(reply.changed)},
        lambda: (
            f"plan {name} {did} (revision {plan['revision']})"
            + (f"; next: 'farshore plan protect {name}'" if plan["activity"] == "inactive" else "")
        ),
    )


@app.command()
def diff(
    ctx: typer.Context,
    file: File,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if there is a difference.")] = False,
) -> None:
    """Show what applying FILE would change."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    name, text = read_plan(file)
    try:
        body = hook_files.body(here.client, name, text, file)
        preview = here.client.post(f"/plans/{segment(name)}:preview", body).body
    except FarshoreError as error:
        raise _in_file(error, file) from None

    def render() -> list[RenderableType]:
        from rich.text import Text

        before, after = (_policy(preview[side]) for side in ("before", "after"))
        lines = difflib.unified_diff(before, after, "applied", str(file), lineterm="")
        colours = {"+": "green", "-": "red", "@": "cyan"}
        shown: list[RenderableType] = [Text(line, style=colours.get(line[:1], "")) for line in lines]
        if not shown:
            shown.append("would change the text, not the policy" if preview["changed"] else "no difference")
        estimates = [facts(rows)] if (rows := costs.rows(preview.get("costs"))) else []
        return [*shown, *estimates, *(f"warning: {warning}" for warning in preview["warnings"])]

    here.out.show(preview, render)
    if exit_code and preview["changed"]:
        raise typer.Exit(1)


def _policy(side: Any) -> list[str]:
    """Return the lines of one side of a preview: the policy as YAML."""
    if side is None:
        return []
    definition = side.get("definition", side) if isinstance(side, dict) else side
    return _yaml(definition).splitlines()


@app.command()
def init(
    ctx: typer.Context,
    source_site: Annotated[str, typer.Option(help="Where the machines run.")],
    target_site: Annotated[str, typer.Option(help="Where they are recovered.")],
    machines: Annotated[
        list[str] | None, typer.Argument(metavar="[MACHINE]...", help="Names or ids; default all at the site.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the plan; default SOURCE-to-TARGET.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default NAME.yml. '-' is stdout.")
    ] = None,
    rpo: Annotated[str, typer.Option(help="How much data, as time, may be lost.")] = "15m",
) -> None:
    """Write a commented plan from what the inventories hold. Nothing is applied."""
    from farshore.cli.remote import draft
    from farshore.cli.remote.client import segment
    from farshore.cli.remote.token import seconds

    here = shell(ctx)
    seconds(rpo, "--rpo")
    sites = [here.client.get(f"/sites/{segment(site)}") for site in (source_site, target_site)]
    found = draft.choose(here.client.items("/machines", site=source_site), machines or [], source_site)
    plan_name = name or f"{source_site}-to-{target_site}"
    text = draft.write(plan_name, sites[0], sites[1], found, rpo)
    if output is not None and str(output) == "-":
        typer.echo(text, nl=False)
        return
    path = output or Path(f"{plan_name}.yml")
    _write_new(path, text)
    here.out.show(
        {"file": str(path), "name": plan_name, "machines": [machine["name"] for machine in found]},
        lambda: f"{path} holds {len(found)} machines. Read it, then: 'farshore plan apply {path}'",
    )


def _write_new(path: Path, text: str) -> None:
    """Write ``text`` to ``path``.

    Raises:
        Conflict: if there is such a file; somebody's work is in it.
    """
    from farshore import durable
    from farshore.errors import Conflict

    try:
        fresh = durable.create(path, text.encode(), mode=0o644)
    except OSError as error:
        raise Invalid(
            f"{path} cannot be written: {error.strerror}", field="--output", hint="Name a file in a folder that exists."
        ) from error
    if not fresh:
        raise Conflict(
            f"{path} exists", code="file-exists", field="--output", hint="Name another file, or remove it first."
        )


def _activity(here: Shell, name: str, body: dict[str, Any], did: str) -> None:
    from farshore.cli.remote.client import segment

    reply = here.client.post(f"/plans/{segment(name)}:protect", body)
    for warning in reply.body.get("warnings", []):
        here.out.warn(warning)
    here.out.show(
        reply.body | {"changed": bool(reply.changed)},
        lambda: (
            f"plan {name} {did if reply.changed else 'is so already'}: {reply.body['activity']}, {reply.body['state']}"
        ),
    )


@app.command()
def protect(ctx: typer.Context, name: Name, machine: Machines = None) -> None:
    """Begin or resume replication on the plan's schedule."""
    body = {"state": "protected"} | ({"machines": machine} if machine else {})
    _activity(shell(ctx), name, body, "is protected from now on")


@app.command()
def pause(ctx: typer.Context, name: Name, machine: Machines = None) -> None:
    """Stop the schedule; checkpoints and change tracking stay."""
    body = {"state": "paused"} | ({"machines": machine} if machine else {})
    _activity(shell(ctx), name, body, "is paused")


@app.command()
def unprotect(
    ctx: typer.Context,
    name: Name,
    machine: Machines = None,
    keep_copies: Annotated[
        bool, typer.Option("--keep-copies/--drop-copies", help="Whether the checkpoints at the target stay.")
    ] = True,
) -> None:
    """Stop replication and remove everything of ours from the source."""
    body: dict[str, Any] = {"state": "unprotected", "keep_copies": keep_copies}
    _activity(shell(ctx), name, body | ({"machines": machine} if machine else {}), "is unprotected")


@app.command()
def delete(ctx: typer.Context, name: Name) -> None:
    """Delete a plan that is unprotected."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    here.client.delete(f"/plans/{segment(name)}")
    here.out.show({"name": name, "deleted": True}, lambda: f"plan {name} is deleted")
