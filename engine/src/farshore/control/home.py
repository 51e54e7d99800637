"""The home directory of a control plane: settings, keys, databases, and who runs in it.

Nothing here imports the web framework or the orchestrator, so that the command line stays quick.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, ValidationError

from farshore import durable
from farshore.control import sealing
from farshore.control.auth import ca as authorities
from farshore.control.auth import tokens
from farshore.errors import Conflict, Invalid, NotFound
from farshore.model.base import Model, Port

DEFAULT_HOME: Final = Path("/var/lib/farshore")
ADMIN_TOKEN: Final = "first-admin"  # noqa: S105 - a name
#: In a home that is being filled from a site's bundle; nothing starts there before it is gone.
UNFINISHED: Final = ".taking-over"
_RENEW_BEFORE: Final = timedelta(days=30)


class _Settings(Model):
    """What ``config.yml`` says."""

    host: str = "127.0.0.1"
    port: Port = 8443
    node_port: Port = 8444
    names: tuple[str, ...] = Field((), description="more names and addresses in the server certificate")


@dataclass(frozen=True, slots=True)
class Home:
    """A home directory with its settings."""

    path: Path
    host: str = "127.0.0.1"
    port: int = 8443
    node_port: int = 8444
    names: tuple[str, ...] = ()

    @property
    def config(self) -> Path:
        """Settings, YAML."""
        return self.path / "config.yml"

    @property
    def env(self) -> Path:
        """Address, token and authority for clients, as shell assignments; mode 0600."""
        return self.path / "farshore.env"

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        return self.path / "ca.pem"

    @property
    def secrets(self) -> Path:
        """Private keys; mode 0700."""
        return self.path / "secrets"

    @property
    def recovery_key(self) -> Path:
        """Where the recovery key is written once, for people to take it away."""
        return self.path / "recovery.key"

    @property
    def database(self) -> Path:
        """The records."""
        return self.path / "farshore.db"

    @property
    def dbos_database(self) -> Path:
        """The orchestrator's own records."""
        return self.path / "dbos.db"

    @property
    def pid_file(self) -> Path:
        """The process id of the server, for people; the lock is what counts."""
        return self.path / "control.pid"

    @property
    def log(self) -> Path:
        """The server's output when it runs detached."""
        return self.path / "control.log"

    @property
    def lock(self) -> Path:
        """Locked by the one server of this home for as long as it lives."""
        return self.path / "control.lock"

    @property
    def reports(self) -> Path:
        """Evidence of finished runs."""
        return self.path / "reports"

    @property
    def url(self) -> str:
        """Where people, modules and the command line go."""
        return f"https://{_in_url(self._reached_at())}:{self.port}"

    @property
    def local_url(self) -> str:
        """Where this machine itself reaches it, whatever its names resolve to."""
        return f"https://{_in_url('127.0.0.1' if self._reached_at() != self.host else self.host)}:{self.port}"

    @property
    def node_url(self) -> str:
        """Where nodes go."""
        return f"https://{_in_url(self._reached_at())}:{self.node_port}"

    def _reached_at(self) -> str:
        """Return the address it listens at, or its first name if that is every address of this machine."""
        if self.host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            return self.names[0] if self.names else socket.gethostname() or "localhost"
        return self.host

    def environment(self) -> dict[str, str]:
        """Return the assignments in ``farshore.env``."""
        try:
            lines = self.env.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    def running_pid(self) -> int | None:
        """Return the process id of the server that holds this home, None if none does."""
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            return int(text) if text.isdigit() else None
        else:
            return None
        finally:
            os.close(descriptor)

    def authority(self) -> authorities.Authority:
        """Return the certificate authority."""
        return authorities.Authority.load(
            (self.secrets / "ca.pem").read_bytes(), (self.secrets / "ca.key").read_bytes()
        )

    def signing_key(self, name: str) -> Ed25519PrivateKey:
        """Return the Ed25519 key ``grant`` or ``evidence``."""
        key = serialization.load_pem_private_key((self.secrets / f"{name}.key").read_bytes(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise Invalid(f"{name}.key is not an Ed25519 key", code="key-invalid", path=str(self.secrets))
        return key


def resolve(path: Path | str | None) -> Path:
    """Return the home that is meant: the argument, else ``FARSHORE_HOME``, else the default."""
    return Path(path or os.environ.get("FARSHORE_HOME") or DEFAULT_HOME).absolute()


def load(path: Path) -> Home:
    """Return the home at ``path``.

    Raises:
        NotFound: nothing was initialised there.
        Invalid: its settings are wrong; the message names the key.
    """
    config = path / "config.yml"
    try:
        data: Any = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        settings = _Settings.model_validate(data)
    except FileNotFoundError as error:
        raise NotFound(
            f"{path} holds no control plane", code="home-missing", hint="Start one: `farshore up --home DIR`."
        ) from error
    except (yaml.YAMLError, ValidationError) as error:
        raise Invalid(f"{config} cannot be used: {error}", code="config-invalid") from error
    return Home(path, settings.host, settings.port, settings.node_port, settings.names)


def initialise(
    path: Path,
    *,
    host: str | None = None,
    port: int | None = None,
    node_port: int | None = None,
    names: Sequence[str] | None = None,
) -> Home:
    """Make whatever of a home is missing and return it. Keys, catalogue and token are never made twice.

    ``None`` means: as ``config.yml`` says, else the default.

    Raises:
        Conflict: the home is being filled from a bundle, and that was broken off.
    """
    from farshore.control.store import Store, settings
    from farshore.control.store.records import Token

    if (path / UNFINISHED).exists():
        raise Conflict(
            f"a takeover into {path} did not come to its end",
            code="takeover-unfinished",
            hint="Run the same `farshore up --recover-from ...` again.",
        )
    durable.make_dir(path)
    known = load(path) if (path / "config.yml").exists() else Home(path)
    home = Home(
        path,
        host or known.host,
        port or known.port,
        node_port or known.node_port,
        tuple(names) if names is not None else known.names,
    )
    for folder in (home.secrets, home.reports):
        durable.make_dir(folder)
    chosen = {"host": home.host, "port": home.port, "node_port": home.node_port, "names": list(home.names)}
    text = "# Settings of this control plane; read when it starts.\n" + yaml.safe_dump(chosen, sort_keys=False)
    if home != known or not home.config.exists():
        durable.write(home.config, text.encode(), 0o640)

    store = Store(home.database)
    try:
        home.database.touch(0o600)
        store.migrate()
        with store.write() as tx:
            settings.ensure_identity(tx)
        with store.read() as session:
            catalog_id = settings.catalog_id(session)
        _ensure_keys(home, catalog_id)
        environment = home.environment()
        token = environment.get("FARSHORE_TOKEN")
        if not token:
            issued = tokens.issue(tokens.API)
            now = datetime.now(UTC).timestamp()
            with store.write() as tx:
                for old in tx.query(Token).filter_by(name=ADMIN_TOKEN, revoked_at=None):
                    old.revoked_at = now
                tx.add(
                    Token(
                        token_id=issued.token_id,
                        name=ADMIN_TOKEN,
                        role="admin",
                        digest=issued.digest,
                        created_at=now,
                    )
                )
            token = issued.text
        wanted = {"FARSHORE_URL": home.url, "FARSHORE_TOKEN": token, "FARSHORE_CA_PATH": str(home.ca)}
        if environment != wanted:
            durable.write(home.env, "".join(f"{key}={value}\n" for key, value in wanted.items()).encode(), 0o600)
    finally:
        store.close()
    return home


def _ensure_keys(home: Home, catalog_id: str) -> None:
    """Make the authority, the signing keys and the server's certificate.

    Every private key is durable before the certificate that names it; what is found is kept.
    """
    authority_key, certificate = home.secrets / "ca.key", home.secrets / "ca.pem"
    if not certificate.exists():
        # A key alone is what a crash left before anything was signed with it; it is replaced.
        authority = authorities.Authority.create(catalog_id)
        durable.write(authority_key, authority.key_pem(), 0o600)
        durable.write(certificate, authority.pem.encode(), 0o644)
    if not home.ca.exists() or home.ca.read_bytes() != certificate.read_bytes():
        durable.write(home.ca, certificate.read_bytes(), 0o644)
    for name in ("grant", "evidence"):
        private, public = home.secrets / f"{name}.key", home.secrets / f"{name}.pem"
        if not private.exists():
            durable.write(
                private,
                Ed25519PrivateKey.generate().private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                ),
                0o600,
            )
        if not public.exists():
            durable.write(
                public,
                home.signing_key(name)
                .public_key()
                .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
                0o644,
            )
    sealed_to = home.secrets / "recovery.pub"
    if not sealed_to.exists():
        # The half for people first: a crash in between makes another pair, and no bundle knows of the first.
        key = sealing.make_key(catalog_id, home.signing_key("evidence").public_key())
        durable.write(home.recovery_key, key.text.encode(), 0o600)
        durable.write(sealed_to, sealing.public_text(key.public).encode(), 0o644)
    _ensure_server_certificate(home)


def _ensure_server_certificate(home: Home) -> None:
    key_path, certificate_path = home.secrets / "server.key", home.secrets / "server.pem"
    names = sorted({"127.0.0.1", "::1", "localhost", socket.gethostname() or "localhost", home.host, *home.names})
    names = [name for name in names if name not in {"0.0.0.0", "::"}]  # noqa: S104 - left out, not bound
    if key_path.exists() and certificate_path.exists():
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        entries = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = sorted(
            [
                *entries.get_values_for_type(x509.DNSName),
                *(str(address) for address in entries.get_values_for_type(x509.IPAddress)),
            ]
        )
        if found == names and certificate.not_valid_after_utc - datetime.now(UTC) > _RENEW_BEFORE:
            return
    key = authorities.new_key()
    issued = home.authority().sign_server(key, names)
    certificate_path.unlink(missing_ok=True)  # a new key beside an old certificate would not start
    durable.write(key_path, authorities.key_pem(key), 0o600)
    durable.write(certificate_path, issued.pem.encode(), 0o644)


def _in_url(host: str) -> str:
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
