"""A plan's text: every error has a key and a place; text never becomes more than text."""

from __future__ import annotations

import pytest
from farshore.control.planning import source
from farshore.errors import Invalid
from farshore.model.plan import Plan
from hypothesis import given, settings
from hypothesis import strategies as st

GOOD = """\
name: shop
source_site: alpha
target_site: beta
machines:
  - name: db
    probes:
      - type: tcp
        port: 22
        banner: SSH
"""


def plan_of(text: str) -> Plan:
    document = source.read(text)
    return source.validate(document.data, document)


def error_in(text: str) -> Invalid | None:
    """Return the error in a text, None if it is a plan."""
    try:
        plan_of(text)
    except Invalid as error:
        return error
    return None


def problem(text: str) -> Invalid:
    with pytest.raises(Invalid) as caught:
        plan_of(text)
    return caught.value


def test_a_good_text_becomes_a_plan_with_places() -> None:
    document = source.read(GOOD)
    assert source.validate(document.data, document).name == "shop"
    assert document.marks["machines", 0, "probes", 0, "port"] == (8, 9)
    assert document.mark(("machines", 0, "nowhere", "deep")) == (5, 5)


@pytest.mark.parametrize(
    ("text", "field", "place"),
    [
        (GOOD.replace("port: 22", "port: 0"), "machines[0].probes[0].port", (8, 9)),
        (GOOD.replace("        banner: SSH\n", ""), "machines[0].probes[0].banner", (7, 9)),
        (GOOD.replace("type: tcp", "type: icmp"), "machines[0].probes[0]", (7, 9)),
        (GOOD.replace("name: shop\n", ""), "name", (1, 1)),
        (GOOD + "extra: 1\n", "extra", (10, 1)),
        (GOOD + "rpo: [1]\n", "rpo", (10, 1)),
        (GOOD + "machines: []\n", "machines", (10, 1)),
        (GOOD + "  - broken", "machines[1]", (10, 5)),
        ("", "source", (1, 1)),
        ("- a\n", "source", (1, 1)),
        ("? [a]\n: b\n", "definition", (1, 3)),
        ("a: &x [*x]\n", "a[0]", (1, 4)),
        ("name: !!python/object/apply:os.system [id]\n", "name", (1, 1)),
        ("name: !!int x\n", "name", (1, 7)),
        ("name: 2026-01-01\nsource_site: a\ntarget_site: b\nmachines: [{name: 'a b'}]\n", "machines[0].name", (4, 13)),
    ],
)
def test_errors_have_a_key_and_a_place(text: str, field: str, place: tuple[int, int]) -> None:
    error = problem(text)
    assert (error.code, error.field) == ("plan-invalid", field), error
    assert (error.evidence["line"], error.evidence["column"]) == place, error
    assert f"line {place[0]}" in error.message


def test_all_problems_are_listed() -> None:
    error = problem(GOOD.replace("port: 22", "port: 0").replace("alpha", "'a b'"))
    assert {item["field"] for item in error.evidence["problems"]} == {"machines[0].probes[0].port", "source_site"}


def test_a_text_that_unfolds_without_end_is_refused() -> None:
    lines = [f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 9)]
    assert "unfolds" in problem("\n".join(["a0: &a0 [x,x,x,x,x,x,x,x,x,x]", *lines])).message
    assert "deeply" in problem("a: " + "[" * 60 + "]" * 60).message
    with pytest.raises(Invalid, match="characters"):
        source.read("x" * (source.LARGEST_CHARS + 1))


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_any_text_is_a_plan_or_an_error_of_ours(text: str) -> None:
    error = error_in(text)
    assert error is None or error.code == "plan-invalid"


@settings(max_examples=200)
@given(st.integers(0, len(GOOD) - 1), st.characters(codec="utf-8"))
def test_any_changed_character_is_a_plan_or_an_error_of_ours(index: int, character: str) -> None:
    error = error_in(GOOD[:index] + character + GOOD[index + 1 :])
    assert error is None or error.field
