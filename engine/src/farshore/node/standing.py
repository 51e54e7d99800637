"""What holds for this node until the control plane says otherwise: its shares of limited rates, and whom it dials.

Both come whole with each poll that is answered. With the control plane away they go on: links as they are, shares up to
their time, then with the part that is kept for a node that cannot ask.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Literal

from farshore.errors import Invalid
from farshore.model.task import DialOrder, PollReply, RateShare
from farshore.node.log import fields
from farshore.transport.dialing import Dialer
from farshore.transport.tls import Peer

_log = logging.getLogger(__name__)

#: Sets a named limit in bytes per second; None lifts it.
SetLimit = Callable[[str, float | None], None]


class Standing:
    """The newest orders, carried out. Safe from several threads."""

    def __init__(self, set_limit: SetLimit, dialer: Dialer) -> None:
        self._set_limit = set_limit
        self._dialer = dialer
        self._lock = threading.Lock()
        self._name = ""
        self._shares: dict[str, tuple[RateShare, float]] = {}
        self._rates: dict[str, float | None] = {}
        self._links: dict[tuple[str, Peer], int | Literal["auto"]] = {}

    @property
    def name(self) -> str:
        """What the control plane calls the orders that are carried out."""
        return self._name

    def obey(self, reply: PollReply, asked_at: float) -> None:
        """Carry out a reply; ``asked_at`` is the monotonic time just before the poll was sent."""
        with self._lock:
            self._shares = {share.resource: (share, asked_at + share.valid_s) for share in reply.limits}
            self._apply(asked_at)
            self._dial(reply.links)
            self._name = reply.standing

    def tick(self, now: float) -> None:
        """Take back shares that have run out. ``now`` is monotonic."""
        with self._lock:
            self._apply(now)

    def _apply(self, now: float) -> None:
        rates = {
            name: share.bytes_per_s if now < until else share.later_bytes_per_s
            for name, (share, until) in self._shares.items()
        }
        for name in {*self._rates, *rates}:
            if self._rates.get(name) != rates.get(name):
                self._set_limit(name, rates.get(name))
        self._rates = rates

    def _dial(self, orders: tuple[DialOrder, ...]) -> None:
        wanted = {
            (order.address, Peer(order.site, order.node, order.thumbprint)): order.connections for order in orders
        }
        for address, peer in [key for key in self._links if key not in wanted]:
            self._dialer.drop(address, peer)
        for (address, peer), connections in wanted.items():
            if self._links.get((address, peer)) == connections:
                continue
            try:
                self._dialer.keep(address, peer, connections)
            except Invalid as error:
                _log.error("a node cannot be dialed", extra=fields(node=peer.node, reason=error.message))
        self._links = wanted
