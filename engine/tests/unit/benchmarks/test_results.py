"""Figures as they are kept."""

import json

import pytest
from benchmarks.results import Check, Figure, merge

GOOD = Check("rate", 0.97, ">=", 0.96, "of the ceiling")
SHORT = Check("steady state", 0.97, ">=", 0.98, "of the ceiling")


@pytest.mark.parametrize(
    ("value", "relation", "ok"),
    [(1.0, ">=", True), (0.99, ">=", False), (1.0, "<=", True), (1.01, "<=", False), (None, "<=", False)],
)
def test_a_check_is_kept_at_its_bound_and_never_without_a_value(value, relation, ok):
    assert Check("x", value, relation, 1.0).ok is ok


def test_a_figure_shows_its_first_check_and_needs_all_of_them():
    row = Figure("dp-x", [GOOD, SHORT]).row("full")
    assert (row["value"], row["unit"], row["ok"]) == (0.97, "of the ceiling", False)
    assert row["reach"] == "rate ≥ 0.96 of the ceiling; steady state ≥ 0.98 of the ceiling"
    assert row["command"] == "make figures ONLY=dp-x"
    assert Figure("dp-x", [GOOD]).row("quick")["ok"] is True
    assert Figure("dp-x", [GOOD]).row("quick")["command"] == "make figures ONLY=dp-x SIZE=quick"


@pytest.mark.parametrize("figure", [Figure("dp-x"), Figure("dp-x", [GOOD], error="broken")])
def test_a_figure_that_could_not_be_measured_is_not_ok(figure):
    assert figure.row("full")["ok"] is False


def test_rows_are_merged_by_their_ids(tmp_path):
    path = tmp_path / "build/figures.json"
    merge(path, {"b": {"value": 1}, "a": {"value": 1}})
    merge(path, {"b": {"value": 2}})
    assert json.loads(path.read_text()) == {"a": {"value": 1}, "b": {"value": 2}}
    assert [child.name for child in path.parent.iterdir()] == ["figures.json"]
