"""``farshore aws``: what an account in AWS has to allow. Asks nobody; boto3 is not needed."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from farshore.cli.context import shell

app = typer.Typer(help="AWS: the permissions that a site there needs.", no_args_is_help=True)


@app.callback()
def aws() -> None:
    """Keep ``policy`` a command of its own."""


@app.command()
def policy(
    ctx: typer.Context,
    region: Annotated[str, typer.Option("--region", help="Of the site.", metavar="REGION")],
    bucket: Annotated[str, typer.Option("--bucket", help="Of the site's manifests.", metavar="NAME")],
    prefix: Annotated[str, typer.Option("--prefix", help="Before the keys in the bucket.")] = "farshore",
    account: Annotated[str, typer.Option("--account", help="Number of the account; any, if not named.")] = "*",
    partition: Annotated[str, typer.Option("--partition", help="aws, aws-cn or aws-us-gov.")] = "aws",
    kms_key: Annotated[str, typer.Option("--kms-key", help="ARN of the key that snapshots are encrypted with.")] = "",
    instance_role: Annotated[
        str, typer.Option("--instance-role", help="ARN of the role of the instance profile of recovered machines.")
    ] = "",
    run_command: Annotated[
        bool, typer.Option("--run-command", help="With Run Command in machines of the site and at a drill's helper.")
    ] = False,
    guard: Annotated[
        bool, typer.Option("--guard", help="Instead: a policy for everybody else, who then starts no fenced machine.")
    ] = False,
) -> None:
    """Print the IAM policy of the role of a site's nodes: what their calls need, and no more."""
    from farshore.platforms.aws import policy as policies

    scope = policies.Scope(
        region=region,
        bucket=bucket,
        prefix=prefix,
        account=account,
        partition=partition,
        kms_key=kms_key,
        instance_role=instance_role,
        run_command=run_command,
    )
    document = policies.guard() if guard else policies.document(scope)
    shell(ctx).out.show(document, lambda: json.dumps(document, indent=2))
