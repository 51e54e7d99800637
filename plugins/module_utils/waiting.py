# Copyright: Contributors to the Farshore project
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Waiting for a run: poll with growing pauses, end with it, with the time limit or with an interruption."""

from __future__ import annotations

import random
import signal
import time

from ansible_collections.farshore.dr.plugins.module_utils.client import Answer, segment
from ansible_collections.farshore.dr.plugins.module_utils.errors import (
    ApiError,
    BadParameter,
    Interrupted,
    RunFailed,
    Unavailable,
    WaitTimeout,
)

ENDED = ("succeeded", "partial", "failed", "cancelled")
# The pause grows by half each time; short runs are told at once, long ones cost little.
GROWTH = 1.5
LONGEST_PAUSE_S = 15.0
# How long a run is waited for while the control plane does not answer: it may just be starting again.
PATIENCE_S = 120.0


def wait_argument_spec():
    """Return the options that every module has which can start a run."""
    return dict(
        wait=dict(type="bool", default=True),
        wait_timeout=dict(type="int", default=3600),
        wait_interval=dict(type="float", default=1.0),
        on_cancel=dict(type="str", choices=["leave", "cancel"], default="leave"),
        idempotency_key=dict(type="str", no_log=False),
    )


def check_wait(params):
    """Raise BadParameter where the wait options make no sense."""
    for name in ("wait_timeout", "wait_interval"):
        if params.get(name) is not None and params[name] <= 0:
            raise BadParameter(f"{name} has to be more than 0 seconds", field=name)


class Waiter:
    """Polls runs through ``client``. ``clock`` is monotonic seconds."""

    def __init__(self, client, timeout_s, interval_s, on_cancel="leave", clock=time.monotonic, sleep=time.sleep):
        self._client = client
        self._timeout_s = timeout_s
        self._interval_s = interval_s
        self._on_cancel = on_cancel
        self._clock = clock
        self._sleep = sleep

    def until(self, run_id, done):
        """Return the run once ``done(run)`` holds. A control plane that is away is waited for, beyond the limit too.

        Raises WaitTimeout, with the run as it was last seen, Interrupted on SIGINT and SIGTERM, or Unavailable where
        the control plane is away for longer than two minutes.
        """
        limit = self._clock() + self._timeout_s
        pause_s = self._interval_s
        silent_since = None
        with _Interruptible():
            try:
                while True:
                    try:
                        run = self._client.run(run_id)
                    except Unavailable:
                        silent_since = self._clock() if silent_since is None else silent_since
                        if self._clock() - silent_since >= PATIENCE_S:
                            raise
                        self._sleep(self._interval_s)
                        continue
                    silent_since = None
                    if done(run):
                        return run
                    left_s = limit - self._clock()
                    if left_s <= 0:
                        error = WaitTimeout(
                            f"run {run_id} is {run.get('state')} after {self._timeout_s:g} seconds and goes on",
                            hint=(f"{run['next']}. " if run.get("next") else "")
                            + f"Watch it at {run.get('url') or self._client.url}; raise wait_timeout to wait longer.",
                        )
                        error.result = {"run": run, "changed": True}
                        raise error
                    self._sleep(min(pause_s * (0.9 + random.random() / 5), left_s))
                    pause_s = min(pause_s * GROWTH, max(LONGEST_PAUSE_S, self._interval_s))
            except _Stopped as stopped:
                raise self._interrupted(run_id) from stopped

    def until_ended(self, run_id):
        """Return the run once it has ended well; raise RunFailed where it ended otherwise."""
        run = self.until(run_id, lambda run: run.get("state") in ENDED)
        if run.get("state") != "succeeded":
            raise run_failed(run)
        return run

    def _interrupted(self, run_id):
        if self._on_cancel == "cancel":
            try:
                self._client.write("POST", f"/runs/{segment(run_id)}:cancel", {}, guess=Answer(True, None))
                return Interrupted(f"interrupted; run {run_id} was told to stop", evidence={"run_id": run_id})
            except ApiError as error:
                return Interrupted(
                    f"interrupted; run {run_id} could not be stopped: {error}", evidence={"run_id": run_id}
                )
        return Interrupted(
            f"interrupted; run {run_id} goes on",
            hint=f"Stop it with: farshore run cancel {run_id}",
            evidence={"run_id": run_id},
        )


def run_failed(run):
    """Return the error that stands for a run that ended as partial, failed or cancelled."""
    problem = run.get("error") or {}
    said = problem.get("detail") or problem.get("message") or problem.get("title")
    if not said:
        red = ["{} is {}".format(m.get("name"), m.get("state")) for m in run.get("machines") or () if _is_red(m)]
        said = ", ".join(red) or "see its steps"
    error = RunFailed(
        "{} {} of plan {} ended as {}: {}".format(
            run.get("kind", "run"), run.get("run_id"), run.get("plan"), run.get("state"), said
        ),
        code=problem.get("code") or "run-{}".format(run.get("state")),
        field=problem.get("field"),
        hint=problem.get("hint") or ("Its report: {}".format(run["report_url"]) if run.get("report_url") else ""),
        evidence=problem.get("evidence") or {},
    )
    error.result = {"run": run, "changed": True}
    return error


def _is_red(machine):
    return any(not probe.get("green") for probe in machine.get("probes") or ()) or machine.get("state") in (
        "failed",
        "blocked",
    )


class _Stopped(Exception):
    """SIGINT or SIGTERM came."""


class _Interruptible:
    """Turns SIGINT and SIGTERM into _Stopped for the time of a wait."""

    def __enter__(self):
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._stop)
            except ValueError:  # not in the main thread: then the signals are somebody else's
                pass
        return self

    def __exit__(self, *unused):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return False

    @staticmethod
    def _stop(number, frame):
        raise _Stopped()
