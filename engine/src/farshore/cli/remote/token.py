"""``farshore token``: who may call the API."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from farshore.cli import formats
from farshore.cli.context import shell
from farshore.cli.output import grid
from farshore.errors import Invalid
from farshore.units import parse_duration

app = typer.Typer(help="API tokens and their roles.", no_args_is_help=True)


class Role(StrEnum):
    """What a token may do, each more than the one before."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    RECOVERY_ADMIN = "recovery-admin"
    ADMIN = "admin"


def seconds(text: str, option: str) -> float:
    """Return the seconds in ``text`` (``30m``).

    Raises:
        Invalid: naming ``option``, if it is no duration.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise Invalid(str(error), field=option, hint="For example 30s, 15m, 4h or 1d.") from error


@app.command("list")
def list_tokens(ctx: typer.Context) -> None:
    """List the tokens, never their secrets."""
    here = shell(ctx)
    items = here.client.items("/tokens")
    here.out.show(
        {"items": items},
        lambda: grid(
            ("id", "name", "role", "created", "expires", "last used", "revoked"),
            (
                (
                    token["token_id"],
                    token["name"],
                    token["role"],
                    formats.clock(token.get("created_at")),
                    formats.clock(token.get("expires_at")),
                    formats.ago(token.get("last_used_at")),
                    formats.clock(token["revoked_at"]) if token.get("revoked_at") else "",
                )
                for token in items
            ),
        ),
    )


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Who or what uses it.")],
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.VIEWER,
    ttl: Annotated[str, typer.Option(help="How long it is valid: 12h, 90d.")] = "90d",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the token to this new file (mode 0600), not to stdout.")
    ] = None,
) -> None:
    """Make a token; it is shown this once."""
    here = shell(ctx)
    body = {"name": name, "role": role.value, "ttl_s": seconds(ttl, "--ttl")}
    made: dict[str, Any] = here.client.post("/tokens", body).body
    if output:
        from farshore import durable

        durable.write(output, made["token"].encode() + b"\n")
        made = {key: value for key, value in made.items() if key != "token"} | {"token_file": str(output)}
    here.out.show(made, lambda: f"written to {output}" if output else made["token"])


@app.command()
def revoke(
    ctx: typer.Context, token_id: Annotated[str, typer.Argument(metavar="ID", help="Id from 'token list'.")]
) -> None:
    """Revoke a token at once."""
    from farshore.cli.remote.client import segment

    here = shell(ctx)
    here.client.delete(f"/tokens/{segment(token_id)}")
    here.out.show({"token_id": token_id, "revoked": True}, lambda: f"token {token_id} is revoked")
