"""``farshore drill show``, ``screen`` and ``console``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from doubles.cli_server import Api, Result

Cli = Callable[..., Result]


def test_a_plan_shows_when_it_is_rehearsed_and_what_was_missed(api: Api, cli: Cli) -> None:
    drill = {
        "schedule": "every 7d",
        "next_at": "2030-01-31T08:00:00Z",
        "waits_for": None,
        "last": {"run_id": "run-9", "state": "succeeded", "ended_at": "2026-01-31T08:00:00Z"},
        "missed": {"due_at": "2026-01-30T08:00:00Z", "reason": "failover run-1 has not ended"},
    }
    api.on("GET", "/plans/shop", {"name": "shop", "drill": drill})
    shown = cli("drill", "show", "shop")
    assert shown.status == 0
    for part in ("every 7d", "run-9, succeeded", "failover run-1 has not ended"):
        assert part in shown.out


def test_a_console_goes_to_a_file_or_to_standard_output(api: Api, cli: Cli, tmp_path: Path) -> None:
    api.on("GET", "/runs/run-1/machines/db/console", "MARKER role=db\n")
    path = tmp_path / "console.txt"
    assert cli("drill", "console", "run-1", "db", "-o", str(path)).status == 0
    assert "MARKER role=db" in path.read_text()
