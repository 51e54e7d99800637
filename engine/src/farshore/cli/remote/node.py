"""``farshore node``, the remote half: what the control plane knows of nodes. The node's own commands are local."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from farshore.cli import formats
from farshore.cli.context import shell
from farshore.cli.output import grid

Name = Annotated[str, typer.Argument(metavar="NODE", help="Name of the node.")]


class Role(StrEnum):
    """What a node does."""

    REPLICATION = "replication"
    RECOVERY = "recovery"


def list_nodes(ctx: typer.Context) -> None:
    """List the nodes that the control plane knows."""
    here = shell(ctx)
    items = here.client.items("/nodes")
    here.out.show(
        {"items": items},
        lambda: grid(
            ("node", "site", "state", "roles", "data address", "seen", "version", "certificate until"),
            (
                (
                    node["name"],
                    node["site"],
                    formats.state(node["state"]),
                    ", ".join(node["roles"]),
                    node["data_address"],
                    formats.ago(node["last_seen"]),
                    node["version"],
                    formats.clock(node["certificate_not_after"]),
                )
                for node in items
            ),
            empty="none yet; register one with 'farshore node add NODE --site SITE --data-address HOST:PORT'",
        ),
    )


def add(
    ctx: typer.Context,
    name: Name,
    site: Annotated[str, typer.Option(help="The site that the node belongs to.")],
    data_address: Annotated[str, typer.Option(help="host:port at which other nodes reach it.")],
    role: Annotated[list[Role] | None, typer.Option(help="What it does; default both.")] = None,
) -> None:
    """Register a node, or change one that is. Then give it a token with 'node token'."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    roles = [each.value for each in role or list(Role)]
    reply = here.client.put(f"/nodes/{segment(name)}", {"site": site, "roles": roles, "data_address": data_address})
    did = "is registered" if reply.status == 201 else "is changed" if reply.changed else "is unchanged"
    here.out.show(
        reply.body | {"changed": reply.status == 201 or bool(reply.changed)},
        lambda: (
            f"node {name} {did}"
            + (f"; next: 'farshore node token {name} --output FILE'" if reply.body["state"] == "new" else "")
        ),
    )


def token(
    ctx: typer.Context,
    name: Name,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the token to this new file (mode 0600), not to stdout.")
    ] = None,
) -> None:
    """Make a single-use token with which the node enrols within the hour."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    made: dict[str, Any] = here.client.post(f"/nodes/{segment(name)}:token").body
    if output:
        from farshore import durable

        durable.write(output, made["token"].encode() + b"\n")
        made = {key: value for key, value in made.items() if key != "token"} | {"token_file": str(output)}
    file = str(output) if output else "TOKEN-FILE"
    lines = [] if output else [made["token"]]
    lines += [
        f"valid until {formats.clock(made['expires_at'])}, for one use; at the node:",
        f"  farshore node enrol --config /etc/farshore/node.yml --token-file {file} --ca-sha256 {made['ca_sha256']}",
    ]
    here.out.show(made, lambda: "\n".join(lines))


def remove(ctx: typer.Context, name: Name) -> None:
    """Remove a node; its certificate is refused from then on."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    here.client.delete(f"/nodes/{segment(name)}")
    here.out.show({"name": name, "removed": True}, lambda: f"node {name} is removed; its certificate is refused")


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``, which holds the node's own."""
    panel = "Through the control plane"
    app.command("list", rich_help_panel=panel)(list_nodes)
    app.command("add", rich_help_panel=panel)(add)
    app.command("token", rich_help_panel=panel)(token)
    app.command("remove", rich_help_panel=panel)(remove)
