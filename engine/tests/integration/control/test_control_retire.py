"""Old primaries that are deleted: by an order or by what the plan says, and when they are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.two_sites import TwoSites, two_sites
from farshore.errors import Permanent


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        both.plan()
        both.protect()
        yield both


def run(sites: TwoSites, verb: str, **wish: Any) -> dict[str, Any]:
    return sites.ended(sites.control.ok("POST", f"/plans/shop:{verb}", wish)["run"]["run_id"])


def old(sites: TwoSites) -> list[tuple[str, str]]:
    found = sites.control.ok("GET", "/plans/shop")["old_primaries"]
    return [(one["site"], one["machine_id"]) for one in found]


BOTH = [("alpha", "id-db"), ("alpha", "id-web")]


def test_an_order_deletes_them_once_nobody_can_want_them_back(sites: TwoSites) -> None:
    control, beside = sites.control, {"changed": False, "run": None}
    assert control.ok("POST", "/plans/shop:retire", {}) == beside  # nothing was left behind yet
    assert run(sites, "failover", to_site="beta", commit="manual")["state"] == "succeeded"
    control.refused(409, "not-committed", "POST", "/plans/shop:retire", {})
    control.ok("POST", "/plans/shop:commit")

    # The first copy back would begin with their disks, and could not be made yet.
    sites.alpha.fail("replicate", Permanent("the pool is not mounted"))
    assert run(sites, "reprotect")["state"] == "failed"
    control.refused(409, "seed-in-use", "POST", "/plans/shop:retire", {"machines": ["db"]})
    until(lambda: control.ok("GET", "/plans/shop")["state"] == "protected", "the schedule has copied back", 120)
    until(lambda: not sites.open_cycles(), "the first cycles end")

    control.refused(422, "machine-unknown", "POST", "/plans/shop:retire", {"machines": ["dbb"]})
    preview = control.ok("POST", "/plans/shop:retire-preview", {"machines": ["db"], "site": "alpha"})
    assert [one["machine_id"] for one in preview["before"]["old_primaries"]] == ["id-db", "id-web"]
    assert [one["machine_id"] for one in preview["after"]["old_primaries"]] == ["id-web"]
    assert (old(sites), sites.alpha.asked()["machine-retire"]) == (BOTH, 0)
    made = run(sites, "retire", machines=["db"], site="alpha")
    assert made["state"] == "succeeded", made["steps"]
    assert sites.alpha.of("machine-retire") == [{"machine_id": "id-db", "epoch": 2}]
    assert old(sites) == BOTH[1:]
    [step] = [
        one for one in control.ok("GET", f"/runs/{made['run_id']}/report")["body"]["run"]["steps"] if one["machine"]
    ]
    assert (step["machine"], step["evidence"]["removed"]) == ("db", ["disk vda", "machine db"])
    assert control.ok("GET", "/audit?limit=5")["items"][0]["action"] == "delete-old-primary"

    # One that a node does not find fenced and off stays, and the run says so; one that is gone already is done.
    sites.alpha.machines["id-web"]["power"] = "on"
    failed = run(sites, "retire")
    assert (failed["state"], failed["error"]["code"]) == ("failed", "not-retired")
    assert old(sites) == BOTH[1:]
    del sites.alpha.machines["id-web"]
    assert run(sites, "retire")["state"] == "succeeded"
    assert control.ok("POST", "/plans/shop:retire", {}) == beside
    # And the way back goes on without them.
    assert run(sites, "failover", to_site="alpha")["state"] == "succeeded"


def test_a_plan_deletes_them_by_itself_but_what_may_be_nowhere_else(sites: TwoSites) -> None:
    control = sites.control
    policy = {"retention: {count: 8}": "retention: {count: 8}\nretire: {old_primaries: delete, after: 0s}"}
    sites.plan(**policy)
    preview = control.ok("POST", "/plans/shop:failover-preview", {"to_site": "beta"})
    assert any("deleted" in warning for warning in preview["warnings"])
    assert run(sites, "failover", to_site="beta", mode="unplanned")["state"] == "succeeded"
    until(lambda: sites.alpha.fenced == {"id-db": 2, "id-web": 2}, "the old primaries are fenced")
    until(lambda: "old-primary-not-fenced" not in control.ok("GET", "/plans/shop")["conditions"], "that is known")
    control.refused(409, "divergent", "POST", "/plans/shop:retire", {})
    assert run(sites, "reprotect", accept_divergence=True)["state"] == "succeeded"
    # What a planned failover leaves behind goes by itself; what was forced to stay behind is still there then.
    assert run(sites, "failover", to_site="alpha")["state"] == "succeeded"
    until(lambda: old(sites) == BOTH, "the machines at beta are deleted")
    assert [params["machine_id"] for params in sites.beta.of("machine-retire")] == ["made-db", "made-web"]
    [own] = control.ok("GET", "/runs?plan=shop&kind=retire")["items"]
    assert (own["actor"], sites.alpha.asked()["machine-retire"]) == ("control plane", 0)
    assert run(sites, "retire", accept_divergence=True)["state"] == "succeeded"
    assert old(sites) == []
