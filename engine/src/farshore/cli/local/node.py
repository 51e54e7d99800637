"""``farshore node enrol|run|start|stop|status``: the node on this machine."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farshore.cli.context import shell
from farshore.cli.output import facts
from farshore.errors import Invalid

if TYPE_CHECKING:
    from farshore.node.config import NodeConfig

app = typer.Typer(no_args_is_help=True, help="Nodes: those of the control plane, and the one on this machine.")

ConfigPath = Annotated[Path, typer.Option("--config", "-c", help="The node's settings.", metavar="FILE")]
_DEFAULT = Path("/etc/farshore/node.yml")
PANEL = "The node on this machine"


def _load(path: Path) -> NodeConfig:
    from farshore.node import config

    return config.load(path)


def _token(option: str | None, file: Path | None) -> str:
    if option:
        return option
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise Invalid(f"cannot read the token file: {error}", field="token_file") from error
    token = os.environ.get("FARSHORE_ENROL_TOKEN", "").strip()
    if not token:
        raise Invalid(
            "there is no enrolment token",
            code="token-missing",
            field="token",
            hint="Give --token-file FILE, or FARSHORE_ENROL_TOKEN in the environment.",
        )
    return token


@app.command(rich_help_panel=PANEL)
def enrol(
    ctx: typer.Context,
    config: ConfigPath = _DEFAULT,
    token: Annotated[str | None, typer.Option(help="One-time token; others see it in the process list.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the one-time token.", metavar="FILE")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="The control plane's CA certificate.", metavar="FILE")] = None,
    ca_sha256: Annotated[str | None, typer.Option(help="Its SHA-256, as the token came with.", metavar="HEX")] = None,
) -> None:
    """Make this machine a node: make a key, trade the token for a certificate. Changes nothing when it is one."""
    from farshore.node import enrol as enrolment
    from farshore.node.identity import of

    settings = _load(config)
    now = datetime.now(UTC)
    identity = of(settings)
    changed = not identity.is_enrolled(now) and enrolment.enrol(
        settings, _token(token, token_file), ca_file=ca_file, ca_sha256=ca_sha256, now=now
    )
    certificate = identity.certificate()
    until = certificate.not_valid_after_utc.isoformat() if certificate else None
    document = {"changed": changed, "node": settings.name, "site": settings.site, "certificate_not_after": until}
    done = "is enrolled" if changed else "was enrolled already"
    shell(ctx).out.show(document, lambda: f"Node {settings.name} of site {settings.site} {done}; valid until {until}.")


@app.command(rich_help_panel=PANEL)
def bundle(
    ctx: typer.Context,
    config: ConfigPath = _DEFAULT,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default is the bundle's own name here.")
    ] = None,
    catalog: Annotated[
        str, typer.Option(help="Of which installation, where the site holds several.", metavar="ID")
    ] = "",
) -> None:
    """Copy the newest site bundle out of this node's pool, for 'farshore up --recover-from'. Needs no control plane."""
    from farshore import durable
    from farshore.node import stored
    from farshore.platforms import registry

    settings = _load(config)
    key, data = stored.newest_bundle(registry.open_platform(settings.platform).manifests, catalog)
    path = output or Path(f"farshore-bundle-{'-'.join(key.split('/')[1:])}")
    try:
        durable.write(path.absolute(), data, 0o600)
    except OSError as error:
        raise Invalid(f"{path} cannot be written: {error.strerror}", field="--output") from error
    document = {"changed": True, "file": str(path), "key": key, "site": settings.site, "size_bytes": len(data)}
    shell(ctx).out.show(
        document,
        lambda: f"{path} holds {key} of site {settings.site}; 'farshore up --recover-from {path}' takes over with it",
    )


@app.command(rich_help_panel=PANEL)
def run(config: ConfigPath = _DEFAULT) -> None:
    """Run the node in the foreground until SIGTERM or Ctrl-C."""
    from farshore.node import daemon, log

    settings = _load(config)
    log.configure(settings.log_level)
    raise typer.Exit(daemon.run(settings))


@app.command(rich_help_panel=PANEL)
def start(ctx: typer.Context, config: ConfigPath = _DEFAULT) -> None:
    """Start the node in the background; changes nothing when it runs."""
    from farshore.node import process

    settings = _load(config)
    pid = process.running_pid(settings.lock_path, settings.pid_path)
    changed = pid is None
    if pid is None:
        argv = process.command(config.resolve())
        pid = process.start(argv, settings.lock_path, settings.pid_path, settings.log_path)
    document = {"changed": changed, "pid": pid, "log": str(settings.log_path)}
    done = "runs now" if changed else "ran already"
    shell(ctx).out.show(document, lambda: f"Node {settings.name} {done} as process {pid}; log {settings.log_path}.")


@app.command(rich_help_panel=PANEL)
def stop(
    ctx: typer.Context,
    config: ConfigPath = _DEFAULT,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Give up after this many seconds.", min=1)] = 60.0,
) -> None:
    """Stop the node; running replications keep what they have."""
    from farshore.node import process

    settings = _load(config)
    changed = process.stop(settings.lock_path, settings.pid_path, timeout_s)
    done = "stopped" if changed else "did not run"
    shell(ctx).out.show({"changed": changed}, lambda: f"Node {settings.name} {done}.")


@app.command(rich_help_panel=PANEL)
def status(ctx: typer.Context, config: ConfigPath = _DEFAULT) -> None:
    """Show the node on this machine: does it run, is it enrolled, what does it owe. Exits with 3 if it does not run."""
    from farshore.node import process
    from farshore.node.identity import of

    settings = _load(config)
    identity = of(settings)
    certificate = identity.certificate()
    pid = process.running_pid(settings.lock_path, settings.pid_path)
    tasks = settings.state_dir / "tasks"
    document = {
        "node": settings.name,
        "site": settings.site,
        "running": pid is not None,
        "pid": pid,
        "enrolled": identity.is_enrolled(datetime.now(UTC)),
        "certificate_not_after": certificate.not_valid_after_utc.isoformat() if certificate else None,
        "generation": identity.catalog().generation if identity.catalog_path.exists() else None,
        "tasks": len(list(tasks.glob("*.task.json"))),
        "unsent_reports": len(list(tasks.glob("*.report.json"))),
        "log": str(settings.log_path),
    }
    shell(ctx).out.show(document, lambda: facts(document.items()))
    if pid is None:
        raise typer.Exit(3)
