"""The node's way to the control plane: ``/node/v1`` over mutual TLS 1.3.

Each call is tried once and ends in a result or an error whose class says what to do; :class:`Backoff` paces those who
call again. Nothing that the node does waits for the control plane.
"""

from __future__ import annotations

import base64
import random
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import requests
from pydantic import ValidationError
from requests.adapters import HTTPAdapter

from farshore.errors import (
    Conflict,
    FarshoreError,
    Fenced,
    Forbidden,
    Invalid,
    NotFound,
    Permanent,
    Retry,
    Unauthenticated,
    Unavailable,
)
from farshore.model.task import EndedTask, PollReply, PollRequest, Progress, ReportReply, ReportRequest, Room
from farshore.node.identity import Identity

CONNECT_TIMEOUT_S: Final = 10.0
#: A reply that takes longer than this, beyond what we asked to wait, will not come.
READ_TIMEOUT_S: Final = 30.0

_BY_STATUS: Final[dict[int, type[FarshoreError]]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: Invalid,
}


class Backoff:
    """Pauses that double up to ``cap_s`` and are drawn at random below that (full jitter)."""

    def __init__(self, first_s: float = 0.5, cap_s: float = 30.0, draw: Callable[[], float] = random.random) -> None:
        self.first_s = first_s
        self.cap_s = cap_s
        self._draw = draw
        self._failures = 0

    def reset(self) -> None:
        """Begin anew after a success."""
        self._failures = 0

    def next_s(self) -> float:
        """Return the next pause in seconds: between half and the whole of the doubled step."""
        step_s = min(self.cap_s, self.first_s * 2.0 ** min(self._failures, 20))
        self._failures += 1
        return step_s * (0.5 + self._draw() / 2)


class _Tls13(HTTPAdapter):
    """Speaks with one TLS context that trusts one CA and nothing else."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)


def open_session(ca_path: Path, certificate: tuple[Path, Path] | None = None) -> requests.Session:
    """Return a session that trusts the CA in ``ca_path`` alone and shows ``certificate`` (certificate, key).

    Environment settings (proxies, bundles, netrc) are not looked at.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cafile=str(ca_path))
    session = requests.Session()
    session.trust_env = False
    session.verify = str(ca_path)
    if certificate is not None:
        context.load_cert_chain(str(certificate[0]), str(certificate[1]))
    session.mount("https://", _Tls13(context))
    session.headers["Accept"] = "application/json"
    return session


def call(session: requests.Session, method: str, url: str, body: Any = None, wait_s: float = 0.0) -> Any:
    """Send one request and return the reply's JSON (None for 204).

    Raises:
        Unavailable: nobody answered; it may have been carried out all the same.
        Unauthenticated: the peer refused our certificate, or 401.
        Forbidden: the peer's certificate is not one that we trust, or 403.
        Fenced, Conflict: 409, by the problem's code.
        NotFound, Invalid, Permanent: other 4xx.
        Retry: 429 and 5xx.
    """
    try:
        response = session.request(
            method, url, json=body, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S + wait_s), allow_redirects=False
        )
    except requests.exceptions.SSLError as error:
        raise _tls_error(url, error) from error
    except requests.exceptions.RequestException as error:
        if _refused_us(error):
            raise _tls_error(url, error) from error
        raise Unavailable(
            f"the control plane at {url} does not answer: {_reason(error)}",
            hint="Work goes on; reports wait until it is back.",
        ) from error
    if response.status_code == 204:
        return None
    if response.ok:
        try:
            return response.json()
        except ValueError as error:
            raise Retry(f"{url} answered with something that is no JSON", code="bad-reply") from error
    raise _problem(url, response)


def _problem(url: str, response: requests.Response) -> FarshoreError:
    try:
        data = response.json()
    except ValueError:
        data = {}
    problem = data if isinstance(data, dict) else {}
    status = response.status_code
    code = str(problem.get("code") or "") or None
    kind: type[FarshoreError]
    if status == 409 and code == "fenced":
        kind = Fenced
    elif status in _BY_STATUS:
        kind = _BY_STATUS[status]
    elif status == 429 or status >= 500:
        kind = Retry
    else:
        kind = Permanent
    detail = problem.get("detail") or problem.get("title") or f"HTTP status {status}"
    return kind(f"{url}: {detail}", code=code, hint=str(problem.get("hint") or ""), status_code=status)


def _reason(error: BaseException) -> str:
    """Return the innermost cause in few words: requests wraps what happened three times."""
    inner: BaseException = error
    while True:
        nested = getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
        if not isinstance(nested, BaseException):
            break
        inner = nested
    return str(inner) or type(inner).__name__


def _refused_us(error: BaseException) -> bool:
    # In TLS 1.3 a server refuses a client certificate after the client's handshake has ended: it shows as an alert at
    # the first read, which the HTTP layer may wrap as a broken connection.
    return "alert" in str(error).lower()


def _tls_error(url: str, error: BaseException) -> FarshoreError:
    text = _reason(error)
    if _refused_us(error):
        return Unauthenticated(
            f"the control plane at {url} refused this node's certificate: {text}",
            code="certificate-refused",
            hint="Enrol the node again with a new token.",
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return Forbidden(
            f"the control plane at {url} is not the one that this node trusts: {text}",
            code="control-untrusted",
            hint="Check control_url and the CA certificate.",
        )
    return Unavailable(f"no TLS connection to {url}: {text}")


class ControlClient:
    """One thread's client of ``/node/v1``; a renewed certificate is taken up by itself."""

    def __init__(self, url: str, identity: Identity) -> None:
        self.url = url
        self.identity = identity
        self._session: requests.Session | None = None
        self._seen: tuple[int, int] = (0, 0)

    def _open(self) -> requests.Session:
        seen = (
            self.identity.certificate_path.stat().st_mtime_ns,
            self.identity.ca_path.stat().st_mtime_ns,
        )
        if self._session is None or seen != self._seen:
            self.close()
            self._session = open_session(
                self.identity.ca_path, (self.identity.certificate_path, self.identity.key_path)
            )
            self._seen = seen
        return self._session

    def close(self) -> None:
        """Drop the connections."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _post(self, path: str, body: Any, wait_s: float = 0.0) -> Any:
        return call(self._open(), "POST", f"{self.url}/node/v1/{path}", body, wait_s)

    def poll(self, request: PollRequest) -> PollReply:
        """Ask for work; blocks up to ``request.wait_s``."""
        reply = self._post("poll", request.model_dump(mode="json"), request.wait_s)
        try:
            return PollReply.model_validate(reply)
        except ValidationError as error:
            raise Retry("the control plane's answer to a poll cannot be understood", code="bad-reply") from error

    def progress(self, task_id: str, term: int, progress: Progress) -> None:
        """Tell how far a task is."""
        self._post(f"tasks/{task_id}/progress", {"term": term, "progress": progress.model_dump(mode="json")})

    def report(self, ended: Sequence[EndedTask], room: Room | None) -> ReportReply:
        """Tell the ends of tasks; return what of it is not wanted, and with ``room`` what to begin next."""
        request = ReportRequest(reports=tuple(ended), room=room)
        reply = self._post("reports", request.model_dump(mode="json"))
        try:
            return ReportReply.model_validate(reply)
        except ValidationError as error:
            raise Retry("the control plane's answer to reports cannot be understood", code="bad-reply") from error

    def bundle(self, digest: str) -> bytes:
        """Return the files of hooks called ``digest``."""
        reply = call(self._open(), "GET", f"{self.url}/node/v1/bundles/{digest}")
        try:
            return base64.b64decode(reply["content"], validate=True)
        except (KeyError, TypeError, ValueError) as error:
            raise Retry("the control plane's answer holds no bundle", code="bad-reply") from error

    def renew(self, csr_pem: str) -> str:
        """Return a new certificate for the request ``csr_pem``."""
        reply = self._post("renew", {"csr_pem": csr_pem})
        return str(reply["certificate_pem"]) if isinstance(reply, dict) else str(reply)
