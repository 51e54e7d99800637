"""``farshore site``: the places that machines run at and are recovered to."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farshore.cli import formats
from farshore.cli.context import shell
from farshore.cli.output import facts, grid

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(help="Sites: where machines run and where they are recovered.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="SITE", help="Name of the site.")]


class Platform(StrEnum):
    """What runs the machines of a site."""

    KVM = "kvm"
    FILE = "file"
    AWS = "aws"


def table(sites: list[dict[str, Any]], title: str = "") -> RenderableType:
    """Return the sites as a table."""
    return grid(
        ("site", "platform", "state", "nodes", ">machines", ">pool free", ">pool size", "inventory"),
        (
            (
                site["name"],
                site["platform"],
                formats.state(site["state"]),
                ", ".join(site["nodes"]) or "—",
                site["machine_count"],
                formats.size((site["pool"] or {}).get("free_bytes")),
                formats.size((site["pool"] or {}).get("capacity_bytes")),
                formats.ago(site["inventory_at"]),
            )
            for site in sites
        ),
        title=title,
        empty="none yet; add one with 'farshore site add NAME --platform kvm'",
    )


def findings_table(findings: list[dict[str, Any]], title: str = "") -> RenderableType:
    """Return findings as a table, the worst first."""
    order = {"error": 0, "warning": 1, "info": 2}
    return grid(
        ("severity", "code", "subject", "finding", "remedy"),
        (
            (formats.state(item["severity"]), item["code"], item.get("subject"), item["message"], item.get("remedy"))
            for item in sorted(findings, key=lambda item: order.get(item["severity"], 3))
        ),
        title=title,
        empty="no findings: all is well",
    )


@app.command("list")
def list_sites(ctx: typer.Context) -> None:
    """List the sites with their state and room."""
    here = shell(ctx)
    items = here.client.items("/sites")
    here.out.show({"items": items}, lambda: table(items))


@app.command()
def show(ctx: typer.Context, name: Name) -> None:
    """Show one site with its networks."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    site = here.client.get(f"/sites/{segment(name)}")

    def render() -> list[RenderableType]:
        pool = site["pool"] or {}
        return [
            facts(
                (
                    ("site", site["name"]),
                    ("description", site["description"] or None),
                    ("platform", site["platform"]),
                    ("state", formats.state(site["state"])),
                    ("nodes", ", ".join(site["nodes"]) or "none; register one with 'farshore node add'"),
                    ("machines", site["machine_count"]),
                    ("pool", pool.get("path")),
                    (
                        "room",
                        f"{formats.size(pool['free_bytes'])} free of {formats.size(pool['capacity_bytes'])}"
                        if pool
                        else None,
                    ),
                    ("inventory", formats.ago(site["inventory_at"])),
                )
            ),
            grid(
                ("network", "subnet", "isolated", "active"),
                (
                    (n["name"], n.get("subnet"), formats.yes(n.get("isolated")), formats.yes(n.get("active")))
                    for n in site["networks"]
                ),
                title="\nnetworks",
            ),
        ]

    here.out.show(site, render)


@app.command()
def add(
    ctx: typer.Context,
    name: Name,
    platform: Annotated[Platform, typer.Option(help="What runs the machines there.")] = Platform.KVM,
    description: Annotated[str | None, typer.Option(help="A note for people.")] = None,
) -> None:
    """Register a site, or change one that is."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    body: dict[str, Any] = {"platform": platform.value}
    if description is not None:
        body["description"] = description
    reply = here.client.put(f"/sites/{segment(name)}", body)
    did = "is registered" if reply.status == 201 else "is changed" if reply.changed else "is unchanged"
    here.out.show(
        reply.body | {"changed": reply.status == 201 or bool(reply.changed)},
        lambda: (
            f"site {name} {did}"
            + (
                ""
                if reply.body["nodes"]
                else f"; next: 'farshore node add NODE --site {name} --data-address HOST:PORT'"
            )
        ),
    )


@app.command()
def remove(ctx: typer.Context, name: Name) -> None:
    """Forget a site that no plan and no node uses."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    here.client.delete(f"/sites/{segment(name)}")
    here.out.show({"name": name, "removed": True}, lambda: f"site {name} is removed")


@app.command()
def check(ctx: typer.Context, name: Name) -> None:
    """Ask the site's node to check itself, its platform and its pool; exit status 1 if there is an error."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    findings = here.client.post(f"/sites/{segment(name)}:check").body["findings"]
    here.out.show({"site": name, "findings": findings}, lambda: findings_table(findings))
    if any(finding["severity"] == "error" for finding in findings):
        raise typer.Exit(1)


@app.command()
def refresh(ctx: typer.Context, name: Name) -> None:
    """Take a new inventory of the site's machines and networks."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    site = here.client.post(f"/sites/{segment(name)}:refresh").body
    here.out.show(site, lambda: f"site {name}: a new inventory is ordered")
