"""The choice of a congestion control, in a clock of its own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from farshore.transport import congestion
from farshore.transport.congestion import Choice
from farshore.transport.congestion import Path as Way

RATE = 14_000_000


def drive(
    choice: Choice, seconds: float, loss: Callable[[float], float], queue: Callable[[float], float] = lambda _now: 1.0
) -> list[tuple[float, str]]:
    """Send at a steady rate, losing ``loss(now)`` of it; return the changes."""
    changes, sent, again, now = [], 0.0, 0.0, 0.0
    while now < seconds:
        now += 0.5
        sent += RATE / 2
        again += RATE / 2 * loss(now)
        change = choice.observe(now, int(sent), int(again), queue(now))
        if change is not None:
            changes.append((now, change))
    return changes


def test_a_clean_path_keeps_cubic() -> None:
    assert drive(Choice(), 120, lambda _now: 0.0) == []


def test_losses_without_a_queue_are_chance_and_found_soon() -> None:
    [(when, name)] = drive(Choice(), 60, lambda _now: 0.001)
    assert name == "bbr"
    assert when <= 2


def test_losses_that_go_on_are_found_whatever_the_queue() -> None:
    (when, name), *_ = drive(Choice(), 60, lambda _now: 0.001, lambda _now: 2.0)
    assert name == "bbr"
    assert when <= 16


def test_losses_of_the_start_are_a_queue_though_they_are_sent_again_when_it_is_empty() -> None:
    loss = lambda now: 0.05 if 1 < now < 6 else 0.0  # noqa: E731
    assert drive(Choice(), 30, loss, lambda now: 2.0 if 1 < now < 3.5 else 1.24) == []


def test_a_queue_that_overflows_now_and_then_is_no_chance() -> None:
    assert drive(Choice(), 300, lambda now: 0.01 if now % 10 < 3 else 0.0, lambda now: 1.2 + now % 10 / 10) == []


def test_losses_of_bbrs_own_queue_hold_it_for_long_and_not_for_ever() -> None:
    (_, first), (when, then), *_ = drive(Choice(), 120, lambda _now: 0.001, lambda now: 1.0 if now < 12 else 2.0)
    assert (first, then) == ("bbr", "cubic")
    assert 60 <= when <= 66


def test_a_path_that_is_clean_again_goes_back_to_cubic() -> None:
    changes = drive(Choice(), 150, lambda now: 0.001 if 30 < now < 50 else 0.0)
    assert [name for _, name in changes] == ["bbr", "cubic"]
    assert changes[0][0] <= 32
    assert 50 <= changes[1][0] <= 58


def test_a_path_that_swings_is_left_at_rest_for_longer_and_longer() -> None:
    changes = drive(Choice(), 600, lambda now: 0.001 if now % 20 < 5 else 0.0)
    returns = [now for now, name in changes if name == "cubic"]
    assert len(changes) < 40
    assert returns[-1] - returns[-2] > returns[1] - returns[0]


def test_a_trickle_says_nothing() -> None:
    choice = Choice()
    assert [choice.observe(now, now * 1000, 0, 1.0) for now in range(600)] == [None] * 600


def test_all_connections_of_a_path_change_together(monkeypatch: pytest.MonkeyPatch) -> None:
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text(encoding="ascii").split()
    if "bbr" not in available:
        pytest.skip("this kernel has no BBR")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ends = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(3)]
        path = Way()
        sent = 0

        def losses(_connection: socket.socket) -> tuple[int, int, float]:
            nonlocal sent
            sent += 1_000_000
            return sent, sent // 1000, 1.0

        monkeypatch.setattr(congestion, "losses_of", losses)
        for one in ends[:2]:
            path.join(one)
        assert [used(one) for one in ends[:2]] == ["cubic", "cubic"]
        for tick in range(8):
            path.look(tick * 0.6)
        path.leave(ends[0])
        path.join(ends[2])  # one that comes later gets what the others have
        assert [used(one) for one in ends] == ["bbr", "bbr", "bbr"]


def used(connection: socket.socket) -> str:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
