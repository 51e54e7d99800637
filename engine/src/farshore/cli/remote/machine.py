"""``farshore machine``: the machines that the sites' inventories hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from farshore.cli import formats
from farshore.cli.context import shell
from farshore.cli.output import facts, grid
from farshore.errors import Conflict, NotFound

if TYPE_CHECKING:
    from rich.console import RenderableType

    from farshore.cli.remote.client import Client

app = typer.Typer(help="Machines, as the sites' inventories and the plans know them.", no_args_is_help=True)


def find(client: Client, name: str) -> dict[str, Any]:
    """Return the machine with this id or name.

    Raises:
        NotFound: if there is none.
        Conflict: if several sites have a machine of that name.
    """
    from farshore.cli.remote.client import segment

    named = client.items("/machines", name=name)
    if len(named) > 1:
        ids = ", ".join(f"{machine['machine_id']} at {machine['site']}" for machine in named)
        raise Conflict(
            f"{len(named)} machines are called {name!r}: {ids}",
            code="machine-ambiguous",
            hint="Name the one that you mean by its id.",
        )
    if named:
        found: dict[str, Any] = client.get(f"/machines/{segment(named[0]['machine_id'])}")
        return found
    try:
        found = client.get(f"/machines/{segment(name)}")
    except NotFound as error:
        raise NotFound(
            f"no machine is called {name!r}",
            hint="'farshore machine list' shows all; 'farshore site refresh SITE' looks anew.",
        ) from error
    return found


@app.command("list")
def list_machines(
    ctx: typer.Context,
    site: Annotated[str | None, typer.Option(help="Only machines at this site.")] = None,
    plan: Annotated[str | None, typer.Option(help="Only machines of this plan.")] = None,
) -> None:
    """List machines with their protection."""
    here = shell(ctx)
    items = here.client.items("/machines", site=site, plan=plan)
    here.out.show(
        {"items": items},
        lambda: grid(
            (
                "machine",
                "site",
                "power",
                ">cpus",
                ">memory",
                ">disks",
                ">disk size",
                "plan",
                "state",
                ">RPO",
                "active at",
            ),
            (
                (
                    machine["name"],
                    machine["site"],
                    formats.state(machine["power"]),
                    machine["cpus"],
                    formats.size(machine["memory_bytes"]),
                    len(machine["disks"]),
                    formats.size(sum(disk["size_bytes"] for disk in machine["disks"])),
                    machine["plan"],
                    formats.state(machine["state"], machine["conditions"]),
                    formats.rpo(machine["rpo_s"]),
                    machine["active_site"],
                )
                for machine in items
            ),
            empty="none; is a node online at the site? 'farshore node list' tells",
        ),
    )


@app.command()
def show(ctx: typer.Context, name: Annotated[str, typer.Argument(metavar="MACHINE", help="Name or id.")]) -> None:
    """Show one machine with its disks, networks and findings."""
    from farshore.cli.remote.site import findings_table

    here = shell(ctx)
    machine = find(here.client, name)

    def render() -> list[RenderableType]:
        return [
            facts(
                (
                    ("machine", machine["name"]),
                    ("id", machine["machine_id"]),
                    ("site", machine["site"]),
                    ("power", formats.state(machine["power"])),
                    ("size", f"{machine['cpus']} cpus, {formats.size(machine['memory_bytes'])} memory"),
                    ("plan", machine["plan"] or "none: unprotected"),
                    ("state", formats.state(machine["state"], machine["conditions"])),
                    ("active at", machine["active_site"]),
                    ("epoch", machine["epoch"]),
                    ("RPO", formats.rpo(machine["rpo_s"])),
                    ("newest checkpoint", newest(machine)),
                    ("bottleneck", machine["bottleneck"]),
                )
            ),
            grid(
                ("disk", ">size", "bus", "boot", "change tracking", "path"),
                (
                    (
                        disk["disk_id"],
                        formats.size(disk["size_bytes"]),
                        disk.get("bus"),
                        formats.yes(disk.get("boot")),
                        formats.yes(disk.get("tracked")),
                        disk.get("path"),
                    )
                    for disk in machine["disks"]
                ),
                title="\ndisks",
            ),
            grid(
                ("mac", "network", "addresses"),
                ((nic["mac"], nic["network"], ", ".join(nic.get("addresses") or ())) for nic in machine["nics"]),
                title="\nnetwork interfaces",
            ),
            findings_table(machine["findings"], title="\nfindings"),
        ]

    here.out.show(machine, render)


def newest(document: dict[str, Any]) -> str:
    """Return the id of a machine's newest checkpoint, which is an id or a document."""
    checkpoint = document.get("newest_checkpoint")
    if isinstance(checkpoint, dict):
        return str(checkpoint.get("checkpoint_id", "—"))
    return str(checkpoint or "—")
