"""Errors, grants and sizes survive their way, and what was changed on it is refused."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from farshore import errors, units
from farshore.errors import Fenced, Forbidden
from farshore.model.grant import Grant, GrantDisk, sign, verify
from farshore.transport import frames
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
DUTIES = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.FarshoreError)]
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
json_values = st.recursive(st.none() | st.booleans() | st.integers() | names, lambda one: st.lists(one, max_size=3))
evidence = st.dictionaries(st.from_regex(r"[a-z]{3,8}", fullmatch=True), json_values, max_size=4).map(
    lambda one: {key: value for key, value in one.items() if key not in {"self", "message", "code", "hint", "field"}}
)


@settings(max_examples=200)
@given(st.sampled_from(DUTIES), names, names, evidence)
def test_errors_cross_the_wire_as_what_they_are(
    duty: type[errors.FarshoreError], message: str, hint: str, found: dict[str, object]
) -> None:
    error = duty(message, code="some-code", hint=hint, **found)  # type: ignore[arg-type]
    frame = frames.encode_error(7, error)
    header = frames.decode_header(frame[: frames.HEADER.size])
    other = frames.decode_error(frame[frames.HEADER.size :])
    assert header.request == 7
    assert type(other) is duty
    assert other.to_dict() == error.to_dict()


def granted(session: str, epoch: int, term: int, disks: list[tuple[str, int]]) -> Grant:
    return Grant(
        grant_id="gr",
        catalog_id="cat",
        generation=1,
        plan="plan",
        group_id="grp",
        session_id=session,
        source_site="a",
        target_site="b",
        source_node="a-1",
        target_node="b-1",
        source_thumbprint="aa",
        target_thumbprint="bb",
        epoch=epoch,
        term=term,
        disks=tuple(GrantDisk(disk_key=key, size_bytes=size, source_point="pt") for key, size in disks),
        not_before=100.0,
        not_after=1000.0,
    )


grants = st.builds(
    granted,
    names,
    st.integers(0, 2**32),
    st.integers(1, 2**32),
    st.lists(st.tuples(names, st.integers(1, 2**45)), max_size=4),
)


@settings(max_examples=200)
@given(grants)
def test_a_grant_is_read_as_it_was_signed(grant: Grant) -> None:
    assert verify(sign(grant, KEY), KEY.public_key(), now=500.0) == grant


@settings(max_examples=200)
@given(grants, st.data())
def test_a_grant_with_one_other_character_opens_nothing(grant: Grant, data: st.DataObject) -> None:
    text = sign(grant, KEY)
    body, _, signature = text.partition(".")
    at = data.draw(st.integers(0, len(body) - 1))
    other = data.draw(st.sampled_from([c for c in "ABCDEFGHabcdefgh0123_-" if c != body[at]]))
    changed = body[:at] + other + body[at + 1 :]
    try:
        found = verify(f"{changed}.{signature}", KEY.public_key(), now=500.0)
    except Forbidden:
        return
    assert found == grant, "only the bits behind the end of base64 may differ"


@settings(max_examples=200)
@given(grants, st.floats(0, 2000))
def test_a_grant_opens_in_its_time_only(grant: Grant, now: float) -> None:
    text = sign(grant, KEY)
    if 100.0 - 120.0 <= now <= 1000.0 + 120.0:
        verify(text, KEY.public_key(), now=now)
    else:
        with pytest.raises(Fenced):
            verify(text, KEY.public_key(), now=now)


@settings(max_examples=200)
@given(st.integers(0, 2**50), st.sampled_from(("", "k", "KiB", "MiB", "g", "TiB")))
def test_sizes_are_read_in_powers_of_1024(number: int, unit: str) -> None:
    factor = {"": 1, "k": 1024, "kib": 1024, "mib": 1 << 20, "g": 1 << 30, "tib": 1 << 40}[unit.lower()]
    assert units.parse_size(f" {number} {unit} ") == number * factor


@settings(max_examples=200)
@given(names.filter(lambda one: not one.strip()[:1].isdigit()))
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        units.parse_size(text)
