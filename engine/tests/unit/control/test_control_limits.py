"""How large a request may be, by who sends it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from farshore.control.api.limits import (
    LARGEST_API_BODY_BYTES,
    LARGEST_REPORT_BYTES,
    LARGEST_STRANGER_BODY_BYTES,
    Limits,
)
from farshore.control.auth.identity import PEER
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send


async def reader(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole body and say that it was read."""
    await Request(scope, receive).body()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def status(path: str, size: int, *, announced: bool, peer: bytes | None = None) -> int:
    """Return what is answered to a body of ``size`` bytes."""
    chunk = b"x" * (1 << 20)
    left = size
    said: list[Message] = []

    async def receive() -> Message:
        nonlocal left
        part = min(left, len(chunk))
        left -= part
        return {"type": "http.request", "body": chunk[:part], "more_body": left > 0}

    async def send(message: Message) -> None:
        said.append(message)

    headers = [(b"content-length", str(size).encode())] if announced else []
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": headers, PEER: peer}
    asyncio.run(Limits(reader)(scope, receive, send))
    if said[0]["status"] == 413 and announced:
        assert left == size  # nothing of it was read
    return int(said[0]["status"])


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize(
    ("path", "peer", "most"),
    [
        ("/api/v1/plans/shop", None, LARGEST_API_BODY_BYTES),
        ("/node/v1/enrol", None, LARGEST_STRANGER_BODY_BYTES),
        ("/node/v1/tasks/task-1/report", b"certificate", LARGEST_REPORT_BYTES),
    ],
)
def test_a_body_above_the_limit_is_refused(path: str, peer: bytes | None, most: int, announced: bool) -> None:
    assert status(path, most, announced=announced, peer=peer) == 200
    assert status(path, most + 1, announced=announced, peer=peer) == 413


def test_a_caller_who_leaves_is_not_answered() -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def send(_message: Message) -> None:
        raise AssertionError("nobody listens")

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/api/v1/plans/shop", "headers": []}
    with pytest.raises(ClientDisconnect):
        asyncio.run(Limits(reader)(scope, gone, send))
