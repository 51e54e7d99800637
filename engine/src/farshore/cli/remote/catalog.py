"""``farshore catalog``: what sites keep of this control plane, and whether its catalogue agrees with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from farshore.cli import formats
from farshore.cli.context import shell
from farshore.cli.output import facts, grid
from farshore.cli.remote.site import findings_table

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(no_args_is_help=True, help="The catalogue of checkpoints: what is kept of it, whether it is right.")


@app.command()
def show(ctx: typer.Context) -> None:
    """Show the catalogue's generation, and the bundle that each site keeps for when this control plane is lost."""
    here = shell(ctx)
    found = here.client.get("/catalog")
    here.out.show(found, lambda: _shown(found))


def _shown(found: dict[str, Any]) -> list[RenderableType]:
    key = "still in the home: move recovery.key to a safe place" if found["recovery_key_is_here"] else "not here"
    return [
        facts(
            (
                ("catalogue", found["catalog_id"]),
                ("generation", found["generation"]),
                ("superseded by", found["superseded_by"]),
                ("not read yet", ", ".join(found["rebuilding"]) or None),
                ("recovery key", key),
            )
        ),
        grid(
            ("site", ">bundle", "written", "state"),
            (
                (
                    one["site"],
                    one["number"] or "—",
                    formats.ago(one["written_at"]) if one["written_at"] else "never",
                    one["error"]["message"] if one["error"] else "current" if one["current"] else "being renewed",
                )
                for one in found["bundles"]
            ),
            title="\nsite bundles",
            empty="none yet; a site gets one as soon as a node of it polls",
        ),
    ]


@app.command()
def check(
    ctx: typer.Context,
    site: Annotated[list[str] | None, typer.Option("--site", help="Only these sites; default all online.")] = None,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="First record published checkpoints that the catalogue does not know.")
    ] = False,
) -> None:
    """Prove that catalogue, manifests and points agree, and name each difference; exit status 1 if there is one."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    names = site or [one["name"] for one in here.client.items("/sites") if one["state"] == "online"]
    items = [here.client.post(f"/sites/{segment(name)}:catalog-check", {"adopt": adopt}).body for name in names]
    here.out.show({"items": items}, lambda: _checked(items))
    if not all(item["agrees"] for item in items):
        raise typer.Exit(1)


def _checked(items: list[dict[str, Any]]) -> list[RenderableType]:
    if not items:
        return ["no site is online"]
    shown: list[RenderableType] = []
    for item in items:
        foreign = f", {item['foreign']} of other installations" if item["foreign"] else ""
        verdict = "catalogue, manifests and points agree" if item["agrees"] else "THEY DISAGREE"
        shown.append(f"{item['site']}: {item['manifests']} checkpoints{foreign}: {verdict}")
        if item["findings"]:
            shown.append(findings_table(item["findings"]))
    return shown
