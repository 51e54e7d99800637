"""The visitor's session: an API token in a cookie that no script can read, and proof that a form is ours.

The cookie holds the token itself, so a session ends at once when the token is revoked, and the server keeps nothing.
``SameSite=Strict`` keeps it out of requests that other sites cause. Beside that every form carries a value that only
the holder of the token can know, and the browser's own word on where a request comes from is heeded.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from farshore.errors import Forbidden

COOKIE: Final = "farshore_session"
#: A working day; after that the token is asked for again.
COOKIE_AGE_S: Final = 12 * 3600
#: Scripts and styles come from our own files only: what a name or a note says can never become code.
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


def token_of(request: Request) -> str | None:
    """Return the token in the visitor's cookie."""
    return request.cookies.get(COOKIE) or None


def begin(response: Response, token: str) -> None:
    """Let the visitor in."""
    response.set_cookie(COOKIE, token, max_age=COOKIE_AGE_S, path="/", secure=True, httponly=True, samesite="strict")


def end(response: Response) -> None:
    """Let the visitor out."""
    response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")


def form_key(token: str) -> str:
    """Return the value that forms of this session carry; it tells nothing about the token."""
    return hmac.new(token.encode(), b"farshore form", hashlib.sha256).hexdigest()


def check_origin(request: Request) -> None:
    """Refuse a form that another site sent.

    Raises:
        Forbidden: if the browser says so.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    foreign = site not in {None, "same-origin", "none"} or (
        origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    )
    if foreign:
        raise Forbidden("this form was sent by another site", code="csrf", hint="Open the page anew and try again.")


def check_form(request: Request, token: str, given: str) -> None:
    """Refuse a form that is not one of this session.

    Raises:
        Forbidden: if it is not.
    """
    check_origin(request)
    if not hmac.compare_digest(form_key(token).encode(), given.encode()):
        raise Forbidden("this form is out of date", code="csrf", hint="Open the page anew and try again.")


def local_path(text: str) -> str:
    """Return ``text`` if it is a path on this server, else the start page: a link must not lead elsewhere."""
    plain = text.startswith("/") and not text.startswith(("//", "/\\")) and "\\" not in text and text.isprintable()
    return text if plain and not urlsplit(text).netloc else "/"
