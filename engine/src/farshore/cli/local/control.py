"""``farshore up`` and ``down``: the control plane's process on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from farshore import __version__
from farshore.cli.context import Shell, shell
from farshore.cli.output import facts
from farshore.errors import Conflict, FarshoreError, Forbidden, NotFound, Retry, Unavailable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from farshore.control.home import Home

#: First start makes keys and databases on a slow machine; a start that takes longer than this hangs.
START_TIMEOUT_S: Final = 90.0
#: The server itself gives its connections 10 s.
STOP_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.1
_LOG_LINES: Final = 5

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Its directory; else FARSHORE_HOME, else /var/lib/farshore.", metavar="DIR"),
]


def up(
    ctx: typer.Context,
    home: HomeOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of API and web page; default 8443.", min=1, max=65535)] = None,
    node_port: Annotated[int | None, typer.Option(help="Port for nodes; default 8444.", min=1, max=65535)] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Another name or address by which it is reached, for its certificate; repeatable."),
    ] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, and log to this terminal.")] = False,
    recover_from: Annotated[
        str | None,
        typer.Option(
            "--recover-from",
            help="Follow a lost control plane: a site's pool as this machine sees it, or a bundle in a file, as"
            " 'farshore node bundle' writes it. The home must be empty.",
            metavar="PATH",
        ),
    ] = None,
    recovery_key: Annotated[
        Path | None, typer.Option("--recovery-key", help="The key that opens site bundles.", metavar="FILE")
    ] = None,
    accept_stale: Annotated[
        bool,
        typer.Option("--accept-stale", help="Go on although the bundle is older than what the site's manifests tell."),
    ] = False,
) -> None:
    """Start the control plane, making what is missing; running already, it changes nothing."""
    from farshore.control import home as homes

    here = shell(ctx)
    path = homes.resolve(home)
    chosen = {"host": host, "port": port, "node_port": node_port}
    taken: dict[str, Any] = {}
    if recover_from is not None:
        taken = _take_over(here, path, recover_from, recovery_key, accept_stale=accept_stale)
    running = _running(path)
    if running and (pid := running.running_pid()):
        _same(running, chosen)
        _same_names(running, name or [])
        _wait_healthy(running, lambda: running.running_pid() is None)
        found = _document(running, pid, changed=False)
        here.out.show(found, lambda: _greeting(found))
        return
    _make_home(path)
    if name:
        homes.initialise(path, names=list(dict.fromkeys([*(running.names if running else ()), *name])))
    argv = [sys.executable, "-m", "farshore.control.server", "--home", str(path)]
    for option, value in chosen.items():
        if value is not None:
            argv += [f"--{option.replace('_', '-')}", str(value)]
    if foreground:
        sys.stdout.flush()
        os.execv(sys.executable, argv)  # noqa: S606 - the same program, so that a service manager sees one process
    here.out.say(f"starting the control plane in {path}")
    process = _spawn(argv, path)
    started, pid = _await_start(process, path)
    found = _document(started, pid, changed=pid == process.pid) | taken
    here.out.show(found, lambda: _greeting(found))


def _take_over(here: Shell, path: Path, source: str, key_file: Path | None, *, accept_stale: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from farshore.cli.local import recover

    outcome = recover.take_over(path, source, key_file, accept_stale=accept_stale)
    for warning in outcome.warnings:
        here.out.warn(warning)
    here.out.say(
        f"took over installation {outcome.catalog_id} from {outcome.bundle}, written {outcome.written_at}:"
        f" {len(outcome.plans)} plans, generation {outcome.generation}"
    )
    here.out.say(
        "nodes of the sites that are left: let their control_url lead here ('farshore node start' after the change);"
        " then 'farshore catalog check'"
    )
    return {"took_over": asdict(outcome)}


def _running(path: Path) -> Home | None:
    from farshore.control import home as homes

    try:
        return homes.load(path)
    except NotFound:
        return None
    except OSError as error:
        raise _closed(path, error) from error


def _closed(path: Path, error: OSError) -> Forbidden:
    return Forbidden(
        f"the home directory {path} cannot be used: {error.strerror}",
        code="home-closed",
        hint="Run as its owner, or choose another one with --home DIR.",
        path=str(path),
    )


def _make_home(path: Path) -> None:
    from farshore import durable

    try:
        durable.make_dir(path)
        (path / "control.log").touch(0o600)
    except OSError as error:
        raise _closed(path, error) from error


def _same(running: Home, chosen: dict[str, Any]) -> None:
    """Refuse to call it done when the running one listens elsewhere than was asked for.

    Raises:
        Conflict: naming the option.
    """
    for name, value in chosen.items():
        now = getattr(running, name)
        if value is not None and value != now:
            raise Conflict(
                f"the control plane runs with {name} {now}, not {value}",
                code="running-otherwise",
                field="--" + name.replace("_", "-"),
                hint="Stop it with 'farshore down' first.",
            )


def _same_names(running: Home, names: list[str]) -> None:
    """Refuse a name that the running one's certificate does not have.

    Raises:
        Conflict: naming the option.
    """
    for name in names:
        if name not in running.names:
            raise Conflict(
                f"the running control plane's certificate does not have the name {name}",
                code="running-otherwise",
                field="--name",
                hint="Stop it with 'farshore down' first.",
            )


def _spawn(argv: list[str], path: Path) -> subprocess.Popen[bytes]:
    """Start the server in a session of its own, so that closing the terminal does not stop it."""
    environ = {name: value for name, value in os.environ.items() if name != "FARSHORE_TOKEN"}
    with (path / "control.log").open("ab") as log:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=path,
            env=environ,
            umask=0o077,
        )


def _await_start(process: subprocess.Popen[bytes], path: Path) -> tuple[Home, int]:
    """Return the home and its server's process id once that answers.

    It is another process than ``process`` if somebody started one at the same time and was first.

    Raises:
        Unavailable: with the log's last lines, if it ended or hung.
    """
    from farshore.control import home as homes

    deadline = time.monotonic() + START_TIMEOUT_S
    log = path / "control.log"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            started = homes.load(path)
        except NotFound:
            time.sleep(_POLL_S)
            continue
        if started.running_pid() != process.pid:
            time.sleep(_POLL_S)
            continue
        _wait_healthy(started, lambda: process.poll() is not None, deadline)
        if process.poll() is None:
            return started, process.pid
    status = process.poll()
    if status == Conflict.exit_status and (other := _running(path)) and (pid := other.running_pid()):
        _wait_healthy(other, lambda: other.running_pid() is None, deadline)
        return other, pid
    if status is None:
        process.terminate()
    raise Unavailable(
        f"the control plane did not start ({'it hung' if status is None else f'exit status {status}'}): {_tail(log)}",
        code="start-failed",
        hint=f"The whole log is in {log}.",
        exit_code=status,
    )


def _wait_healthy(home: Home, gone: Callable[[], bool], deadline: float | None = None) -> None:
    """Return when the server answers with a certificate of this home's CA, or when ``gone()``.

    Raises:
        Unavailable: if it does neither in time.
    """
    from farshore.cli.remote.client import Client
    from farshore.cli.settings import Endpoint

    deadline = deadline or time.monotonic() + START_TIMEOUT_S
    while not gone():
        try:
            client = Client(Endpoint(home.local_url, None, home.ca, validate_certs=True, source=str(home.path)))
            client.health()
        except FarshoreError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            return


def _tail(log: Path) -> str:
    """Return the log's last lines as one."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return " | ".join(line.strip() for line in lines if line.strip()) or "the log is empty"


def _document(home: Home, pid: int, *, changed: bool) -> dict[str, Any]:
    return {
        "state": "running",
        "changed": changed,
        "version": __version__,
        "pid": pid,
        "url": home.url,
        "node_url": home.node_url,
        "home": str(home.path),
        "env_file": str(home.env),
        "ca_path": str(home.ca),
        "log": str(home.log),
        "recovery_key": str(home.recovery_key) if home.recovery_key.exists() else None,
    }


def _greeting(found: dict[str, Any]) -> list[RenderableType]:
    how = "is up" if found["changed"] else "is up already"
    key = (
        f"RECOVERY KEY: move {found['recovery_key']} away from this machine, to a place that outlives it. With it and a"
        " site's bundle a new control plane takes over when this one is lost; nobody can make it again."
    )
    return [
        f"Farshore control plane {found['version']} {how}",
        facts(
            (
                ("web page and API", found["url"]),
                ("nodes connect to", found["node_url"]),
                ("environment", f"{found['env_file']}   (set -a; . {found['env_file']}; set +a)"),
                ("CA certificate", found["ca_path"]),
                ("log", found["log"]),
                ("process", found["pid"]),
            )
        ),
        "The web page asks for a token: FARSHORE_TOKEN in the environment file is the first administrator's.",
        *([key] if found["recovery_key"] else []),
    ]


def down(ctx: typer.Context, home: HomeOption = None) -> None:
    """Stop the control plane. Running cycles of the nodes go on and report when it is back."""
    from farshore.control import home as homes

    here = shell(ctx)
    path = homes.resolve(home)
    running = _running(path)
    pid = running.running_pid() if running else None
    if running is None or pid is None:
        here.out.show({"state": "stopped", "changed": False}, lambda: f"no control plane runs in {path}")
        return
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise Forbidden(
            f"process {pid} belongs to another user", code="process-foreign", hint="Run as the user who started it."
        ) from error
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while running.running_pid() is not None:
        if time.monotonic() > deadline:
            raise Retry(
                f"process {pid} has not stopped within {STOP_TIMEOUT_S:.0f} s",
                code="still-stopping",
                hint=f"Look into {running.log}; 'kill -9 {pid}' is safe: all state is durable.",
            )
        time.sleep(_POLL_S)
    here.out.show({"state": "stopped", "changed": True, "pid": pid}, lambda: f"the control plane in {path} is stopped")


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands to ``app``."""
    app.command(rich_help_panel=panel)(up)
    app.command(rich_help_panel=panel)(down)
