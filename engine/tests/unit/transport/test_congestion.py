"""The choice of a congestion control, in a clock of its own."""

from __future__ import annotations

from collections.abc import Callable

from farshore.transport.congestion import Choice

RATE = 14_000_000


def drive(
    choice: Choice, seconds: float, loss: Callable[[float], float]
) -> list[tuple[float, str]]:
    """Send at a steady rate, losing ``loss(now)`` of it; return the changes."""
    changes, sent, again, now = [], 0.0, 0.0, 0.0
    while now < seconds:
        now += 0.5
        sent += RATE / 2
        again += RATE / 2 * loss(now)
        change = choice.observe(now, int(sent), int(again))
        if change is not None:
            changes.append((now, change))
    return changes


def test_a_clean_path_goes_over_to_cubic_soon_and_stays() -> None:
    [(when, name)] = drive(Choice(), 120, lambda _now: 0.0)
    assert name == "cubic"
    assert when <= 5


def test_a_path_that_loses_by_chance_keeps_bbr() -> None:
    assert drive(Choice(), 120, lambda _now: 0.001) == []


def test_losses_of_the_start_are_forgiven() -> None:
    [(when, name)] = drive(Choice(), 30, lambda now: 0.05 if now < 2 else 0.0)
    assert (name, when <= 5) == ("cubic", True)


def test_a_queue_that_overflows_now_and_then_is_no_chance() -> None:
    changes = drive(Choice(), 300, lambda now: 0.01 if now % 10 == 0 else 0.0)
    assert [name for _, name in changes] == ["cubic"]


def test_a_path_that_begins_to_lose_goes_back_to_bbr_and_rests_there() -> None:
    changes = drive(Choice(), 150, lambda now: 0.001 if 30 < now < 50 else 0.0)
    assert [name for _, name in changes] == ["cubic", "bbr", "cubic"]
    assert changes[1][0] < 38
    assert changes[2][0] - changes[1][0] >= 60


def test_a_trickle_says_nothing() -> None:
    choice = Choice()
    assert [choice.observe(now, now * 1000, 0) for now in range(600)] == [None] * 600
