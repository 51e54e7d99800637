"""Where the control plane is and how to be let in: options, then the environment, then the file that ``up`` wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from farshore.errors import Forbidden, Invalid, NotFound, Unauthenticated

DEFAULT_HOME: Final = Path("/var/lib/farshore")
DEFAULT_URL: Final = "https://127.0.0.1:8443"
ENV_FILE: Final = "farshore.env"
_FALSE: Final = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A control plane's address and what is needed to speak with it.

    Attributes:
        url: ``https://host:port``, no path.
        token: bearer token; None where none was found.
        ca_path: file of the CA that signed the server's certificate; None for the system's own list.
        validate_certs: False only where the user said so.
        source: where the address was found, for people.
    """

    url: str
    token: str | None
    ca_path: Path | None
    validate_certs: bool
    source: str

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, from {self.source})"


def home_dir(option: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the control plane's home directory: option, ``FARSHORE_HOME``, or the default."""
    return option or Path(environ.get("FARSHORE_HOME") or DEFAULT_HOME)


def read_env_file(path: Path) -> dict[str, str]:
    """Return the variables in ``path`` (``NAME=value`` lines, as ``farshore up`` and shells write them).

    A file that does not exist has none.

    Raises:
        Forbidden: if the file may not be read by this user.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as error:
        # Only a file that is surely there is worth a stop: a closed directory may well hold none.
        raise Forbidden(
            f"{path} may not be read by this user",
            code="env-file-closed",
            hint="Run as the user who ran 'farshore up', or set FARSHORE_URL and --token-file.",
            path=str(path),
        ) from error
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            found[name.strip()] = value.strip().strip("\"'")
    return found


def read_token(path: Path) -> str:
    """Return the token in the file ``path``.

    Raises:
        NotFound: if there is no such file.
        Invalid: if it is empty.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise NotFound(
            f"the token file {path} cannot be read: {error.strerror}",
            field="--token-file",
            hint="Name a readable file.",
        ) from error
    if not token:
        raise Invalid(f"the token file {path} is empty", field="--token-file", hint="Write the token into it.")
    return token


def resolve(
    url: str | None = None,
    token_file: Path | None = None,
    ca_path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Endpoint:
    """Return the control plane to speak with.

    A token from the env file goes only to the address in the same file: naming another address never sends it there.

    Raises:
        Invalid, NotFound, Forbidden: if a setting is wrong.
    """
    given_url = url or environ.get("FARSHORE_URL")
    env_file = home_dir(environ=environ) / ENV_FILE
    needs_file = given_url is None or not (token_file or environ.get("FARSHORE_TOKEN"))
    stored = read_env_file(env_file) if needs_file else {}
    chosen = (given_url or stored.get("FARSHORE_URL") or DEFAULT_URL).rstrip("/")
    if chosen != stored.get("FARSHORE_URL", "").rstrip("/"):
        stored = {}
    parts = urlsplit(chosen)
    if parts.scheme != "https" or not parts.hostname or parts.path:
        raise Invalid(
            f"{chosen!r} is no address of a control plane",
            field="--url" if url else "FARSHORE_URL",
            hint="Write it as https://HOST:8443; plain http would show the token to the network.",
        )
    if url:
        source = "--url"
    elif given_url:
        source = "FARSHORE_URL"
    else:
        source = str(env_file) if stored else "the default"
    token = read_token(token_file) if token_file else environ.get("FARSHORE_TOKEN") or stored.get("FARSHORE_TOKEN")
    named_ca = ca_path or environ.get("FARSHORE_CA_PATH") or stored.get("FARSHORE_CA_PATH")
    ca = Path(named_ca) if named_ca else None
    validate = environ.get("FARSHORE_VALIDATE_CERTS", stored.get("FARSHORE_VALIDATE_CERTS", "true"))
    if ca and not ca.is_file():
        raise NotFound(
            f"the CA file {ca} does not exist",
            field="--ca" if ca_path else "FARSHORE_CA_PATH",
            hint="Copy ca.pem from the control plane's home directory.",
        )
    return Endpoint(chosen, token or None, ca, validate.strip().lower() not in _FALSE, source)


def require_token(endpoint: Endpoint) -> str:
    """Return the endpoint's token.

    Raises:
        Unauthenticated: if there is none.
    """
    if endpoint.token:
        return endpoint.token
    raise Unauthenticated(
        f"no token for {endpoint.url} was found",
        hint="Set FARSHORE_TOKEN or --token-file, or load the farshore.env that 'farshore up' wrote.",
    )
