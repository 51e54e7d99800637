"""What every request has to keep to, before anything reads it."""

from __future__ import annotations

import json
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farshore.control.auth.identity import PEER

#: A plan of 1,000 machines is smaller.
LARGEST_API_BODY_BYTES: Final = 4 * 1024 * 1024
#: From whoever reaches the listener of nodes: all that they can do is to enrol.
LARGEST_STRANGER_BODY_BYTES: Final = 1024 * 1024
#: A node's report: the inventory of a large site, a catalogue of some ten thousand manifests.
LARGEST_REPORT_BYTES: Final = 64 * 1024 * 1024

_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Limits:
    """Refuses bodies that are too large, and keeps answers of the interface out of caches."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = _most(scope)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > most:
            await _too_large(send, most)
            return
        taken = 0
        over = begun = False

        async def counted() -> Message:
            nonlocal taken, over
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                over = True
                return {"type": "http.disconnect"}
            return message

        private = scope["path"].startswith(("/api/", "/node/"))

        async def guarded(message: Message) -> None:
            nonlocal begun
            if over and not begun:
                return  # what is said to a body cut short is not said; see below
            if message["type"] == "http.response.start":
                begun = True
                names = {name.lower() for name, _ in message["headers"]}
                more = [(name, value) for name, value in _HEADERS if name not in names]
                if private and b"cache-control" not in names:
                    more.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            await self.app(scope, counted, guarded)
        except ClientDisconnect:
            if not over:
                raise
        if over and not begun:
            await _too_large(send, most)


def _most(scope: Scope) -> int:
    """Return how large the body of a request may be, by what is known before anything of it is read."""
    if not scope["path"].startswith("/node/"):
        return LARGEST_API_BODY_BYTES
    return LARGEST_STRANGER_BODY_BYTES if scope.get(PEER) is None else LARGEST_REPORT_BYTES


async def _too_large(send: Send, most: int) -> None:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": "Content Too Large",
        "status": 413,
        "code": "too-large",
        "detail": f"a request has {most} bytes at most",
        "field": None,
        "hint": "",
        "evidence": {},
    }
    headers = [(b"content-type", b"application/problem+json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
