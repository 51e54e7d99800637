from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from farshore.model.link import Bandwidth
from farshore.model.plan import Plan
from pydantic import ValidationError

MBIT = 125_000
BERLIN = ZoneInfo("Europe/Berlin")

OFFICE = Bandwidth.model_validate(
    {
        "limit": "200 Mbit/s",
        "timezone": "Europe/Berlin",
        "calendar": [
            {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "08:00", "to": "18:00", "limit": "20 Mbit/s"},
            {"days": ["fri"], "from": "22:00", "to": "06:00", "limit": "unlimited"},
        ],
    }
)


def at(*parts: int, fold: int = 0) -> float:
    return datetime(*parts, tzinfo=BERLIN, fold=fold).timestamp()


@pytest.mark.parametrize(
    ("when", "limit"),
    [
        (at(2026, 1, 5, 7, 59), 200 * MBIT),  # a Monday
        (at(2026, 1, 5, 8, 0), 20 * MBIT),
        (at(2026, 1, 5, 17, 59), 20 * MBIT),
        (at(2026, 1, 5, 18, 0), 200 * MBIT),
        (at(2026, 1, 9, 23, 0), None),  # Friday night
        (at(2026, 1, 10, 5, 59), None),  # which ends on Saturday
        (at(2026, 1, 10, 6, 0), 200 * MBIT),
        (at(2026, 1, 5, 5, 0), 200 * MBIT),  # no other night
        (at(2026, 7, 6, 8, 0), 20 * MBIT),  # summer: by the clock on the wall
    ],
)
def test_the_first_entry_that_covers_the_time_holds(when, limit):
    assert OFFICE.limit_at(when) == limit


@pytest.mark.parametrize(
    ("now", "change"),
    [
        (at(2026, 1, 5, 7, 0), at(2026, 1, 5, 8, 0)),
        (at(2026, 1, 5, 8, 0), at(2026, 1, 5, 18, 0)),
        (at(2026, 1, 9, 18, 0), at(2026, 1, 9, 22, 0)),
        (at(2026, 1, 9, 23, 0), at(2026, 1, 10, 6, 0)),
        (at(2026, 1, 10, 6, 0), at(2026, 1, 12, 8, 0)),  # over the weekend
        (at(2026, 3, 28, 12, 0), at(2026, 3, 30, 8, 0)),  # over a change of the clock
    ],
)
def test_the_next_change_is_known(now, change):
    assert OFFICE.next_change(now) == change


def test_hours_that_the_clock_skips_or_repeats():
    night = Bandwidth.model_validate(
        {"timezone": "Europe/Berlin", "calendar": [{"from": "01:00", "to": "02:30", "limit": "1 MiB/s"}]}
    )
    # In March the clock goes from 02:00 to 03:00: the hours end there.
    spring = night.next_change(at(2026, 3, 29, 1, 30))
    assert spring == at(2026, 3, 29, 3, 0)
    assert night.limit_at(spring - 1) == 1 << 20
    assert night.limit_at(spring) is None
    # In October 02:00 to 03:00 comes twice: the hours end, and come again.
    moment, seen = at(2026, 10, 25, 0, 30), []
    while moment < at(2026, 10, 25, 4, 0) and (moment := night.next_change(moment)) is not None:
        seen.append((moment, night.limit_at(moment)))
    assert seen[:4] == [
        (at(2026, 10, 25, 1, 0), 1 << 20),
        (at(2026, 10, 25, 2, 30), None),
        (at(2026, 10, 25, 2, 0, fold=1), 1 << 20),
        (at(2026, 10, 25, 2, 30, fold=1), None),
    ]


def test_without_a_calendar_nothing_ever_changes():
    assert Bandwidth(limit="1 Gbit/s").next_change(0) is None
    assert Bandwidth().limit_at(0) is None
    assert not Bandwidth().limited
    same = Bandwidth.model_validate(
        {"limit": "9 MiB/s", "calendar": [{"from": "00:00", "to": "24:00", "limit": "9 MiB/s"}]}
    )
    assert same.next_change(0) is None


def test_it_is_read_from_what_it_is_written_as():
    assert Bandwidth.model_validate(OFFICE.model_dump(mode="json")) == OFFICE
    assert OFFICE.model_dump(mode="json")["calendar"][0]["from"] == "08:00"
    # YAML reads 18:00 without quotes as a number.
    hours = {"from": 480, "to": 1080, "limit": "1 MiB/s"}
    assert Bandwidth.model_validate({"calendar": [hours]}).calendar[0].end == 18 * 60


def test_a_plan_may_write_a_rate_alone():
    plan = Plan.model_validate(
        {
            "name": "shop",
            "source_site": "alpha",
            "target_site": "beta",
            "machines": [{"name": "db"}],
            "transport": {"bandwidth": "100 Mbit/s"},
        }
    )
    assert plan.transport.bandwidth.limit_at(0) == 100 * MBIT
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": "fast"},
        {"limit": "1 kbit/s"},
        {"timezone": "Mars/Olympus"},
        {"timezone": "../etc/passwd"},
        {"calendar": [{"from": "8", "to": "18:00", "limit": "1 MiB/s"}]},
        {"calendar": [{"from": "08:00", "to": "08:00", "limit": "1 MiB/s"}]},
        {"calendar": [{"from": "08:00", "to": "25:00", "limit": "1 MiB/s"}]},
        {"calendar": [{"days": ["someday"], "from": "08:00", "to": "18:00", "limit": "1 MiB/s"}]},
        {"calendar": [{"from": "08:00", "to": "18:00"}]},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ValidationError):
        Bandwidth.model_validate(wrong)
