"""The fault mini-language strikes where it says."""

from __future__ import annotations

import pytest
from farshore.errors import NoSpace, Permanent, Retry
from farshore.testing.faults import Plan, Rule, parse


def test_rules_are_parsed() -> None:
    assert parse("write#3:full, flush:io,put-done#2+:delay=0.5") == [
        Rule("write", 3, 3, "full"),
        Rule("flush", 1, None, "io"),
        Rule("put-done", 2, None, "delay", 0.5),
    ]
    assert parse("") == []


@pytest.mark.parametrize("text", ["write", "write#x:full", "read:full", "write#3:explode", "write:delay", "seal-#1:io"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no fault"):
        parse(text)


def test_a_plan_counts_each_operation_for_itself() -> None:
    plan = Plan("write#2:full,flush#2+:io,seal#1:retry")
    plan.strike("write")
    plan.strike("flush")
    with pytest.raises(NoSpace):
        plan.strike("write")
    plan.strike("write")
    for _ in range(3):
        with pytest.raises(Permanent):
            plan.strike("flush")
    with pytest.raises(Retry):
        plan.strike("seal")
    plan.strike("seal")
    assert plan.counts == {"write": 3, "flush": 4, "seal": 2}
