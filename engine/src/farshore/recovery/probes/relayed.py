"""Probes of ports that this node cannot reach itself: who is in the machine's network speaks, and is judged here.

What came over the network is what :class:`Connection` would have read; so one probe has one verdict, whoever tries it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from farshore.errors import FarshoreError, Retry
from farshore.model.probe import HttpProbe, NetworkProbe, TcpProbe
from farshore.platforms.contract import Answer, Reach
from farshore.recovery.probes import http, tcp
from farshore.recovery.probes.deadline import Connection
from farshore.recovery.probes.sight import CANNOT_TRY, NO_ANSWER, READ_LIMIT_BYTES, Sight, red

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: How long the port has to answer; what is left of a try is for the way to whoever speaks to it.
EXCHANGE_S: Final = 5.0


class Relay:
    """Who speaks to a machine's ports; found at the first probe that needs it, and asked for again while it fails."""

    def __init__(self, find: Callable[[], Reach | None]) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._found: tuple[Reach | None] | None = None

    def reach(self) -> Reach | None:
        """Return who it is; None: this node itself.

        Raises:
            FarshoreError: it cannot be found.
        """
        with self._lock:
            if self._found is None:
                self._found = (self._find(),)
            return self._found[0]


class Relayed(Connection):
    """A connection that somebody else makes, once all is known that is to be sent."""

    def __init__(
        self, reach: Reach, until: bytes, address: str, port: int, deadline: float, clock: Callable[[], float]
    ) -> None:
        self._reach = reach
        self._until = until
        self._place = (address, port)
        self._deadline = deadline
        self._clock = clock
        self._to_send = b""
        self._answer: Answer | None = None
        self._at = 0

    def send(self, data: bytes) -> None:
        """Have ``data`` sent."""
        self._to_send += data

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Hand out what was read; then raise how it ended, or return 0."""
        if self._answer is None:
            address, port = self._place
            self._answer = self._reach.exchange(
                address, port, self._to_send, self._until, READ_LIMIT_BYTES, self._left()
            )
        view = memoryview(buffer).cast("B")
        part = self._answer.data[self._at : self._at + len(view)]
        if not part and self._answer.error is not None:
            raise self._answer.error
        view[: len(part)] = part
        self._at += len(part)
        return len(part)


def look(probe: NetworkProbe, address: str, deadline: float, clock: Callable[[], float], relay: Relay) -> Sight | None:
    """Try a probe from within the machine's network; None: this node reaches it itself."""
    try:
        reach = relay.reach()
        if reach is None:
            return None
        sight = _tried(probe, address, deadline, clock, reach)
    except Retry as error:
        return red(NO_ANSWER, error.message)
    except FarshoreError as error:
        return red(CANNOT_TRY, f"{error.message} {error.hint or ''}".strip(), final=True)
    return replace(sight, seen=f"tried by {reach.where}\n{sight.seen}")


def _tried(probe: NetworkProbe, address: str, deadline: float, clock: Callable[[], float], reach: Reach) -> Sight:
    match probe:
        case TcpProbe():
            connect = partial(Relayed, reach, probe.banner.encode())
            return tcp.look(probe, address, deadline, clock, connect)
        case HttpProbe():
            return http.look(probe, address, deadline, clock, partial(Relayed, reach, b""))
    kind = getattr(probe, "type", "this")
    return red(CANNOT_TRY, f"probes of type {kind} need a network that this node reaches", final=True)
