"""The REST API, called from within its own process.

A page is made of what the API answers to the visitor's own token: same documents, same roles, same audit entries, and
no second way into the records.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Scope

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
)

API: Final = "/api/v1"
_BY_STATUS: Final[dict[int, type[FarshoreError]]] = {
    cls.status: cls for cls in (Invalid, NotFound, Conflict, Unauthenticated, Forbidden, NoSpace, Retry)
}


def segment(name: str) -> str:
    """Return ``name`` as one segment of a path."""
    return quote(name, safe="")


@dataclass(frozen=True, slots=True)
class Inside:
    """The API as the holder of ``token`` sees it. ``request`` is the visitor's, for its address."""

    app: ASGIApp
    token: str
    request: Request

    @classmethod
    def of(cls, request: Request, token: str) -> Inside:
        """Return the API of the application that serves ``request``."""
        return cls(request.app, token, request)

    async def get(self, path: str, **query: Any) -> Any:
        """Return the document at ``path``.

        Raises:
            FarshoreError: of the class that the status means.
        """
        return await self._call("GET", path, {key: value for key, value in query.items() if value is not None}, None)

    async def items(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """Return the items of the list at ``path``."""
        found: list[dict[str, Any]] = (await self.get(path, **query))["items"]
        return found

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Ask for the action that ``path`` names and return the answer."""
        return await self._call("POST", path, {}, body)

    async def _call(self, method: str, path: str, query: dict[str, Any], body: dict[str, Any] | None) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        status, answer = await self._exchange(method, API + path, urlencode(query), content)
        document = json.loads(answer) if answer else None
        if status < 300:
            return document
        raise problem(status, document if isinstance(document, dict) else {})

    async def _exchange(self, method: str, path: str, query: str, content: bytes) -> tuple[int, bytes]:
        headers = [
            (b"host", self.request.headers.get("host", "localhost").encode("latin-1")),
            (b"authorization", f"Bearer {self.token}".encode("latin-1", "replace")),
            (b"accept", b"application/json"),
            (b"content-length", str(len(content)).encode()),
        ]
        if method != "GET":
            headers += [(b"content-type", b"application/json"), (b"idempotency-key", secrets.token_hex(16).encode())]
        scope: Scope = {
            "type": "http",
            "asgi": self.request.scope.get("asgi", {"version": "3.0"}),
            "http_version": "1.1",
            "method": method,
            "scheme": self.request.scope.get("scheme", "https"),
            "path": unquote(path),
            "raw_path": path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": "",
            "headers": headers,
            "client": self.request.scope.get("client"),
            "server": self.request.scope.get("server"),
            "state": dict(self.request.scope.get("state", {})),
        }
        inbox: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]
        status = 500
        parts: list[bytes] = []

        async def receive() -> Message:
            return inbox.pop() if inbox else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))

        await self.app(scope, receive, send)
        return status, b"".join(parts)


def problem(status: int, document: dict[str, Any]) -> FarshoreError:
    """Return the error that a problem document tells of."""
    cls = _BY_STATUS.get(status, FarshoreError if status >= 500 else Permanent)
    if document.get("code") == Fenced.code:
        cls = Fenced
    return cls(
        str(document.get("detail") or document.get("title") or f"status {status}"),
        code=document.get("code"),
        hint=str(document.get("hint") or ""),
        field=document.get("field"),
    )
