"""``farshore site-link``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from doubles.cli_server import Api, Result
from farshore.cli.remote.link import read_hours
from farshore.errors import Invalid

Cli = Callable[..., Result]

LINK = {
    "source_site": "alpha",
    "target_site": "beta",
    "data_listen": "target",
    "bandwidth": {
        "limit": 25_000_000,
        "timezone": "Europe/Berlin",
        "calendar": [{"days": ["mon", "tue"], "from": "08:00", "to": "18:00", "limit": 2_500_000}],
    },
    "limit_now": 2_500_000,
    "limit_until": "2026-01-31T17:00:00.000Z",
    "shares": [{"node": "beta-1", "bytes_per_s": 2_500_000.0, "until": "2026-01-31T16:00:30.000Z"}],
}


def test_hours_are_read_as_people_write_them():
    assert read_hours("mon-wed 08:00-18:00 20 Mbit/s") == {
        "days": ["mon", "tue", "wed"],
        "from": "08:00",
        "to": "18:00",
        "limit": "20 Mbit/s",
    }
    assert read_hours("sat-mon,thu 22:00-06:00 unlimited")["days"] == ["mon", "thu", "sat", "sun"]
    assert len(read_hours("daily 00:00-24:00 unlimited")["days"]) == 7


@pytest.mark.parametrize("wrong", ["", "mon", "mon 08:00-18:00", "someday 08:00-18:00 1 MiB/s", "mon 08:00 1 MiB/s"])
def test_hours_that_say_too_little_are_refused(wrong: str):
    with pytest.raises(Invalid) as caught:
        read_hours(wrong)
    assert caught.value.field == "--hours"


def test_a_link_is_described_whole(api: Api, cli: Cli):
    api.on("PUT", "/site-links/alpha/beta", LINK, 201)
    done = cli("site-link", "add", "alpha", "beta", "--data-listen", "target", "--hours", "mon 08:00-18:00 1 MiB/s")
    assert "is described" in done.out
    assert api.sent("PUT")[0].body == {
        "data_listen": "target",
        "bandwidth": {
            "timezone": "UTC",
            "calendar": [{"days": ["mon"], "from": "08:00", "to": "18:00", "limit": "1 MiB/s"}],
        },
    }


def test_links_are_shown_with_their_rates(api: Api, cli: Cli):
    api.on("GET", "/site-links", {"items": [LINK]})
    api.on("GET", "/site-links/alpha/beta", LINK)
    table = cli("site-link", "list").out
    assert "20.0 Mbit/s" in table
    one = cli("site-link", "show", "alpha", "beta").out
    for word in ("mon tue", "08:00", "beta-1", "Europe/Berlin"):
        assert word in one
    assert cli("site-link", "list", "--json").document == {"items": [LINK]}


def test_a_link_is_removed(api: Api, cli: Cli):
    api.on("DELETE", "/site-links/alpha/beta", None, 204)
    assert "is removed" in cli("site-link", "remove", "alpha", "beta").out
