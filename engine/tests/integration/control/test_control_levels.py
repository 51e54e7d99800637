"""Levels that are asked for, and holds that only an admin lifts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.control_process import Control, until
from doubles.two_sites import TwoSites, two_sites
from farshore.errors import Permanent


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        both.plan(**{"  - name: db\n": "  - name: db\n    quiesce: {before: [/bin/flush, all], timeout: 5s}\n"})
        both.protect()
        yield both


def test_a_level_is_demanded_of_the_source_and_a_run_that_misses_it_says_so(sites: TwoSites) -> None:
    control = sites.control
    made = control.ok("PUT", "/plans/shop/checkpoints/gold", {"pin": True, "consistency": "application"})
    assert sites.ended(made["run"]["run_id"])["state"] == "succeeded"
    asked = {point["machine_ids"][0]: point for point in sites.alpha.of("point")[-2:]}
    assert {(point["consistency"], point["demanded"]) for point in asked.values()} == {("application", True)}
    assert asked["id-db"]["quiesce"] == {"id-db": {"before": ["/bin/flush", "all"], "after": [], "timeout": 5.0}}
    assert asked["id-web"]["quiesce"] == {}
    gold = [item for item in sites.checkpoints() if item["label"] == "gold"]
    assert [item["level"] for item in gold] == ["application", "application"]
    again = control.call("PUT", "/plans/shop/checkpoints/gold", {"pin": True, "consistency": "application"})
    assert again.json()["changed"] is False

    # What the schedule makes is of the plan's level, and does not fail for want of an agent.
    assert sites.replicate()["state"] == "succeeded"
    last = sites.alpha.of("point")[-1]
    assert (last["consistency"], last["demanded"], last["quiesce"]) == ("machine", False, {})

    missed = Permanent("the point would be of level machine", code="consistency-not-reached", field="consistency")
    sites.alpha.fail("point", missed, missed)
    made = control.ok("PUT", "/plans/shop/checkpoints/other", {"consistency": "application"})
    run = sites.ended(made["run"]["run_id"])
    assert (run["state"], run["error"]["code"]) == ("failed", "consistency-not-reached")
    assert not [item for item in sites.checkpoints() if item["label"] == "other"]


def test_a_legal_hold_is_placed_with_a_checkpoint_and_lifted_by_an_admin_alone(sites: TwoSites) -> None:
    control = sites.control
    operator, master = control.role("operator"), control.role("recovery-admin")
    wish = {"pin": False, "hold": "case 4711"}
    made = control.ok("PUT", "/plans/shop/checkpoints/proof", wish, token=operator)
    sites.ended(made["run"]["run_id"])
    proof = [item for item in sites.checkpoints() if item["label"] == "proof"]
    assert [item["hold"]["reason"] for item in proof] == ["case 4711", "case 4711"]
    assert all(item["hold"]["by"].startswith("a-operator") for item in proof)
    name = proof[0]["checkpoint_id"]
    control.refused(409, "checkpoint-held", "DELETE", f"/checkpoints/{name}", token=master)
    control.refused(409, "checkpoint-held", "PUT", f"/checkpoints/{name}/hold", {"reason": "another"}, token=operator)
    control.refused(403, "role-too-small", "DELETE", f"/checkpoints/{name}/hold", token=master)

    # Dropping the copies leaves what is held, and says so before and after.
    wish = {"state": "unprotected", "keep_copies": False}
    before = control.ok("POST", "/plans/shop:protect-preview", wish)
    assert sum("legal hold" in text for text in before["warnings"]) == 2
    control.ok("POST", "/plans/shop:protect", wish)
    held = {item["checkpoint_id"] for item in proof}
    until(lambda: {one["checkpoint_id"] for one in sites.beta.manifests} == held, "all but those under a hold are gone")

    lifted = control.ok("DELETE", f"/checkpoints/{name}/hold")
    assert lifted["hold"] is None
    assert control.call("DELETE", f"/checkpoints/{name}", token=master).status_code == 204
    trail = {entry["action"] for entry in control.ok("GET", "/audit")["items"]}
    assert {"release_checkpoint", "delete_checkpoint"} <= trail
