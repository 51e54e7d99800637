"""Worker processes: how many, and how rates are divided among them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from farshore.errors import Retry
from farshore.node.config import NodeConfig
from farshore.node.crew import Crew, _Hand, processes
from farshore.testing.pki import TestAuthority


@pytest.mark.parametrize(
    ("setting", "processors", "count"),
    [("auto", 1, 0), ("auto", 2, 0), ("auto", 3, 2), ("auto", 4, 3), ("auto", 64, 4), (0, 64, 0), (7, 2, 7)],
)
def test_processes_are_there_where_processors_are(setting: Any, processors: int, count: int):
    assert processes(setting, processors) == count


def crew_at(tmp_path: Path) -> Crew:
    config = NodeConfig(
        name="beta-1",
        site="beta",
        control_url="https://127.0.0.1:1",
        state_dir=tmp_path,
        platform={"type": "file", "root": str(tmp_path)},
    )
    return Crew(config, 3, 1 << 20)


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crew:
    told: list[tuple[str, Any]] = []
    monkeypatch.setattr(_Hand, "tell", lambda self, _do, **values: told.append((self._part, values["bytes_per_s"])))
    made = crew_at(tmp_path)
    made.told = told  # type: ignore[attr-defined]
    return made


def news(crew: Crew) -> list[tuple[str, Any]]:
    told: list[tuple[str, Any]] = crew.told  # type: ignore[attr-defined]
    seen, told[:] = list(told), []
    return seen


def test_a_rate_is_divided_among_the_processes_that_have_cycles_under_it(crew: Crew):
    first, second, third = crew._hands
    crew.limit("plan:x", 90.0)
    assert news(crew) == []
    with crew._counted(first, ("plan:x", "link:a/b")):
        assert news(crew) == [("1", 90.0), ("1", None)]
        with crew._counted(first, ("plan:x",)):
            assert news(crew) == []
        with crew._counted(second, ("plan:x",)), crew._counted(third, ("plan:x",)):
            # Who has more gives first.
            expected = [("1", 45.0), ("2", 45.0), ("1", 30.0), ("2", 30.0), ("3", 30.0)]
            assert news(crew) == expected
            crew.limit("plan:x", 30.0)
            assert news(crew) == [("1", 10.0), ("2", 10.0), ("3", 10.0)]
        assert news(crew)[-1] == ("1", 30.0)
        crew.limit("plan:x", None)
        assert news(crew) == [("1", None)]


def test_a_process_that_was_started_anew_is_told_again(crew: Crew):
    hand = crew._hands[0]
    crew.limit("plan:x", 90.0)
    with crew._counted(hand, ("plan:x",)):
        assert news(crew) == [("1", 90.0)]
    hand.life += 1
    with crew._counted(hand, ("plan:x",)):
        assert news(crew) == [("1", 90.0)]


def test_a_connection_starts_no_process_before_a_source_was_there(tmp_path: Path):
    files = TestAuthority(tmp_path / "pki").node("beta", "beta-1")
    for source, name in ((files.cert, "node.pem"), (files.key, "node.key"), (files.ca, "ca.pem")):
        source.rename(tmp_path / name)
    crew = crew_at(tmp_path)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not crew.take(4, theirs, "192.0.2.7")
        assert crew.take(1, theirs, "192.0.2.7")
        assert [hand.life for hand in crew._hands] == [0, 0, 0]
        assert crew.expect() == 3
        assert crew.take(2, theirs, "192.0.2.7")
        assert [hand.life for hand in crew._hands] == [0, 1, 0]
        crew.stop()
        with pytest.raises(Retry, match="did not start"):
            crew.take(2, theirs, "192.0.2.7")
