"""What the control plane has said holds until it says otherwise."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from farshore.model.task import DialOrder, PollReply, RateShare
from farshore.node.standing import Standing
from farshore.transport.dialing import Dialer
from farshore.transport.tls import Peer


class Recorder(Dialer):
    """Notes what is dialed, and dials nobody."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def keep(self, address: str, peer: Peer, connections: int | Literal["auto"] = "auto") -> None:
        self.calls.append(("keep", address, peer.node, connections))

    def drop(self, address: str, peer: Peer) -> None:
        self.calls.append(("drop", address, peer.node))


class Stand:
    def __init__(self) -> None:
        self.limits: dict[str, float | None] = {}
        self.set: list[tuple[str, float | None]] = []
        self.dialer = Recorder()
        self.standing = Standing(self._set, self.dialer)

    def _set(self, name: str, rate: float | None) -> None:
        self.limits[name] = rate
        self.set.append((name, rate))

    def obey(self, *parts: RateShare | DialOrder, at: float = 0.0, name: str = "s") -> None:
        shares = tuple(part for part in parts if isinstance(part, RateShare))
        links = tuple(part for part in parts if isinstance(part, DialOrder))
        self.standing.obey(PollReply(limits=shares, links=links, standing=name), at)


@pytest.fixture
def stand() -> Stand:
    return Stand()


def share(rate: float | None, later: float | None = 1.0, name: str = "link:a/b") -> RateShare:
    return RateShare(resource=name, bytes_per_s=rate, later_bytes_per_s=later, valid_s=45.0)


def order(node: str, connections: int | Literal["auto"] = "auto", address: str = "b:1") -> DialOrder:
    return DialOrder(site="b", node=node, thumbprint="t", address=address, connections=connections)


def test_shares_are_set_once_and_lifted_when_they_are_not_named_any_more(stand: Stand):
    stand.obey(share(10.0), name="one")
    stand.obey(share(10.0), at=10.0, name="two")
    assert stand.set == [("link:a/b", 10.0)]
    assert stand.standing.name == "two"
    stand.obey(share(5.0), share(7.0, name="plan:x"))
    stand.obey(share(7.0, name="plan:x"))
    assert stand.limits == {"link:a/b": None, "plan:x": 7.0}


def test_a_share_that_is_not_renewed_shrinks_to_what_is_kept(stand: Stand):
    stand.obey(share(10.0, later=4.0), at=100.0)
    stand.standing.tick(144.9)
    assert stand.limits == {"link:a/b": 10.0}
    stand.standing.tick(145.0)
    assert stand.limits == {"link:a/b": 4.0}
    stand.obey(share(10.0, later=4.0), at=146.0)
    assert stand.limits == {"link:a/b": 10.0}


def test_links_are_kept_changed_and_dropped(stand: Stand):
    stand.obey(order("b-1"), order("b-2", 4))
    assert stand.dialer.calls == [("keep", "b:1", "b-1", "auto"), ("keep", "b:1", "b-2", 4)]
    stand.dialer.calls.clear()
    stand.obey(order("b-2", 6))
    assert stand.dialer.calls == [("drop", "b:1", "b-1"), ("keep", "b:1", "b-2", 6)]
    stand.dialer.calls.clear()
    stand.obey(order("b-2", 6))
    assert stand.dialer.calls == []


def test_an_address_that_is_none_keeps_no_other_from_being_dialed(caplog: pytest.LogCaptureFixture):
    real = Dialer(lambda: None, lambda _connection, _peer: None)  # type: ignore[arg-type,return-value]
    standing = Standing(lambda _name, _rate: None, real)
    standing.obey(PollReply(links=(order("b-1", address="nowhere"),), standing="x"), 0.0)
    assert real.kept() == []
    assert "cannot be dialed" in caplog.text
