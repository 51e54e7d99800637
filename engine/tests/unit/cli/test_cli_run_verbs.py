"""``farshore run`` asks things of runs, and tells while it watches what a run waits for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from doubles.cli_documents import run_document
from doubles.cli_server import Api, Result
from farshore.cli.remote.watch import Lines, progress

Cli = Callable[..., Result]


@pytest.mark.parametrize(
    ("verb", "state", "said"),
    [
        ("pause", "running", "begins nothing new"),
        ("resume", "running", "goes on"),
        ("approve", "pending", "approved"),
        ("cancel", "running", "asked to stop"),
    ],
)
def test_a_run_is_asked(api: Api, cli: Cli, verb: str, state: str, said: str) -> None:
    api.on("POST", f"/runs/run-1:{verb}", run_document(state=state, next=""))
    assert said in cli("run", verb, "run-1").out


def test_one_of_two_approvals_tells_that_another_is_missing(api: Api, cli: Cli) -> None:
    waits = "waits for one person other than dana (t1) to approve it"
    api.on("POST", "/runs/run-1:approve", run_document(state="waiting-approval", next=waits))
    assert waits in cli("run", "approve", "run-1").out


def test_a_retry_is_followed_by_the_name_of_the_run_that_goes_on(api: Api, cli: Cli) -> None:
    made = run_document(run_id="run-2", state="succeeded", retry_of="run-1")
    api.on("POST", "/runs/run-1:retry", {"run": made, "changed": True})
    api.on("GET", "/runs/run-2", made)
    out = cli("run", "retry", "run-1", "--step", "power on", "--machine", "db").out
    assert "goes on as run-2" in out


def test_each_time_that_a_run_waits_for_somebody_is_one_line() -> None:
    lines, said = Lines(), []
    states = ("waiting-approval", "waiting-approval", "running", "paused", "running", "paused", "succeeded")
    for state in states:
        told = f"do this about {state}" if state in {"waiting-approval", "paused"} else ""
        said += lines.news(run_document(state=state, next=told))
    paused, waits = "paused: do this about paused", "waiting-approval: do this about waiting-approval"
    assert said == [waits, "running: goes on", paused, "running: goes on", paused]


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (None, "1.0 MiB of 4.0 MiB, a copy"),
        (2 << 20, "1.0 MiB of 4.0 MiB, 2.0 MiB/s (16.8 Mbit/s) on the wire, a copy"),
    ],
)
def test_what_crosses_the_links_is_said_while_something_is_copied(rate: int | None, said: str) -> None:
    found = {"done_bytes": 1 << 20, "total_bytes": 4 << 20, "wire_bytes_per_s": rate, "note": "a copy"}
    assert progress(run_document(state="running", progress=found)) == said
