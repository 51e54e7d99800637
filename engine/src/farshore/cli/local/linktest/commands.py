"""The three commands. What they do is imported when it is done: ``farshore --help`` has to be quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farshore.cli.context import shell
from farshore.errors import Invalid
from farshore.units import WINDOW_LEVELS, format_size, parse_size

if TYPE_CHECKING:
    from farshore.model.plan import Transport

app = typer.Typer(
    no_args_is_help=True,
    help="Measure a link and size a node, with the data path that replication uses.",
    epilog="On one machine: farshore linktest keys k; farshore linktest serve --keys k --disk a.img --listen :7000 & "
    "farshore linktest pull --keys k --disk b.img --connect 127.0.0.1:7000",
)

KeysFolder = Annotated[Path, typer.Option("--keys", help="Folder made by 'linktest keys'.", metavar="DIR")]
Disks = Annotated[list[Path], typer.Option("--disk", help="Image; give it again for more disks.", metavar="PATH")]
Listen = Annotated[str | None, typer.Option("--listen", help="Wait here for the other end.", metavar="HOST:PORT")]
Connect = Annotated[str | None, typer.Option("--connect", help="Where the other end listens.", metavar="HOST:PORT")]


@app.command()
def keys(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder for the keys; both ends need it.", metavar="DIR")],
) -> None:
    """Make the keys that both ends need to trust each other. They are good for 30 days."""
    from farshore.cli.local.linktest.keys import make

    changed = make(folder)
    shell(ctx).out.show(
        {"changed": changed, "keys": str(folder)},
        lambda: f"Keys are in {folder}." if changed else f"Good keys were in {folder} already.",
    )


@app.command()
def serve(
    ctx: typer.Context,
    keys: KeysFolder,
    disk: Disks,
    changed: Annotated[
        list[Path] | None,
        typer.Option("--changed", help="What changed of the disk: a JSON list of [offset, length].", metavar="MAP"),
    ] = None,
    listen: Listen = None,
    connect: Connect = None,
) -> None:
    """Be the source until Ctrl-C. Nothing may write the disks meanwhile.

    With --changed only what it names is sent, and the other end's disk has to be a copy of the base.
    """
    from farshore.cli.local.linktest.serving import run

    run(shell(ctx).out, keys, disk, changed or [], *_ends(listen, connect))


@app.command()
def pull(
    ctx: typer.Context,
    keys: KeysFolder,
    disk: Disks,
    listen: Listen = None,
    connect: Connect = None,
    connections: Annotated[str, typer.Option(help="1 to 32, or auto: by the round-trip time.", metavar="N")] = "auto",
    window: Annotated[str, typer.Option(help="A level such as 32MiB that is kept, or auto.", metavar="LEVEL")] = "auto",
    compress: Annotated[str, typer.Option(help="auto or off.")] = "auto",
    node_window: Annotated[
        str | None, typer.Option(help="Bytes in flight of all disks together.", metavar="SIZE")
    ] = None,
    bandwidth: Annotated[
        str | None, typer.Option(help="Bytes each second at most, such as 20MiB.", metavar="SIZE")
    ] = None,
) -> None:
    """Be the target: pull the disks, make them durable, read them back, and tell how it went.

    The time counts from the first attempt to connect until all is durable, read back and published.
    """
    from farshore.cli.local.linktest.pulling import Limits, run

    budget = None if node_window is None else _size(node_window, "node_window")
    rate = None if bandwidth is None else _size(bandwidth, "bandwidth")
    address, listens = _ends(listen, connect)
    transport = _transport(connections, window, compress)
    run(shell(ctx).out, keys, disk, address, transport, Limits(budget, rate), listens=listens)


def _ends(listen: str | None, connect: str | None) -> tuple[str, bool]:
    """Return the address, and whether to listen there."""
    if (listen is None) == (connect is None):
        raise Invalid(
            "give either --listen or --connect",
            code="linktest-ends",
            field="connect",
            hint="One end listens, the other connects; which one does not matter to the direction of the data.",
        )
    if listen is not None:
        return (f"0.0.0.0{listen}" if listen.startswith(":") else listen), True  # noqa: S104 - asked for
    return connect or "", False


def _transport(connections: str, window: str, compress: str) -> Transport:
    from farshore.model.plan import Transport

    if compress not in {"auto", "off"}:
        raise Invalid(f"{compress!r} is neither auto nor off", code="linktest-option", field="compress")
    if connections != "auto" and not (connections.isdecimal() and 1 <= int(connections) <= 32):
        raise Invalid(f"{connections!r} is no number from 1 to 32", code="linktest-option", field="connections")
    fixed = {}
    if window != "auto":
        level = _size(f"{window}MiB" if window.isdecimal() and int(window) <= 64 else window, "window")
        if not 1 << 20 <= level <= WINDOW_LEVELS[-1]:
            raise Invalid(
                f"a window of {format_size(level)} cannot be had",
                code="linktest-option",
                field="window",
                hint="Give 1MiB to 64MiB, or auto.",
            )
        fixed = {"per_disk_window": level, "window_levels": (level,)}
    return Transport(
        connections="auto" if connections == "auto" else int(connections),
        compression="auto" if compress == "auto" else "off",
        **fixed,
    )


def _size(text: str, field: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise Invalid(str(error), code="linktest-option", field=field) from error
    if size < 1 << 20:
        raise Invalid(f"{field}: {text} is less than 1 MiB", code="linktest-option", field=field)
    return size
