"""A control plane that follows a lost one, from the bundle that a site kept, and the lost one when it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.two_sites import TwoSites, two_sites
from farshore.control import audit, sealing, takeover
from farshore.control.store import Store
from farshore.model.checkpoint import Manifest
from farshore.recovery import evidence


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        yield both


def current(control: Control) -> dict[str, Any] | None:
    found: dict[str, Any] = control.ok("GET", "/catalog")
    bundles = {one["site"]: one for one in found["bundles"]}
    return found if len(bundles) == 2 and all(one["current"] for one in bundles.values()) else None


def test_a_new_control_plane_takes_over_and_the_old_one_is_refused(sites: TwoSites, tmp_path: Path) -> None:
    old = sites.control
    sites.plan()
    sites.protect()
    assert sites.replicate()["state"] == "succeeded"
    drill = old.ok("POST", "/plans/shop:drill", {})["run"]["run_id"]
    assert sites.ended(drill)["state"] == "succeeded"
    newest = sites.checkpoints("db")[0]["checkpoint_id"]
    old.ok("PATCH", f"/checkpoints/{newest}", {"pin": True, "note": "before the move"})
    until(lambda: current(old), "both sites keep what there is to say", 120)
    last_report = old.ok("GET", f"/runs/{drill}/report")
    before = {one["checkpoint_id"] for one in old.ok("GET", "/checkpoints")["items"]}
    home, key_text = old.home, old.home.recovery_key.read_text()
    old.kill()
    sites.alpha_node.stop()  # the site is lost with it

    # What anybody finds at the site says nothing; what is needed comes from the key's holder.
    stored = list(sites.beta.bundles.items())
    names = ("BEGIN PRIVATE", '"dmz"', "10.8.0.10", old.token.split("_")[-1], str(old.home.path))
    assert not [name for _, text in stored for name in names if name in text]
    key = sealing.read_key(key_text)
    taken = takeover.choose(stored, key)
    manifests = [Manifest.model_validate(one) for one in sites.beta.manifests]
    outcome = takeover.take_over(tmp_path / "next", taken, manifests)
    assert (outcome.generation, outcome.plans, outcome.warnings) == (2, ["shop"], [])

    following = Control(tmp_path / "next")
    assert following.home.ca.read_bytes() == home.ca.read_bytes()
    following.start()
    try:
        assert following.ok("GET", "/catalog")["rebuilding"] == ["alpha", "beta"]
        following.refused(503, "catalog-rebuilding", "POST", "/plans/shop:drill-preview", {})
        node = sites.beta_node
        node.url = following.home.node_url
        until(lambda: following.ok("GET", "/catalog")["rebuilding"] == ["alpha"], "the manifests of beta are read")
        assert {one["checkpoint_id"] for one in following.ok("GET", "/checkpoints")["items"]} == before
        carried = following.ok("GET", f"/checkpoints/{newest}")
        assert (carried["pinned"], carried["note"]) == (True, "before the move")
        assert following.ok("POST", "/sites/beta:catalog-check", {})["agrees"]

        wish = {"to_site": "beta", "mode": "unplanned"}
        run = following.ok("POST", "/plans/shop:failover", wish)["run"]["run_id"]
        ended = until(lambda: finished(following, run), "the failover ends")
        assert ended["state"] == "succeeded", ended["error"]
        report = following.ok("GET", f"/runs/{run}/report")
        evidence.verify_chain([last_report, report])
        with Store(following.home.database).read() as session:
            assert audit.first_break(session) is None
        until(lambda: following.ok("GET", "/catalog")["bundles"], "it keeps a bundle of its own")

        node.stop()
        old.start()
        node.url = home.node_url
        refused = node.post("/node/v1/poll", node.poll_body(generation=2))
        assert (refused.status_code, refused.json()["code"]) == (409, "generation-fenced")
        assert old.ok("GET", "/catalog")["superseded_by"] == 2
    finally:
        assert following.stop() == 0


def finished(control: Control, run_id: str) -> dict[str, Any] | None:
    run: dict[str, Any] = control.ok("GET", f"/runs/{run_id}")
    return run if run["ended_at"] is not None else None
