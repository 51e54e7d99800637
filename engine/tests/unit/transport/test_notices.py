"""The same trouble with the same peer is said once."""

from __future__ import annotations

import pytest
from farshore.errors import Reconnect
from farshore.transport import notices
from farshore.transport.notices import Notices


def test_each_trouble_of_each_peer_is_news_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(notices.time, "monotonic", lambda: now[0])
    said = Notices()
    asked = [("one", "not-tls"), ("one", "not-tls"), ("one", "greeting-timeout"), ("other", "not-tls")]
    assert [said.news(*pair) for pair in asked] == [True, False, True, True]
    now[0] += notices.NOTICE_INTERVAL_S - 1
    assert not said.news("one", "not-tls")
    now[0] += 1
    assert said.news("one", "not-tls")


def test_what_was_settled_is_news_again() -> None:
    said = Notices()
    assert said.news("one", "not-tls")
    assert said.news("other", "not-tls")
    said.forget("one")
    assert said.news("one", "not-tls")
    assert not said.news("other", "not-tls")


def test_a_crowd_of_peers_takes_no_memory() -> None:
    said = Notices()
    for number in range(5000):
        assert said.news(f"peer {number}", "not-tls")
    assert len(said._said) == notices._NOTICES_MAX


def test_every_end_of_a_connection_has_a_code() -> None:
    assert notices.named(ConnectionResetError("gone")) == "gone [connection-lost]"
    assert notices.named(EOFError()) == "EOFError [connection-lost]"
    assert notices.named(Reconnect("odd", code="not-a-frame")) == "odd [not-a-frame]"
