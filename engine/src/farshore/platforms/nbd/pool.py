"""Several connections to one export, lent to threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from farshore.errors import FarshoreError, Reconnect
from farshore.platforms.nbd.client import Connection


class Pool:
    """Lends connections that ``connect`` opens, at most ``limit`` at once; the one used last is lent first."""

    def __init__(self, connect: Callable[[], Connection], limit: int) -> None:
        self._connect = connect
        self._free = threading.BoundedSemaphore(limit)
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._lent: set[Connection] = set()
        self._closed = False

    @contextlib.contextmanager
    def lend(self) -> Iterator[Connection]:
        """Lend a connection for the time of the block; one that was lost is not lent again.

        Raises:
            Reconnect: the pool is closed.
            Unavailable, NotFound: none could be opened.
        """
        with self._free:
            connection = self._take()
            try:
                yield connection
            except FarshoreError as error:
                # Any other error was told in a whole reply: the connection is still good.
                self._give_back(connection, good=not isinstance(error, Reconnect))
                raise
            except BaseException:
                self._give_back(connection, good=False)
                raise
            else:
                self._give_back(connection)

    def _take(self) -> Connection:
        with self._lock:
            idle = self._idle.pop() if self._idle else None
        connection = idle or self._connect()
        if not self._keep(connection):
            connection.close()
            raise Reconnect("the connections to this export are closed", code="nbd-closed")
        return connection

    def _keep(self, connection: Connection) -> bool:
        with self._lock:
            if not self._closed:
                self._lent.add(connection)
            return not self._closed

    def _give_back(self, connection: Connection, *, good: bool = True) -> None:
        with self._lock:
            self._lent.discard(connection)
            if good and not self._closed:
                self._idle.append(connection)
                return
        if good:
            connection.close()
        else:
            connection.drop()

    def close(self) -> None:
        """Close all connections; threads that wait on a lent one get :class:`Reconnect`."""
        with self._lock:
            self._closed = True
            idle, lent = self._idle, list(self._lent)
            self._idle = []
        for connection in idle:
            connection.close()
        for connection in lent:
            connection.drop()
