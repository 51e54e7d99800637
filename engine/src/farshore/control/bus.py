"""Wakes whoever waits for a change: long polls of nodes, event streams of watchers, the scheduler.

Changes come from any thread; waiting happens on the server's event loop. Nobody polls the database.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from farshore.control.store.database import Effects

#: Changes that one slow watcher may lag behind before it is told to read everything again.
BACKLOG: Final = 256

Change = tuple[str, str]


class Version(NamedTuple):
    """How often there was work for a site."""

    news: int
    offers: int


class Bus:
    """One per process."""

    def __init__(self) -> None:
        self.scheduler = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._condition: asyncio.Condition | None = None
        #: Of each site: what all its nodes have to hear of, and what is there for those with room.
        self._news: dict[str, int] = {}
        self._offers: dict[str, int] = {}
        self._watchers: set[asyncio.Queue[Change | None]] = set()
        self._polls: dict[str, int] = {}
        self.closing = False

    def attach(self) -> None:
        """Belong to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._condition = asyncio.Condition()

    def publish(self, effects: Effects) -> None:
        """Pass on what a committed transaction changed. Safe from every thread."""
        if not effects.sites and not effects.offers and not effects.changes:
            return
        self.scheduler.set()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(
                self._spread, set(effects.sites), set(effects.offers), list(effects.changes)
            )

    def _spread(self, sites: set[str], offers: set[str], changes: list[Change]) -> None:
        for counts, named in ((self._news, sites), (self._offers, offers)):
            for site in named:
                counts[site] = counts.get(site, 0) + 1
        for change in changes:
            for queue in self._watchers:
                if queue.qsize() < BACKLOG:
                    queue.put_nowait(change)
                elif queue.qsize() == BACKLOG:
                    queue.put_nowait(("all", ""))
        if sites or offers or self.closing:
            task = asyncio.ensure_future(self._notify())
            task.add_done_callback(lambda _: None)

    async def _notify(self) -> None:
        assert self._condition is not None  # noqa: S101 - attached before anything is spread
        async with self._condition:
            self._condition.notify_all()

    def version(self, site: str) -> Version:
        """Return what changes whenever there is work for ``site``, or for those of its nodes that have room."""
        return Version(self._news.get(site, 0), self._offers.get(site, 0))

    async def work(self, site: str, version: Version, timeout_s: float) -> bool:
        """Wait until there is work for ``site`` that came after ``version``; False when the time is over."""
        assert self._condition is not None  # noqa: S101 - attached by the server
        try:
            async with asyncio.timeout(timeout_s), self._condition:
                await self._condition.wait_for(lambda: self.closing or self.version(site) != version)
        except TimeoutError:
            return False
        return not self.closing

    def begin_poll(self, node: str) -> int:
        """Return the number of a node's new poll; older ones of it are void from now on."""
        self._polls[node] = self._polls.get(node, 0) + 1
        return self._polls[node]

    def is_current(self, node: str, poll: int) -> bool:
        """Say whether no later poll of the node has begun."""
        return self._polls.get(node) == poll

    async def changes(self) -> AsyncIterator[Change]:
        """Yield changes from now on, until the server closes. ``("all", "")`` says that some were left out."""
        queue: asyncio.Queue[Change | None] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            while not self.closing and (change := await queue.get()) is not None:
                yield change
        finally:
            self._watchers.discard(queue)

    def close(self) -> None:
        """End all waiting; called on the loop."""
        self.closing = True
        self.scheduler.set()
        for queue in self._watchers:
            queue.put_nowait(None)
        self._spread(set(), set(), [])
