"""``farshore doctor``: looks at everything that must be right, and says what to do about the rest."""

from __future__ import annotations

import re
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from farshore import __version__
from farshore.cli import formats
from farshore.cli.context import Shell, shell
from farshore.cli.local.control import HomeOption
from farshore.cli.output import grid
from farshore.errors import FarshoreError, NotFound
from farshore.units import GIB, format_size

if TYPE_CHECKING:
    from farshore.control.home import Home

#: Databases and reports of years; below this an SQLite checkpoint could fail in the middle of a failover.
_ROOM_BYTES: Final = 1 * GIB
_SKEW_S: Final = 2.0
_CERTIFICATE_SOON: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check found. ``subject`` is what it looked at."""

    subject: str
    state: Literal["ok", "warning", "error"]
    message: str
    remedy: str = ""


def this_program() -> Iterator[Verdict]:
    """Check the interpreter and the packages."""
    import importlib.metadata

    version = ".".join(map(str, sys.version_info[:3]))
    yield Verdict("python", "ok", f"{version} at {sys.executable}")
    missing = []
    for requirement in importlib.metadata.requires("farshore") or []:
        name, _, marker = requirement.partition(";")
        if "extra" in marker:
            continue
        distribution = re.split(r"[^A-Za-z0-9._-]", name.strip(), maxsplit=1)[0]
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            missing.append(distribution)
    if missing:
        yield Verdict(
            "packages",
            "error",
            "missing: " + ", ".join(missing),
            f"{sys.executable} -m pip install --force-reinstall farshore",
        )
    else:
        yield Verdict("packages", "ok", "all are installed")


def _mode(path: Path, allowed: int) -> str | None:
    """Return the path's mode if it lets more people in than ``allowed``."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return f"{mode:04o}" if mode & ~allowed else None


def home_files(home: Home) -> Iterator[Verdict]:
    """Check the home's permissions and room."""
    loose = []
    for path, allowed in [
        (home.secrets, 0o700),
        (home.env, 0o600),
        (home.database, 0o600),
        (home.dbos_database, 0o600),
        *((key, 0o600) for key in sorted(home.secrets.glob("*.key"))),
    ]:
        if path.exists() and (mode := _mode(path, allowed)):
            loose.append((path, mode, allowed))
    for path, mode, allowed in loose:
        yield Verdict(f"secrets {path.name}", "error", f"{path} has mode {mode}", f"chmod {allowed:04o} {path}")
    if not loose:
        yield Verdict("secrets", "ok", f"closed to others in {home.path}")
    free = shutil.disk_usage(home.path).free
    if free < _ROOM_BYTES:
        yield Verdict(
            "room",
            "warning",
            f"{format_size(free)} free in {home.path}",
            f"Make at least {format_size(_ROOM_BYTES)} free.",
        )
    else:
        yield Verdict("room", "ok", f"{format_size(free)} free in {home.path}")


def authority(home: Home) -> Iterator[Verdict]:
    """Check that the CA is a CA and is valid now."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(home.ca.read_bytes())
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        yield Verdict(
            "CA", "error", f"{home.ca} cannot be used: {error}", "Restore it from a backup of the home directory."
        )
        return
    now = datetime.now(UTC)
    until = certificate.not_valid_after_utc
    if not is_ca:
        yield Verdict("CA", "error", f"{home.ca} is not a CA", "Restore it from a backup of the home directory.")
    elif not certificate.not_valid_before_utc <= now <= until:
        yield Verdict(
            "CA", "error", f"valid from {certificate.not_valid_before_utc} until {until}", "Set this machine's clock."
        )
    else:
        yield Verdict("CA", "ok", f"valid until {until:%Y-%m-%d}")


def ports(home: Home) -> Iterator[Verdict]:
    """Check that the ports are the control plane's, or free for it."""
    if pid := home.running_pid():
        yield Verdict("ports", "ok", f"{home.port} and {home.node_port} belong to the control plane (process {pid})")
        return
    for number in (home.port, home.node_port):
        family = socket.AF_INET6 if ":" in home.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As the server does: what lingers of closed connections is no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((home.host, number))
            except OSError as error:
                yield Verdict(
                    f"port {number}",
                    "error",
                    f"{home.host}:{number} cannot be used: {error.strerror}",
                    f"'ss -ltnp sport = :{number}' shows who has it; or choose another with 'farshore up --port'.",
                )
            else:
                yield Verdict(f"port {number}", "ok", "free")
    yield Verdict("process", "warning", "the control plane does not run", "Start it: 'farshore up'.")


def control_plane(here: Shell) -> Iterator[Verdict]:
    """Check that the control plane answers, is of this version, knows our token and has our time."""
    before = time.time()
    reply = here.client.health()
    url = here.endpoint.url
    yield Verdict("control plane", "ok", f"{url} answers (address from {here.endpoint.source})")
    if reply["version"] != __version__:
        yield Verdict(
            "version",
            "warning",
            f"it is {reply['version']}, this is {__version__}",
            "Install the same version on both sides.",
        )
    if (stamp := here.client.date) is not None:
        # The header has whole seconds: half a second is taken as its middle.
        skew = parsedate_to_datetime(stamp).timestamp() + 0.5 - (before + time.time()) / 2
        if abs(skew) > _SKEW_S:
            yield Verdict(
                "clock", "warning", f"it differs by {skew:+.0f} s", "Let both machines keep time by NTP (chrony)."
            )
        else:
            yield Verdict("clock", "ok", "agrees with the control plane's")
    if not here.endpoint.validate_certs:
        yield Verdict(
            "TLS", "warning", "certificates are not verified", "Unset FARSHORE_VALIDATE_CERTS; use FARSHORE_CA_PATH."
        )


def nodes(here: Shell) -> Iterator[Verdict]:
    """Check that every site has a node, that nodes are online and their certificates last."""
    found = here.client.items("/nodes")
    yield Verdict("token", "ok", "is accepted")
    for node in found:
        name = f"node {node['name']}"
        if node["state"] == "online":
            yield Verdict(name, "ok", f"online at {node['site']}, seen {formats.ago(node['last_seen'])}")
        elif node["state"] == "new":
            yield Verdict(name, "warning", "has not enrolled", f"farshore node token {node['name']}")
        else:
            yield Verdict(
                name,
                "error",
                f"is {node['state']}, seen {formats.ago(node['last_seen'])}",
                "There: 'farshore node status', then 'farshore node start'.",
            )
        until = node.get("certificate_not_after")
        if until and formats.parse_time(until) - datetime.now(UTC) < _CERTIFICATE_SOON:
            yield Verdict(
                name, "warning", f"its certificate ends {formats.clock(until)}", "Restart it: it renews when it runs."
            )


def sites(here: Shell, *, ask: bool) -> Iterator[Verdict]:
    """Check every site; with ``ask`` by its own node."""
    from farshore.cli.remote.client import segment

    found = here.client.items("/sites")
    if not found:
        yield Verdict("sites", "warning", "there is none", "farshore site add NAME --platform kvm")
    for site in found:
        name = f"site {site['name']}"
        if site["state"] == "no-node":
            remedy = f"farshore node add NODE --site {site['name']} --data-address HOST:PORT"
            yield Verdict(name, "warning", "has no node", remedy)
        if site["state"] != "online" or not ask:
            continue
        try:
            findings = here.client.post(f"/sites/{segment(site['name'])}:check").body["findings"]
        except FarshoreError as error:
            yield Verdict(name, "error", error.message, error.hint)
            continue
        for finding in findings:
            level: Literal["ok", "warning", "error"] = "ok" if finding["severity"] == "info" else finding["severity"]
            subject = f"{name} {finding.get('subject') or ''}".strip()
            yield Verdict(subject, level, finding["message"], finding.get("remedy", ""))
        if not findings:
            yield Verdict(name, "ok", "its node has no finding")


def plans(here: Shell) -> Iterator[Verdict]:
    """Check that active plans keep their RPO and have no error."""
    for plan in here.client.items("/plans"):
        name = f"plan {plan['name']}"
        conditions = [formats.condition_name(condition) for condition in plan["conditions"]]
        error = plan["last_error"]
        if error:
            text = error.get("detail") or error.get("message") if isinstance(error, dict) else error
            hint = error.get("hint") or "" if isinstance(error, dict) else ""
            yield Verdict(name, "error", str(text), hint or f"farshore plan show {plan['name']}")
        elif conditions:
            yield Verdict(name, "warning", ", ".join(conditions), f"farshore plan show {plan['name']}")
        elif plan["activity"] == "active":
            yield Verdict(name, "ok", f"{plan['state']}, RPO {formats.duration(plan['rpo_s'])}")


def examine(here: Shell, home_option: Path | None, *, ask_sites: bool) -> Iterator[Verdict]:
    """Yield every verdict. A check that cannot be made is a verdict, and the others go on."""
    from farshore.control import home as homes

    yield from this_program()
    path = homes.resolve(home_option)
    try:
        home = homes.load(path)
        yield from home_files(home)
        yield from authority(home)
        yield from ports(home)
    except NotFound:
        # Not every machine with this program is the control plane's.
        yield Verdict("home", "ok", f"{path} holds no control plane; looking at {here.endpoint.url}")
    except PermissionError as error:
        yield Verdict(
            "home", "warning", f"{error.filename} is closed to this user", "Run as its owner to have it checked."
        )
    except FarshoreError as error:
        yield Verdict("home", "error", error.message, error.hint)
    for name, check in (
        ("control plane", control_plane),
        ("nodes", nodes),
        ("sites", lambda shell: sites(shell, ask=ask_sites)),
        ("plans", plans),
    ):
        try:
            yield from check(here)
        except FarshoreError as error:
            yield Verdict(name, "error", error.message, error.hint)
            # Without an answer or a right to ask, the rest would say the same again.
            return


def doctor(
    ctx: typer.Context,
    home: HomeOption = None,
    ask_sites: Annotated[
        bool, typer.Option("--sites/--no-sites", help="Let the nodes check their sites; takes some seconds.")
    ] = True,
) -> None:
    """Check this machine, the control plane, nodes and sites; exit status 1 if there is an error."""
    here = shell(ctx)
    verdicts = list(examine(here, home, ask_sites=ask_sites))
    document: dict[str, Any] = {
        "items": [asdict(verdict) for verdict in verdicts],
        "errors": sum(verdict.state == "error" for verdict in verdicts),
        "warnings": sum(verdict.state == "warning" for verdict in verdicts),
    }
    here.out.show(
        document,
        lambda: [
            grid(
                ("", "checked", "found", "remedy"),
                ((formats.state(v.state), v.subject, v.message, v.remedy) for v in verdicts),
            ),
            f"\nerrors: {document['errors']}, warnings: {document['warnings']}",
        ],
    )
    if document["errors"]:
        raise typer.Exit(1)


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to ``app``."""
    app.command(rich_help_panel=panel)(doctor)
