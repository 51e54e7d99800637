"""site, replication_node, protection_plan, protect: a second run changes nothing, absence is a state too."""

from __future__ import annotations

import pytest

PLAN = {"name": "shop", "source_site": "alpha", "target_site": "beta", "machines": [{"name": "db"}]}


@pytest.fixture
def plan(ok):
    ok("protection_plan", name="shop", definition=PLAN)


@pytest.mark.parametrize(
    ("module", "key", "params"),
    [
        ("site", "site", {"name": "alpha", "platform": "kvm", "description": "harbour"}),
        ("replication_node", "node", {"name": "alpha-1", "site": "alpha", "data_address": "127.0.0.1:9101"}),
        ("protection_plan", "plan", {"name": "shop", "definition": PLAN}),
    ],
)
def test_present_twice_then_absent_twice(ok, module, key, params):
    ok("site", name="alpha", platform="kvm", description="harbour")
    ok("site", name="alpha", state="absent")
    if module == "replication_node":
        ok("site", name="alpha", platform="kvm")
    first = ok(module, **params)
    again = ok(module, **params)
    assert [first["changed"], again["changed"]] == [True, False]
    assert first[key]["name"] == params["name"]
    gone = ok(module, name=params["name"], state="absent")
    gone_again = ok(module, name=params["name"], state="absent")
    assert [gone["changed"], gone_again["changed"]] == [True, False]
    assert gone_again[key] == {}


def test_a_link_is_described_and_forgotten(ok, double):
    hours = {"days": ["mon"], "from": "08:00", "to": "1080", "limit": "20 Mbit/s"}
    params = {
        "source_site": "alpha",
        "target_site": "beta",
        "data_listen": "target",
        "bandwidth": {"limit": "200 Mbit/s", "calendar": [hours], "timezone": "Europe/Berlin"},
    }
    first, again = ok("site_link", **params), ok("site_link", **params)
    assert [first["changed"], again["changed"]] == [True, False]
    method, path, body, _headers = double.log[-1]
    assert (method, path) == ("PUT", "/api/v1/site-links/alpha/beta")
    # What YAML made of 18:00 without quotes goes on as the number that it is.
    calendar = [{"days": ["mon"], "from": "08:00", "to": 1080, "limit": "20 Mbit/s"}]
    assert body["bandwidth"] == {"limit": "200 Mbit/s", "calendar": calendar, "timezone": "Europe/Berlin"}
    assert first["link"]["data_listen"] == "target"
    where = {"source_site": "alpha", "target_site": "beta"}
    gone, gone_again = (ok("site_link", state="absent", **where) for _unused in range(2))
    assert [gone["changed"], gone_again["changed"]] == [True, False]
    assert gone_again["link"] == {}


def test_a_link_without_limits_sends_the_rest(ok, double):
    ok("site_link", source_site="alpha", target_site="beta")
    assert double.log[-1][2] == {"data_listen": "source", "bandwidth": {"calendar": [], "timezone": "UTC"}}


def test_diff_shows_before_and_after(ok):
    ok("site", name="alpha", platform="kvm")
    result = ok("site", name="alpha", platform="kvm", description="harbour", diff=True)
    assert result["diff"]["before"]["description"] == ""
    assert result["diff"]["after"]["description"] == "harbour"
    assert "diff" not in ok("site", name="alpha", platform="kvm", description="bay")


def test_the_costs_of_a_plan_are_shown_where_it_is_previewed(ok):
    plan = {"name": "shop", "definition": {"name": "shop"}}
    result = ok("protection_plan", check=True, diff=True, **plan)
    assert result["costs"] == {"per_month": 2.0}
    assert result["diff"]["before"] == {}
    assert result["diff"]["after"]["estimated_costs"] == {"per_month": 2.0}
    assert "costs" not in ok("protection_plan", **plan)
    result = ok("protection_plan", name="shop", definition={"name": "shop", "rpo": "1h"}, diff=True)
    assert result["diff"]["before"]["estimated_costs"] == {"per_month": 1.0}


def test_warnings_of_the_control_plane_are_shown(ok):
    result = ok("site", name="alpha", platform="kvm", check=True)
    assert "only a preview" in str(result["warnings"])


def test_a_name_is_one_segment_whatever_it_holds(ok, double):
    ok("site", name="../nodes/x y?z", platform="kvm")
    assert double.requests()[-1] == ("PUT", "/api/v1/sites/..%2Fnodes%2Fx%20y%3Fz")


def test_a_token_is_returned_only_when_asked_for(ok):
    ok("site", name="alpha", platform="kvm")
    node = {"name": "alpha-1", "site": "alpha", "data_address": "127.0.0.1:9101"}
    assert "enrolment" not in ok("replication_node", **node)
    assert "enrolment" not in ok("replication_node", enrolment_token=True, check=True, **node)
    asked = ok("replication_node", enrolment_token=True, **node)
    assert asked["changed"]
    assert asked["enrolment"]["token"] == "fsn_1_secret"


def test_a_plan_is_sent_as_the_text_of_its_file(ok, double, tmp_path):
    source = tmp_path / "shop.yml"
    source.write_text("# ein Kommentar: ü\nname: shop\n", encoding="utf-8")
    assert ok("protection_plan", name="shop", src=str(source))["changed"]
    assert double.log[-1][2] == {"source": "# ein Kommentar: ü\nname: shop\n"}


def test_an_error_in_a_plan_names_its_line(bad, tmp_path):
    source = tmp_path / "shop.yml"
    source.write_text("name: shop\nmachines: [\n", encoding="utf-8")
    result = bad("protection_plan", name="shop", src=str(source))
    assert result["code"] == "plan-invalid"
    assert result["field"] == "machines"
    assert "line 3, column 11" in result["msg"]


def test_a_plan_file_that_is_not_there(bad, double, tmp_path):
    result = bad("protection_plan", name="shop", src=str(tmp_path / "none.yml"))
    assert (result["code"], result["field"]) == ("bad-parameter", "src")
    assert double.log == []


def test_protect_pause_and_end(ok, plan, double):
    states = ["protected", "protected", "paused", "unprotected", "unprotected"]
    results = [ok("protect", plan="shop", state=state) for state in states]
    assert [result["changed"] for result in results] == [True, False, True, True, False]
    assert results[0]["plan"]["activity"] == "active"


def test_protect_an_unknown_plan(bad):
    result = bad("protect", plan="none")
    assert (result["status"], result["code"]) == (404, "not-found")
    assert "none" in result["msg"]
    assert "List what there is." in result["msg"]
