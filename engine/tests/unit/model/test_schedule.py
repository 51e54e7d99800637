"""Schedules: what recurs, and what is none."""

from __future__ import annotations

import datetime as dt

import pytest
from farshore.model import schedule
from farshore.model.plan import DrillPolicy
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError


def at(text: str) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "moment", "following"),
    [
        ("every 7d", "2026-03-01 10:00:30", "2026-03-08 10:00:30"),
        ("0 0 */7 dec sun", "2030-12-29 23:00:00", "2041-12-01 00:00:00"),
        ("0 0 */28 feb sun", "2088-02-29 00:00:00", "2093-02-01 00:00:00"),
        ("30 4 * * sun", "2026-11-22 04:30", "2026-11-29 04:30"),
        ("30 4 * * 7", "2026-11-22 04:29:59", "2026-11-22 04:30"),
        ("*/15 * * * *", "2026-03-01 10:14:59", "2026-03-01 10:15"),
        ("0 22-23 * * 1-5", "2026-11-20 23:00", "2026-11-23 22:00"),
        ("0 0 29 feb *", "2026-01-01 00:00", "2028-02-29 00:00"),
        ("0 0 1 * mon", "2026-11-24 00:00", "2026-11-30 00:00"),  # either day suffices
        ("0 0 */10 * mon", "2026-11-24 00:00", "2026-12-21 00:00"),  # both, since one is a star
        ("5/30 12 * * *", "2026-03-01 12:05", "2026-03-01 12:35"),
    ],
)
def test_the_time_that_follows(text: str, moment: str, following: str) -> None:
    assert schedule.parse(text).after(at(moment)) == at(following)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "five fields"),
        ("at tea time", "five fields"),
        ("every 5m", "every 10m"),
        ("every day", "30s, 15m"),
        ("* * * * *", "every 10m"),
        ("60 * * * *", "between 0 and 59"),
        ("0 24 * * *", "between 0 and 23"),
        ("0 0 31 feb *", "never comes"),
        ("0 0 * * fri-mon", "empty"),
        ("0 0 */0 * *", "empty"),
        ("0 0 1;2 * *", "write"),
    ],
)
def test_what_is_no_schedule_is_refused_with_a_reason(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        schedule.parse(text)
    with pytest.raises(ValidationError):
        DrillPolicy(schedule=text)


FIELDS = st.tuples(
    st.sampled_from(["0", "30", "*/20", "5,35", "10-12/2"]),
    st.sampled_from(["*", "4", "*/6", "8-18"]),
    st.sampled_from(["*", "1", "15,28", "*/7"]),
    st.sampled_from(["*", "2", "1-6/2", "dec"]),
    st.sampled_from(["*", "0", "7", "mon-fri", "sat"]),
)


@given(FIELDS, st.floats(0, 4e9, allow_nan=False))
@example(("0", "*", "*/7", "dec", "0"), 1924815600.0)
def test_a_time_is_later_fits_the_fields_and_none_is_left_out(fields: tuple[str, ...], moment: float) -> None:
    text = " ".join(fields)
    try:
        times = schedule.parse(text)
    except ValueError:
        return  # more often than every 10 minutes
    following = times.after(moment)
    assert following > moment
    assert following % 60 == 0
    # Whatever lies in between is followed by the same.
    assert times.after((moment + following) / 2) == following or (moment + following) / 2 >= following
