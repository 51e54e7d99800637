"""Scrubs: ordered, watched, cancelled, sealed; and what is made of what they and the audits find."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.two_sites import TwoSites, two_sites
from farshore.errors import Permanent
from farshore.recovery import evidence


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        both.plan()
        both.protect()
        yield both


def scrub(sites: TwoSites, checkpoint_id: str) -> str:
    answer = sites.control.ok("POST", f"/checkpoints/{checkpoint_id}:scrub")
    assert answer["changed"]
    return str(answer["run"]["run_id"])


def shown(sites: TwoSites, checkpoint_id: str) -> dict[str, Any]:
    return dict(sites.control.ok("GET", f"/checkpoints/{checkpoint_id}"))


def damage(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    key = checkpoint["disks"][0]["disk_key"]
    return [{"disk_key": key, "kind": "content", "offset": 131072, "length": 65536, "detail": "other bytes"}]


def test_a_scrub_that_finds_all_in_order_verifies_and_leaves_evidence(sites: TwoSites) -> None:
    newest = sites.checkpoints()[0]
    assert newest["integrity"] == "audited"
    gate = sites.beta.hold("scrub")
    run_id = scrub(sites, newest["checkpoint_id"])
    until(lambda: sites.beta.asked()["scrub"], "the scrub begins")
    again = sites.control.ok("POST", f"/checkpoints/{newest['checkpoint_id']}:scrub")
    assert (again["changed"], again["run"]["run_id"]) == (False, run_id)
    assert shown(sites, newest["checkpoint_id"])["in_use_by"] == [run_id]
    sites.control.refused(409, "checkpoint-in-use", "DELETE", f"/checkpoints/{newest['checkpoint_id']}")
    gate.set()
    run = sites.ended(run_id)
    assert (run["kind"], run["state"], run["facts"]["verdict"]) == ("scrub", "succeeded", "verified")
    after = shown(sites, newest["checkpoint_id"])
    assert (after["integrity"], after["in_use_by"]) == ("verified", [])
    assert not sites.beta.tagged
    report = sites.control.ok("GET", f"/runs/{run_id}/report")
    evidence.verify(report)
    assert report["body"]["checkpoints"][0]["checkpoint_id"] == newest["checkpoint_id"]
    assert report["body"]["run"]["facts"]["read_bytes"] > 0


def test_damage_fails_the_scrub_and_the_checkpoint_is_offered_only_on_demand(sites: TwoSites) -> None:
    newest = sites.checkpoints()[0]
    name = newest["checkpoint_id"]
    sites.beta.damages[name] = damage(newest)
    run = sites.ended(scrub(sites, name))
    assert (run["state"], run["error"]["code"]) == ("failed", "checkpoint-suspect")
    assert "131072" in run["error"]["message"]
    assert run["facts"]["damages"][0]["offset"] == 131072
    evidence.verify(sites.control.ok("GET", f"/runs/{run['run_id']}/report"))
    after = shown(sites, name)
    assert after["integrity"] == "suspect"
    assert after["addenda"][0]["damages"][0]["kind"] == "content"
    assert "suspect" in sites.control.ok("GET", "/plans/shop")["conditions"]
    audited = sites.control.ok("GET", "/audit")["items"]
    assert any(entry["action"] == "checkpoint_suspect" and entry["subject"] == name for entry in audited)
    sites.control.refused(409, "checkpoint-suspect", "POST", "/plans/shop:drill-preview", {"checkpoint": name})
    wish = {"checkpoint": name, "allow_suspect": True}
    preview = sites.control.ok("POST", "/plans/shop:drill-preview", wish)
    assert name in preview["after"]["checkpoints"].values()
    # Repaired, and looked at again.
    del sites.beta.damages[name]
    assert sites.ended(scrub(sites, name))["state"] == "succeeded"
    assert shown(sites, name)["integrity"] == "verified"
    assert "suspect" not in sites.control.ok("GET", "/plans/shop")["conditions"]


def test_a_cancelled_scrub_lets_go_and_says_nothing(sites: TwoSites) -> None:
    name = sites.checkpoints()[0]["checkpoint_id"]
    sites.beta.hold("scrub")
    run_id = scrub(sites, name)
    until(lambda: sites.beta.asked()["scrub"], "the scrub begins")
    sites.control.ok("POST", f"/runs/{run_id}:cancel")
    assert sites.ended(run_id)["state"] == "cancelled"
    assert shown(sites, name)["integrity"] == "audited"
    assert sites.beta.of("sweep")[-1]["tag"] == run_id
    assert not sites.beta.tagged


def test_a_scrub_that_cannot_be_done_says_why(sites: TwoSites) -> None:
    name = sites.checkpoints()[0]["checkpoint_id"]
    sites.beta.fail("scrub", Permanent("the pool is not mounted", code="pool-gone"))
    run = sites.ended(scrub(sites, name))
    assert (run["state"], run["error"]["code"]) == ("failed", "pool-gone")
    assert shown(sites, name)["integrity"] == "audited"
    sites.control.refused(404, "checkpoint-unknown", "POST", "/checkpoints/cp-nope:scrub")


def test_what_an_audit_finds_comes_with_the_next_checkpoint(sites: TwoSites) -> None:
    newest = sites.checkpoints()[0]
    sites.beta.addenda.append(
        {
            "checkpoint_id": newest["checkpoint_id"],
            "group_id": newest["group_id"],
            "epoch": newest["epoch"],
            "sequence": newest["sequence"],
            "verdict": "suspect",
            "by": "audit",
            "origin": "cp-later",
            "at": 1.0,
            "reason": "change tracking missed a change of a disk at offset 4096",
            "damages": [],
        }
    )
    assert sites.replicate()["state"] == "succeeded"
    assert shown(sites, newest["checkpoint_id"])["integrity"] == "suspect"
    later = next(item for item in sites.checkpoints() if item["group_id"] == newest["group_id"])
    assert later["integrity"] == "audited"
