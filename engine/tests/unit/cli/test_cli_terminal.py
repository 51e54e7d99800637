"""On a real terminal: the question before a failover, and the live table."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from doubles.cli_documents import run_document
from doubles.cli_server import Api

PREVIEW = {"changed": True, "before": {"active_site": "alpha"}, "after": {"active_site": "beta"}, "warnings": []}
STEP = {
    "name": "machine-stop",
    "machine": "db",
    "state": "running",
    "started_at": "2026-01-31T08:00:02Z",
    "ended_at": None,
    "seconds": None,
    "detail": "",
}


def on_terminal(*arguments: str, typed: str) -> tuple[int, str]:
    """Run ``farshore`` on a terminal of its own where ``typed`` has been typed ahead."""
    ours, theirs = pty.openpty()
    environ = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, "-m", "farshore.cli.main", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environ
    )
    os.close(theirs)
    os.write(ours, typed.encode())
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the terminal's other end is closed: the program has ended
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return process.wait(timeout=60), shown.decode(errors="replace")


def serve(api: Api) -> None:
    ended = run_document(kind="failover", state="succeeded", ended_at="2026-01-31T08:00:11Z", steps=[STEP])
    api.on("POST", "/plans/shop:failover-preview", PREVIEW)
    api.on("POST", "/plans/shop:failover", {"run": run_document(kind="failover"), "changed": True}, status=202)
    api.answers["GET", "/runs/run-1"] = [
        lambda _: (200, run_document(kind="failover", steps=[STEP])),
        lambda _: (200, ended),
    ]


def test_a_failover_shows_its_preview_and_asks_and_no_means_no(api: Api):
    serve(api)
    status, shown = on_terminal("failover", "shop", "--to", "beta", typed="n\n")
    assert status == 1
    assert "alpha → beta" in shown
    assert "Fail plan shop over to beta (planned)?" in shown
    assert [request.path for request in api.sent("POST")] == ["/plans/shop:failover-preview"]


def test_yes_begins_it_and_the_steps_are_a_live_table(api: Api):
    serve(api)
    status, shown = on_terminal("failover", "shop", "--to", "beta", typed="y\n")
    assert status == 0
    assert "machine-stop" in shown
    assert "\x1b[" in shown
    assert "succeeded" in shown
    assert [request.path for request in api.sent("POST")] == ["/plans/shop:failover-preview", "/plans/shop:failover"]


def test_with_yes_given_nobody_is_asked(api: Api):
    serve(api)
    status, shown = on_terminal("failover", "shop", "--to", "beta", "--yes", typed="")
    assert (status, "Fail plan shop over" in shown) == (0, False)
