"""``farshore``: assembles the commands and turns errors into one line and an exit status.

Nothing here imports the control plane, the engine or a database: ``farshore --help`` must be quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from farshore import __version__
from farshore.cli.context import Shell, shell
from farshore.cli.local import aws, control, doctor, evidence, linktest
from farshore.cli.local import node as local_node
from farshore.cli.output import Output, fail
from farshore.cli.remote import (
    catalog,
    checkpoint,
    link,
    machine,
    node,
    plan,
    preflight,
    recovery,
    rehearsal,
    run,
    site,
    status,
    token,
)
from farshore.errors import FarshoreError

LOCAL = "This machine"
LOOK = "Look"
ACT = "Protect and recover"

app = typer.Typer(
    name="farshore",
    help="Replicate virtual machines to another site, rehearse their recovery, and fail over.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON documents for programs on stdout.")] = False,
    url: Annotated[
        str | None, typer.Option("--url", help="Address of the control plane; else FARSHORE_URL.", metavar="URL")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the token; else FARSHORE_TOKEN.", metavar="FILE")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="CA of the control plane's certificate; else FARSHORE_CA_PATH.")
    ] = None,
) -> None:
    """Take the global options."""
    ctx.obj = Shell(Output(as_json=as_json), url, token_file, ca)


@app.command(rich_help_panel=LOCAL)
def version(ctx: typer.Context) -> None:
    """Print the version of this program."""
    shell(ctx).out.show({"version": __version__}, lambda: f"farshore {__version__}")


control.register(app, panel=LOCAL)
doctor.register(app, panel=LOCAL)
app.add_typer(evidence.app, name="evidence", rich_help_panel=LOOK)
status.register(app, panel=LOOK)
preflight.register(app, panel=LOOK)
node.register(local_node.app)
recovery.register(app, panel=ACT)
rehearsal.register(recovery.drill)
app.add_typer(site.app, name="site", rich_help_panel=LOOK)
app.add_typer(linktest.app, name="linktest", rich_help_panel=LOCAL)
app.add_typer(aws.app, name="aws", rich_help_panel=LOCAL)
app.add_typer(link.app, name="site-link", rich_help_panel=LOOK)
app.add_typer(local_node.app, name="node", rich_help_panel=LOOK)
app.add_typer(machine.app, name="machine", rich_help_panel=LOOK)
app.add_typer(plan.app, name="plan", rich_help_panel=ACT)
app.add_typer(checkpoint.app, name="checkpoint", rich_help_panel=ACT)
app.add_typer(catalog.app, name="catalog", rich_help_panel=LOOK)
app.add_typer(recovery.drill, name="drill", rich_help_panel=ACT)
app.add_typer(run.app, name="run", rich_help_panel=LOOK)
app.add_typer(token.app, name="token", rich_help_panel=LOOK)


def hoist(arguments: list[str]) -> list[str]:
    """Return ``arguments`` with ``--json`` in front: people write it at the end as often as at the start."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head = [argument for argument in arguments[:end] if argument != "--json"]
    return (["--json"] if len(head) < end else []) + head + arguments[end:]


def main(argv: list[str] | None = None) -> None:
    """Run the command line (``sys.argv`` unless given) and exit with the status of the error's class."""
    arguments = hoist(sys.argv[1:] if argv is None else argv)
    try:
        app(arguments, prog_name="farshore")
    except FarshoreError as error:
        sys.exit(fail(error, as_json=arguments[:1] == ["--json"]))
    except BrokenPipeError:
        # Whoever read our output (head, less) has gone; that is no error of ours.
        sys.stderr.close()
        sys.exit(141)


if __name__ == "__main__":
    main()
