"""The REST client: one connection pool, verified TLS, problems as typed errors.

A call is repeated only where that is safe: reads, and writes that carry an ``Idempotency-Key`` (all of ours do), which
the control plane answers once however often they arrive.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import requests

from farshore import __version__
from farshore.cli.settings import Endpoint, require_token
from farshore.errors import (
    Conflict,
    FarshoreError,
    Fenced,
    Forbidden,
    Invalid,
    NoSpace,
    NotFound,
    Permanent,
    Retry,
    Unauthenticated,
    Unavailable,
)

API: Final = "/api/v1"
#: Connect, then silence between two bytes. ``site check`` waits up to 60 s for a node, hence more than that.
TIMEOUT_S: Final = (5.0, 90.0)
#: Pauses before the second and later tries of a repeatable call.
PAUSES_S: Final = (0.2, 0.6, 1.5)

_BY_STATUS: Final[dict[int, type[FarshoreError]]] = {
    400: Invalid,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: Invalid,
    422: Invalid,
    429: Retry,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
    507: NoSpace,
}
_PASSING: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. ``changed`` is None where the server did not say."""

    status: int
    body: Any
    changed: bool | None


def problem(status: int, body: Any, url: str) -> FarshoreError:
    """Return the error that a ``problem+json`` answer tells of.

    The HTTP status chooses the class; ``code``, ``field``, ``hint`` and ``evidence`` are taken as they are.
    """
    data: dict[str, Any] = body if isinstance(body, dict) else {}
    code = data.get("code")
    cls = _BY_STATUS.get(status, FarshoreError if status >= 500 else Permanent)
    if code == Fenced.code:
        cls = Fenced
    evidence = data.get("evidence")
    known = {str(k): v for k, v in evidence.items()} if isinstance(evidence, dict) else {}
    for reserved in ("code", "hint", "field", "message", "self"):
        known.pop(reserved, None)
    return cls(
        str(data.get("detail") or data.get("title") or f"{url} answered with status {status}"),
        code=str(code) if code else None,
        hint=str(data.get("hint") or ""),
        field=data.get("field") if isinstance(data.get("field"), str) else None,
        **known,
    )


def segment(name: str) -> str:
    """Return ``name`` as one segment of a path; a colon inside must not look like a verb."""
    return quote(name, safe="")


class Client:
    """Speaks ``/api/v1`` of one control plane.

    Args:
        endpoint: where, and with which token and CA.
        pause: called with seconds between two tries.
    """

    def __init__(self, endpoint: Endpoint, *, pause: Callable[[float], None] = time.sleep) -> None:
        self.endpoint = endpoint
        self._pause = pause
        #: The ``Date`` header of the last answer: the control plane's clock.
        self.date: str | None = None
        self._session = requests.Session()
        # Neither ~/.netrc nor a proxy from the environment gets between a recovery tool and its control plane.
        self._session.trust_env = False
        self._session.verify = (
            (str(endpoint.ca_path) if endpoint.ca_path else True) if endpoint.validate_certs else False
        )
        self._session.headers["User-Agent"] = f"farshore/{__version__}"
        self._session.headers["Accept"] = "application/json"

    def get(self, path: str, **query: Any) -> Any:
        """Return the document at ``path``; ``query`` values of None are left out."""
        return self.call("GET", path, query=query).body

    def items(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """Return the items of the list at ``path``."""
        found: list[dict[str, Any]] = self.get(path, **query)["items"]
        return found

    def put(self, path: str, body: Any) -> Reply:
        """Create or replace what ``path`` names."""
        return self.call("PUT", path, body=body)

    def patch(self, path: str, body: Any) -> Reply:
        """Change some fields of what ``path`` names."""
        return self.call("PATCH", path, body=body)

    def post(self, path: str, body: Any = None) -> Reply:
        """Ask for the action that ``path`` names."""
        return self.call("POST", path, body=body if body is not None else {})

    def delete(self, path: str) -> Reply:
        """Remove what ``path`` names."""
        return self.call("DELETE", path)

    def health(self) -> dict[str, Any]:
        """Return the control plane's health; needs no token."""
        body: dict[str, Any] = self.call("GET", "/health", anonymous=True).body
        return body

    def text(self, path: str) -> str:
        """Return the text at ``path``, such as a report's HTML."""
        return self._send("GET", path, {}, None, {"Accept": "text/html, text/plain"}, anonymous=False).text

    def download(self, path: str) -> bytes:
        """Return the bytes at ``path``, such as a picture."""
        return self._send("GET", path, {}, None, {"Accept": "*/*"}, anonymous=False).content

    def call(
        self, method: str, path: str, *, query: dict[str, Any] | None = None, body: Any = None, anonymous: bool = False
    ) -> Reply:
        """Send one request to ``path`` below ``/api/v1`` and return the answer.

        Raises:
            FarshoreError: of the class that the answer's status means; :class:`Unavailable` if there is no answer.
        """
        headers = {} if method == "GET" else {"Idempotency-Key": secrets.token_hex(16)}
        response = self._send(method, path, query or {}, body, headers, anonymous=anonymous)
        changed = response.headers.get("X-Farshore-Changed")
        return Reply(response.status_code, self._json(response), None if changed is None else changed == "true")

    def _send(
        self, method: str, path: str, query: dict[str, Any], body: Any, headers: dict[str, str], *, anonymous: bool
    ) -> requests.Response:
        if not anonymous:
            headers["Authorization"] = f"Bearer {require_token(self.endpoint)}"
        url = self.endpoint.url + API + path
        params = {key: value for key, value in query.items() if value is not None}
        for attempt in range(len(PAUSES_S) + 1):
            last = attempt == len(PAUSES_S)
            try:
                response = self._session.request(
                    method, url, params=params, json=body, headers=headers, timeout=TIMEOUT_S, allow_redirects=False
                )
            except requests.exceptions.SSLError as error:
                raise self._untrusted(error) from error
            except requests.exceptions.ConnectionError as error:
                # A refused connection means that nothing is there: to wait would only hide it.
                if last or _refused(error):
                    raise self._down(error) from error
            except requests.exceptions.Timeout as error:
                if last:
                    raise self._down(error) from error
            else:
                self.date = response.headers.get("Date")
                if response.status_code < 300:
                    return response
                if last or response.status_code not in _PASSING:
                    raise problem(response.status_code, self._json(response), url)
            self._pause(PAUSES_S[attempt])
        raise AssertionError

    def _json(self, response: requests.Response) -> Any:
        if response.status_code == 204 or not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise Permanent(
                f"{self.endpoint.url} answered with status {response.status_code} and no JSON",
                code="not-a-control-plane",
                hint="Check FARSHORE_URL: the API listens on port 8443 unless you chose another.",
            ) from error

    def _down(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"the control plane at {self.endpoint.url} does not answer",
            hint="Start it with 'farshore up', or set FARSHORE_URL to where it runs; 'farshore doctor' says more.",
            url=self.endpoint.url,
            reason=_root(error),
        )

    def _untrusted(self, error: Exception) -> Permanent:
        return Permanent(
            f"the certificate of {self.endpoint.url} is not trusted: {_root(error)}",
            code="tls-untrusted",
            hint="Name the control plane's ca.pem with --ca or FARSHORE_CA_PATH.",
            url=self.endpoint.url,
        )


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        inner = getattr(error, "reason", None)
        error = (
            error.__cause__
            or error.__context__
            or (inner if isinstance(inner, BaseException) else None)
            or next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        )
    return found


def _refused(error: BaseException) -> bool:
    return any(isinstance(link, ConnectionRefusedError) for link in _chain(error))


def _root(error: BaseException) -> str:
    """Return the innermost error's text: the operating system's or OpenSSL's own words."""
    last = _chain(error)[-1]
    return getattr(last, "verify_message", None) or getattr(last, "strerror", None) or str(last)
