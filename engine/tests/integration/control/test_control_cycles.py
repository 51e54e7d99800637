"""Cycles: first copies, bases, faults by duty, retention, restarts of the control plane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.scripted_site import _granted
from doubles.two_sites import TwoSites, two_sites
from farshore.errors import NoSpace, Permanent, RestartFromCheckpoint, Retry
from farshore.model.task import Task


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        yield both


def test_protected_machines_are_copied_and_each_copy_grows_on_the_last(sites: TwoSites) -> None:
    sites.plan()
    sites.protect()
    first = {item["machines"][0]: item for item in sites.checkpoints()}
    assert set(first) == {"db", "web"}
    assert all(item["stats"]["mode"] == "full" and item["sequence"] == 1 for item in first.values())
    assert sites.alpha.of("point")[0]["bases"] == {}
    run = sites.replicate()
    assert run["state"] == "succeeded"
    assert [cycle["stats"]["mode"] for cycle in run["cycles"]] == ["incremental", "incremental"]
    second = sites.checkpoints("db")[0]
    assert (second["sequence"], second["epoch"]) == (2, 1)
    asked = [point for point in sites.alpha.of("point") if point["machine_ids"] == ["id-db"]]
    base = asked[1]["bases"]["id-db/vda"]
    assert base == asked[0]["point_id"]
    copied = [params for params in sites.beta.of("replicate") if params["manifest"]["group_id"] == "grp-shop=db"]
    assert copied[1]["disks"][0]["base_point"] == first["db"]["disks"][0]["point"]
    assert copied[1]["disks"][0]["base_root"] == first["db"]["disks"][0]["tree_root"]
    assert copied[1]["manifest"]["parent"] == first["db"]["checkpoint_id"]
    assert copied[1]["address"] == "127.0.0.1:9101"
    grant = _granted(copied[1]["grant"])
    assert (grant["source_node"], grant["target_node"], grant["disks"][0]["base"]) == ("alpha-1", "beta-1", base)
    assert base in sites.alpha.applied
    machine = sites.control.ok("GET", "/machines/db")
    assert machine["state"] == "protected"
    assert 0 <= machine["rpo_s"] < 60


def test_a_lost_bitmap_becomes_a_verify_pass_against_the_base(sites: TwoSites) -> None:
    sites.plan()
    sites.protect()
    sites.alpha.incremental = False
    run = sites.replicate()
    assert {cycle["stats"]["mode"] for cycle in run["cycles"]} == {"verify"}
    disk = sites.beta.of("replicate")[-1]["disks"][0]
    assert disk["incremental"] is False
    assert disk["base_point"] is not None


def test_replicate_is_not_needed_while_the_newest_is_young(sites: TwoSites) -> None:
    sites.plan()
    sites.protect()
    answer = sites.control.call("POST", "/plans/shop:replicate", {"max_age_s": 600})
    assert (answer.status_code, answer.json()) == (202, {"run": None, "changed": False})
    assert answer.headers["X-Farshore-Changed"] == "false"
    assert sites.control.ok("POST", "/plans/shop:replicate-preview", {"max_age_s": 600})["changed"] is False
    preview = sites.control.ok("POST", "/plans/shop:replicate-preview", {"machines": ["db"]})
    assert preview["after"]["cycles"] == ["grp-shop=db"]


def assert_terms_grow(sites: TwoSites) -> None:
    """Each try of a cycle has a higher term than the one before: so it passes the session that that one left open."""
    terms: dict[str, list[int]] = {}
    for params in sites.beta.of("replicate"):
        grant = _granted(params["grant"])
        terms.setdefault(grant["session_id"], []).append(grant["term"])
    assert any(len(of_cycle) > 1 for of_cycle in terms.values())
    assert all(of_cycle == sorted(set(of_cycle)) for of_cycle in terms.values()), terms


def test_a_fault_that_passes_is_tried_again_within_the_cycle(sites: TwoSites) -> None:
    sites.plan()
    sites.protect()
    sites.beta.fail("replicate", Retry("the pool was busy"))
    run = sites.replicate()
    assert run["state"] == "succeeded"
    keys = [params["manifest"]["checkpoint_id"] for params in sites.beta.of("replicate")]
    assert len(keys) == len(set(keys)) + 1  # the same checkpoint was ordered twice
    assert_terms_grow(sites)


def test_a_vanished_source_point_is_taken_anew(sites: TwoSites) -> None:
    sites.plan()
    sites.protect()
    sites.beta.fail("replicate", RestartFromCheckpoint("gone", code="source-point-gone"))
    before = sites.alpha.asked()["point"]
    run = sites.replicate()
    assert run["state"] == "succeeded"
    assert sites.alpha.asked()["point"] == before + 3
    given_up = [params for params in sites.alpha.of("release") if not params["applied"]]
    assert len(given_up) == 1
    assert_terms_grow(sites)


def test_a_full_pool_ends_the_run_names_itself_and_passes_when_there_is_room(sites: TwoSites) -> None:
    sites.plan()
    sites.protect()
    sites.beta.fail("replicate", NoSpace("pool /pool is full"), NoSpace("pool /pool is full"))
    run = sites.replicate()
    assert run["state"] == "failed"
    assert run["error"]["code"] == "no-space"
    plan = sites.control.ok("GET", "/plans/shop")
    assert "replication-failing" in plan["conditions"]
    assert plan["last_error"]["message"] == "pool /pool is full"
    assert len(sites.checkpoints()) == 2
    until(lambda: sites.replicate()["state"] == "succeeded", "room again")
    assert sites.control.ok("GET", "/plans/shop")["last_error"] is None


def test_retention_keeps_the_count_and_the_pinned(sites: TwoSites) -> None:
    sites.plan(count=2)
    sites.protect()
    made = sites.control.ok("PUT", "/plans/shop/checkpoints/golden", {"pin": True})
    assert sites.ended(made["run"]["run_id"])["state"] == "succeeded"
    golden = {item["checkpoint_id"] for item in sites.checkpoints() if item["label"] == "golden"}
    again = sites.control.call("PUT", "/plans/shop/checkpoints/golden", {"pin": True})
    assert (again.status_code, again.json()["changed"], again.json()["run"]) == (200, False, None)
    for _ in range(3):
        assert sites.replicate()["state"] == "succeeded"

    def kept() -> bool:
        left = sites.checkpoints("db")
        return len(left) == 3 and any(item["pinned"] for item in left)

    until(kept, "two and the pinned one remain")
    ids = {item["checkpoint_id"] for item in sites.checkpoints()}
    assert golden <= ids
    until(lambda: {m["checkpoint_id"] for m in sites.beta.manifests} == ids, "the target holds what the catalogue says")
    sites.control.refused(409, "checkpoint-pinned", "DELETE", f"/checkpoints/{min(golden)}")


def test_the_schedule_keeps_the_rpo(sites: TwoSites) -> None:
    sites.plan(rpo="10s")
    sites.protect()
    until(lambda: max(item["sequence"] for item in sites.checkpoints("db")) >= 3, "two more cycles by schedule", 90)
    ordered = sorted(item["ordered_at"] for item in sites.checkpoints("db"))
    assert len(ordered) >= 3


def test_unprotecting_untracks_the_machines_and_drops_copies_by_choice(sites: TwoSites) -> None:
    sites.plan()
    sites.protect()
    wish = {"state": "unprotected", "keep_copies": False}
    preview = sites.control.ok("POST", "/plans/shop:protect-preview", wish)
    assert preview["before"]["checkpoints"] == 2
    tracked = preview["before"]["at_source"]
    assert sorted(tracked) == ["db", "web"]
    assert all(len(found) == 1 and found[0].startswith("change tracking since pt-") for found in tracked.values())
    assert preview["after"]["at_source"] == {"db": [], "web": []}
    sites.control.refused(409, "plan-active", "DELETE", "/plans/shop")
    plan = sites.control.ok("POST", "/plans/shop:protect", wish)
    assert plan["state"] == "unprotected"
    until(lambda: sites.alpha.asked()["machine-untrack"] == 2, "untracked")
    until(lambda: not sites.beta.manifests, "copies are gone")
    assert sites.control.call("POST", "/plans/shop:protect", wish).headers["X-Farshore-Changed"] == "false"
    sites.control.ok("DELETE", "/plans/shop")
    sites.control.refused(404, "plan-unknown", "GET", "/plans/shop")


def test_pausing_stops_a_cycle_and_gives_its_point_up(sites: TwoSites) -> None:
    sites.plan()
    sites.protect()
    gate = sites.beta.hold("replicate")
    run = sites.control.ok("POST", "/plans/shop:replicate", {})["run"]
    until(lambda: sites.beta.asked()["replicate"] == 4, "both copy")
    sites.control.ok("POST", "/plans/shop:protect", {"state": "paused"})
    ended = sites.ended(run["run_id"])
    gate.set()
    assert ended["state"] == "cancelled"
    assert len([params for params in sites.alpha.of("release") if not params["applied"]]) == 2
    sites.control.refused(409, "not-protected", "POST", "/plans/shop:replicate", {})


def test_a_killed_control_plane_goes_on_with_a_cycle_and_nothing_is_copied_twice(sites: TwoSites) -> None:
    sites.plan()
    sites.protect()
    gate = sites.beta.hold("replicate")
    run = sites.control.ok("POST", "/plans/shop:replicate", {})["run"]
    until(lambda: sites.beta.asked()["replicate"] == 4, "both copy")
    sites.control.kill()
    gate.set()  # the node ends its work while nobody is there to hear of it
    sites.control.start()
    assert sites.ended(run["run_id"])["state"] == "succeeded"
    assert sites.beta.asked()["replicate"] == 4
    assert len(sites.checkpoints()) == 4


def test_a_checkpoint_whose_report_was_lost_is_found_at_the_target(sites: TwoSites) -> None:
    sites.plan()
    sites.protect()
    publish = sites.beta_node.handlers["replicate"]

    def publish_and_fail(task: Task) -> dict[str, Any]:
        publish(task)
        raise Permanent("published, but nobody will hear of it", code="lost")

    sites.beta_node.handlers["replicate"] = publish_and_fail
    assert sites.replicate()["state"] == "failed"
    until(lambda: len(sites.checkpoints()) == 4, "both are recorded all the same")
    assert {item["checkpoint_id"] for item in sites.checkpoints()} == {
        item["checkpoint_id"] for item in sites.beta.manifests
    }
    sites.beta_node.handlers["replicate"] = publish
    assert sites.replicate()["state"] == "succeeded"
    assert [item["sequence"] for item in sites.checkpoints("db")] == [3, 2, 1]


def test_replication_goes_on_after_the_newest_checkpoints_were_dropped(sites: TwoSites) -> None:
    sites.plan()
    sites.protect()
    assert sites.replicate()["state"] == "succeeded"
    newest = sites.checkpoints("db")[0]
    assert sites.control.call("DELETE", f"/checkpoints/{newest['checkpoint_id']}").ok
    run = sites.ended(sites.control.ok("POST", "/plans/shop:replicate", {})["run"]["run_id"])
    assert run["state"] == "succeeded", run["error"]
    assert sites.checkpoints("db")[0]["sequence"] == newest["sequence"] + 1
    sites.control.ok("POST", "/plans/shop:protect", {"state": "unprotected", "keep_copies": False})
    until(lambda: not sites.checkpoints(), "all copies are gone")
    sites.control.ok("POST", "/plans/shop:protect", {"state": "protected"})
    until(lambda: len(sites.checkpoints()) == 2, "both are copied anew")
