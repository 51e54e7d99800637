"""Reads of EC2 that are behind: its describe calls are eventually consistent.

https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html. What was asked in the same words before is
answered as it was then; else the newest is not there yet: what the last call made. S3 is not behind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from doubles.aws.http_server import Reply, Request
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends

_ID: Final = re.compile(rb"\b(?:snap|vol|i|eni|ami|sg|r)-[0-9a-f]{8,17}\b")
_MAKES: Final = ("Create", "Run", "Register", "Copy")


class Before:
    """What describe calls were answered last, and what is newest."""

    def __init__(self) -> None:
        self._replies: dict[tuple[str, bytes], Reply] = {}
        self._newest: set[str] = set()

    def clear(self) -> None:
        """Forget both."""
        self._replies.clear()
        self._newest.clear()

    def made(self, operation: str, reply: bytes) -> None:
        """Remember what a call made."""
        if operation.startswith(_MAKES):
            self._newest = {found.decode() for found in _ID.findall(reply)}

    def started(self, snapshot_id: str) -> None:
        """Remember a snapshot that the block interfaces made."""
        self._newest = {snapshot_id}

    def answer(self, region: str, request: Request, call: Callable[[Request], Reply], *, as_before: bool) -> Reply:
        """Return what a describe call says, now or as it was."""
        key = (region, bytes(request.body))
        if as_before and key in self._replies:
            return self._replies[key]
        if as_before:
            with self._hidden(region):
                return call(request)
        reply = call(request)
        if reply.status < 400:
            self._replies[key] = reply
        return reply

    @contextmanager
    def _hidden(self, region: str) -> Iterator[None]:
        backend: Any = ec2_backends[DEFAULT_ACCOUNT_ID][region]
        kept = []
        for things in (backend.snapshots, backend.volumes, backend.enis, backend.amis, backend.reservations):
            kept.append((things, dict(things)))
            for name in self._newest & things.keys():
                del things[name]
        try:
            yield
        finally:
            for things, whole in kept:
                things.clear()
                things.update(whole)
