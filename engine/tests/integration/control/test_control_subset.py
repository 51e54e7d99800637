"""Recovery of some boot groups of a plan: what moves, what stays and goes on, and how the rest follows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.two_sites import TwoSites, two_sites
from farshore.errors import Permanent

GROUPS = "boot_groups:\n  - {name: back, machines: [db]}\n  - {name: front, machines: [web]}\nnetworks:"


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        both.plan(**{"networks:": GROUPS})
        both.protect()
        yield both


def order(sites: TwoSites, verb: str, **wish: Any) -> dict[str, Any]:
    run = sites.control.ok("POST", f"/plans/shop:{verb}", wish)["run"]
    return sites.ended(run["run_id"])


def failover(sites: TwoSites, *groups: str, **wish: Any) -> dict[str, Any]:
    ended = order(sites, "failover", **{"to_site": "beta", "groups": list(groups) or None, **wish})
    assert ended["state"] == "succeeded", (ended["error"], ended["steps"])
    return ended


def plan(sites: TwoSites) -> dict[str, Any]:
    return dict(sites.control.ok("GET", "/plans/shop"))


def places(sites: TwoSites) -> dict[str, tuple[str, str]]:
    return {machine["name"]: (machine["active_site"], machine["state"]) for machine in plan(sites)["machines"]}


def copied(sites: TwoSites) -> list[str]:
    """Return the machines whose points were taken at alpha, in order."""
    return [machine for params in sites.alpha.of("point") for machine in params["machine_ids"]]


def test_what_is_left_out_goes_on_and_follows_later(sites: TwoSites) -> None:
    control = sites.control
    wish = {"to_site": "beta", "groups": ["back"]}
    control.refused(422, "group-unknown", "POST", "/plans/shop:failover", {**wish, "groups": ["bakc"]})
    problem = control.refused(422, "dependency-left-out", "POST", "/plans/shop:failover", {**wish, "groups": ["front"]})
    assert "--group back" in problem["hint"]
    preview = control.ok("POST", "/plans/shop:failover-preview", wish)
    assert [machine["name"] for machine in preview["after"]["machines"]] == ["db"]
    assert (preview["after"]["active_site"], preview["after"]["left_out"]) == ("alpha", ["web"])
    assert any("'web' stays" in warning for warning in preview["warnings"])
    run = failover(sites, "back", commit="manual")
    assert (run["facts"]["left_out"], [machine["name"] for machine in run["machines"]]) == (["web"], ["db"])
    report = control.ok("GET", f"/runs/{run['run_id']}/report")
    assert report["body"]["run"]["facts"]["left_out"] == ["web"]
    assert [params["machine_id"] for params in sites.alpha.of("machine-stop")] == ["id-db"]
    assert places(sites) == {"db": ("beta", "failed-over"), "web": ("alpha", "protected")}
    after = plan(sites)
    assert (after["state"], after["active_site"], after["epoch"]) == ("protected", "alpha", 2)
    assert {"partly-failed-over", "not-committed"} <= set(after["conditions"])
    assert after["rpo_s"] is not None
    (made,) = until(
        lambda: [one for one in control.ok("GET", "/machines?site=beta")["items"] if one["machine_id"] == "made-db"],
        "the inventory shows what was made",
    )
    assert (made["plan"], made["active_site"]) == ("shop", "beta")

    # The rest is replicated, rehearsed, and cannot turn on its own.
    assert sites.replicate()["state"] == "succeeded"
    assert copied(sites)[-1] == "id-web"
    assert copied(sites).count("id-db") == 3  # the first copy, and the two of its failover
    drill = order(sites, "drill")
    assert (drill["state"], [one["name"] for one in drill["machines"]]) == ("succeeded", ["web"])
    control.refused(409, "partly-failed-over", "POST", "/plans/shop:reprotect", {})
    control.refused(409, "failback-unavailable", "POST", "/plans/shop:failover", {"to_site": "alpha"})
    control.refused(409, "machine-moved", "POST", "/plans/shop:replicate", {"machines": ["db"]})
    again = control.call("POST", "/plans/shop:failover", wish)
    assert (again.status_code, again.json()["changed"]) == (200, False)

    # Of what was moved in two goes each is committed by itself.
    assert control.ok("POST", "/plans/shop:commit")["changed"] is True
    failover(sites, "front", commit="manual")
    after = plan(sites)
    assert (after["state"], after["active_site"], after["epoch"]) == ("failed-over", "beta", 3)
    assert "partly-failed-over" not in after["conditions"]
    assert control.ok("POST", "/plans/shop:rollback-preview")["after"]["left_out"] == ["db"]
    assert order(sites, "rollback")["state"] == "succeeded"
    assert places(sites) == {"db": ("beta", "failed-over"), "web": ("alpha", "protected")}
    assert sites.alpha.fenced == {"id-db": 2}
    control.refused(409, "committed", "POST", "/plans/shop:rollback")

    failover(sites)
    assert places(sites) == {"db": ("beta", "failed-over"), "web": ("beta", "failed-over")}
    turned = order(sites, "reprotect")
    assert turned["state"] == "succeeded", (turned["error"], turned["steps"])
    assert plan(sites)["state"] == "protected"
    failover(sites, "back", to_site="alpha")
    assert places(sites) == {"db": ("alpha", "failed-over"), "web": ("beta", "protected")}


def test_what_did_not_come_up_is_gone_on_with_before_others_move_and_all_go_back(sites: TwoSites) -> None:
    gate = sites.beta.hold("machine-create")
    wish = {"to_site": "beta", "groups": ["back"], "commit": "manual"}
    run_id = sites.control.ok("POST", "/plans/shop:failover", wish)["run"]["run_id"]
    until(lambda: sites.beta.asked()["machine-create"], "a machine is made")
    # While it moves, the other one is copied; nobody ends the protection of the one that moves.
    assert places(sites) == {"db": ("beta", "failing-over"), "web": ("alpha", "protected")}
    assert sites.replicate()["state"] == "succeeded"
    sites.control.refused(409, "plan-failing-over", "POST", "/plans/shop:protect", {"state": "paused"})
    sites.beta.fail("machine-power-on", Permanent("no", code="odd"))
    gate.set()
    assert sites.ended(run_id)["state"] == "failed"
    problem = sites.control.refused(409, "failover-unfinished", "POST", "/plans/shop:failover", {"to_site": "beta"})
    assert "--group back" in problem["hint"]
    retried = sites.control.ok("POST", f"/runs/{run_id}:retry", {})["run"]
    assert sites.ended(retried["run_id"])["state"] == "succeeded"
    failover(sites, commit="manual")
    assert plan(sites)["active_site"] == "beta"

    # Neither was committed: both go back together.
    assert order(sites, "rollback")["state"] == "succeeded"
    assert places(sites) == {"db": ("alpha", "protected"), "web": ("alpha", "protected")}
    assert {machine["power"] for machine in sites.alpha.machines.values()} == {"on"}
    assert sites.alpha.fenced == {}
    assert (plan(sites)["state"], plan(sites)["committed"]) == ("protected", True)


def test_what_was_forced_stays_divergent_when_the_rest_follows_in_order(sites: TwoSites) -> None:
    failover(sites, "back", mode="unplanned")
    until(lambda: "id-db" in sites.alpha.fenced, "the old primary is fenced at first contact")
    assert sites.alpha.machines["id-web"]["power"] == "on"
    failover(sites, "front")
    problem = sites.control.refused(409, "divergent", "POST", "/plans/shop:reprotect", {})
    assert "db may hold" in problem["detail"]
    turned = order(sites, "reprotect", accept_divergence=True)
    assert turned["state"] == "succeeded", (turned["error"], turned["steps"])


def test_machines_that_are_kept_consistent_with_each_other_move_together(sites: TwoSites) -> None:
    sites.plan(**{"networks:": f"consistency: group\n{GROUPS}"})
    assert sites.replicate()["state"] == "succeeded"
    wish = {"to_site": "beta", "groups": ["back"]}
    assert sites.control.refused(422, "group-torn", "POST", "/plans/shop:failover", wish)["field"] == "groups"
    drill = order(sites, "drill", groups=["back"])  # a rehearsal tears nothing
    assert (drill["state"], drill["facts"]["left_out"]) == ("succeeded", ["web"])
    failover(sites, "back", "front")


def test_a_migration_goes_in_waves(sites: TwoSites) -> None:
    first = order(sites, "migrate", groups=["back"])
    assert first["state"] == "succeeded", (first["error"], first["steps"])
    until(lambda: sites.alpha.asked()["machine-untrack"], "the source of the first wave is retired")
    assert [params["machine_id"] for params in sites.alpha.of("machine-untrack")] == ["id-db"]
    after = plan(sites)
    assert (after["state"], after["active_site"], after["activity"]) == ("protected", "alpha", "active")
    assert places(sites)["db"][0] == "beta"
    sites.control.refused(409, "machine-moved", "POST", "/plans/shop:protect", {"state": "protected"})
    assert sites.replicate()["state"] == "succeeded"
    assert order(sites, "migrate")["state"] == "succeeded"
    after = plan(sites)
    assert (after["state"], after["active_site"], after["activity"]) == ("migrated", "beta", "inactive")
