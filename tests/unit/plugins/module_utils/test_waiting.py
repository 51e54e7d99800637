"""Waiting: pauses grow, the limit is kept, an interruption leaves the run or stops it."""

from __future__ import annotations

import os
import signal

import pytest
from ansible_collections.farshore.dr.plugins.module_utils import client as clients
from ansible_collections.farshore.dr.plugins.module_utils import durations, errors, waiting
from double import TOKEN


class Time:
    """A clock that moves only when somebody sleeps."""

    def __init__(self):
        self.now = 1000.0
        self.pauses = []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def client(double):
    double.state.start("drill", "shop")
    return clients.Client(double.url, TOKEN, sleep=lambda seconds: None)


def test_pauses_grow_to_a_limit(double, client):
    double.state.polls_until_end = 30
    time = Time()
    run = waiting.Waiter(client, 3600, 1.0, clock=time.clock, sleep=time.sleep).until_ended("run-1")
    assert run["state"] == "succeeded"
    assert 0.9 <= time.pauses[0] <= 1.1
    assert 1.35 <= time.pauses[1] <= 1.65
    assert max(time.pauses) <= waiting.LONGEST_PAUSE_S * 1.1
    assert time.pauses[-1] >= waiting.LONGEST_PAUSE_S * 0.9


def test_the_limit_is_kept_to_the_second(double, client):
    double.state.polls_until_end = 10**9
    time = Time()
    with pytest.raises(errors.WaitTimeout) as caught:
        waiting.Waiter(client, 100, 1.0, clock=time.clock, sleep=time.sleep).until_ended("run-1")
    assert time.now == pytest.approx(1100.0)
    assert caught.value.result["run"]["run_id"] == "run-1"
    assert f"{double.url}/runs/run-1" in str(caught.value)


def away(client, time, until):
    """Let the control plane be away for its runs until an instant."""
    there = client.run

    def run(run_id):
        if time.now < until:
            raise errors.Unavailable("the control plane cannot be reached", field="url")
        return there(run_id)

    client.run = run
    return waiting.Waiter(client, 10, 1.0, clock=time.clock, sleep=time.sleep)


def test_a_control_plane_that_starts_again_is_waited_for(client):
    time = Time()
    run = away(client, time, time.now + waiting.PATIENCE_S).until("run-1", lambda found: True)
    assert run["run_id"] == "run-1"


def test_a_control_plane_that_stays_away_is_not(client):
    time = Time()
    with pytest.raises(errors.Unavailable):
        away(client, time, time.now + waiting.PATIENCE_S * 2).until("run-1", lambda found: True)
    assert time.now == pytest.approx(1000.0 + waiting.PATIENCE_S)


@pytest.mark.parametrize(("on_cancel", "state"), [("leave", "running"), ("cancel", "cancelled")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption(double, client, on_cancel, state, number):
    double.state.polls_until_end = 10**9
    before = signal.getsignal(number)

    def interrupting(seconds):
        os.kill(os.getpid(), number)

    with pytest.raises(errors.Interrupted, match="run-1"):
        waiting.Waiter(client, 100, 1.0, on_cancel=on_cancel, sleep=interrupting).until_ended("run-1")
    assert double.state.runs["run-1"]["state"] == state
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("text", "expected"), [("30", 30), ("30s", 30), ("15m", 900), ("4h", 14400), ("1.5d", 129600), (7, 7)]
)
def test_durations(text, expected):
    assert durations.seconds(text, "max_age") == expected
    assert durations.seconds(None, "max_age") is None
