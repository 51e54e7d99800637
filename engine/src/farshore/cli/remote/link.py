"""``farshore site-link``: the ways between sites, who listens on them and how much of them may be used."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from farshore.cli import formats
from farshore.cli.context import shell
from farshore.cli.output import facts, grid
from farshore.errors import Invalid

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(help="Site links: who listens, and how much of the way may be used.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Site that the data comes from.")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="Site that the data goes to.")]

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Side(StrEnum):
    """Which side waits for connections."""

    SOURCE = "source"
    TARGET = "target"


def read_hours(text: str) -> dict[str, Any]:
    """Return the calendar entry that ``"mon-fri 08:00-18:00 20 Mbit/s"`` names. The control plane judges the rest.

    Raises:
        Invalid: it has another form.
    """
    days_text, _, rest = text.strip().partition(" ")
    span, _, limit = rest.strip().partition(" ")
    begin, dash, end = span.partition("-")
    days: list[str] = []
    for part in days_text.lower().split(","):
        first, between, last = part.partition("-")
        if part == "daily":
            days.extend(DAYS)
        elif first in DAYS and (not between or last in DAYS):
            start, stop = DAYS.index(first), DAYS.index(last or first)
            days.extend(DAYS[(start + step) % 7] for step in range((stop - start) % 7 + 1))
        else:
            days.append("")
    if not (all(days) and dash and limit.strip()):
        raise Invalid(
            f"{text!r} is no part of the week with a rate",
            field="--hours",
            hint="Write it as 'mon-fri 08:00-18:00 20 Mbit/s' or 'daily 22:00-06:00 unlimited'.",
        )
    return {"days": [day for day in DAYS if day in days], "from": begin, "to": end, "limit": limit.strip()}


def limit_text(link: dict[str, Any]) -> str:
    """Return what the link allows now, and until when."""
    until = f", until {formats.clock(link['limit_until'])}" if link["limit_until"] else ""
    return formats.rate(link["limit_now"]) + until


@app.command("list")
def list_links(ctx: typer.Context) -> None:
    """List the links with what they allow now."""
    here = shell(ctx)
    items = here.client.items("/site-links")
    here.out.show(
        {"items": items},
        lambda: grid(
            ("from", "to", "listens", "limit now", "nodes at work"),
            (
                (
                    link["source_site"],
                    link["target_site"],
                    link[f"{link['data_listen']}_site"],
                    limit_text(link),
                    ", ".join(share["node"] for share in link["shares"]) or "—",
                )
                for link in items
            ),
            empty="none yet; without one the source site listens and there is no limit",
        ),
    )


@app.command()
def show(ctx: typer.Context, source: Source, target: Target) -> None:
    """Show one link with its calendar and the nodes that share its rate."""
    here = shell(ctx)
    link = here.client.get(_path(source, target))

    def render() -> list[RenderableType]:
        bandwidth = link["bandwidth"]
        return [
            facts(
                (
                    ("link", f"{link['source_site']} → {link['target_site']}"),
                    ("listens", link[f"{link['data_listen']}_site"]),
                    ("limit now", limit_text(link)),
                    ("limit", formats.rate(bandwidth["limit"])),
                    ("time zone", bandwidth["timezone"] if bandwidth["calendar"] else None),
                )
            ),
            grid(
                ("days", "from", "to", "limit"),
                (
                    (" ".join(hours["days"]), hours["from"], hours["to"], formats.rate(hours["limit"]))
                    for hours in bandwidth["calendar"]
                ),
                title="\ncalendar",
                empty="the limit holds at all times",
            ),
            grid(
                ("node", "share", "until"),
                (
                    (share["node"], formats.rate(share["bytes_per_s"]), formats.clock(share["until"]))
                    for share in link["shares"]
                ),
                title="\nshares",
                empty="no limited cycle runs",
            ),
        ]

    here.out.show(link, render)


@app.command()
def add(
    ctx: typer.Context,
    source: Source,
    target: Target,
    data_listen: Annotated[Side, typer.Option(help="Which side waits for connections.")] = Side.SOURCE,
    limit: Annotated[
        str | None, typer.Option(metavar="RATE", help="What may be used in all, for example '200 Mbit/s'.")
    ] = None,
    hours: Annotated[
        list[str] | None,
        typer.Option(metavar="HOURS", help="Another limit for a part of the week: 'mon-fri 08:00-18:00 20 Mbit/s'."),
    ] = None,
    timezone: Annotated[str, typer.Option(help="Whose clock --hours means, for example Europe/Berlin.")] = "UTC",
) -> None:
    """Describe a link, or change one; what is not named is as if it never was."""
    here = shell(ctx)
    bandwidth: dict[str, Any] = {"timezone": timezone, "calendar": [read_hours(text) for text in hours or ()]}
    if limit is not None:
        bandwidth["limit"] = limit
    reply = here.client.put(_path(source, target), {"data_listen": data_listen.value, "bandwidth": bandwidth})
    did = "is described" if reply.status == 201 else "is changed" if reply.changed else "is unchanged"
    here.out.show(
        reply.body | {"changed": reply.status == 201 or bool(reply.changed)},
        lambda: f"the link from {source} to {target} {did}; limit now: {limit_text(reply.body)}",
    )


@app.command()
def remove(ctx: typer.Context, source: Source, target: Target) -> None:
    """Forget a link: the source site listens then, and there is no limit."""
    here = shell(ctx)
    here.client.delete(_path(source, target))
    here.out.show(
        {"source_site": source, "target_site": target, "removed": True},
        lambda: f"the link from {source} to {target} is removed",
    )


def _path(source: str, target: str) -> str:
    from farshore.cli.remote.client import segment

    return f"/site-links/{segment(source)}/{segment(target)}"
