"""On to a third site after a failover, and from there back to the first: what is copied whole, what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.scripted_site import ScriptedSite
from doubles.two_sites import PLAN, TwoSites


class ThreeSites(TwoSites):
    """Two sites with a plan between them, and a third that it does not know."""

    def __init__(self, control: Control, folder: Path) -> None:
        super().__init__(control, folder)
        self.gamma_node = control.node(folder, "gamma-1", "gamma", port=9103)
        self.gamma = ScriptedSite(self.gamma_node, [], ["edge"])

    def start(self) -> ThreeSites:
        self.gamma_node.start()
        super().start()
        until(lambda: self.control.ok("GET", "/sites/gamma")["inventory_at"], "inventory of gamma")
        return self

    def stop(self) -> None:
        super().stop()
        self.gamma_node.stop()


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[ThreeSites]:
    three = ThreeSites(control, tmp_path)
    try:
        three.start()
        three.plan()
        three.protect()
        yield three
    finally:
        three.stop()


def text(source: str, target: str, source_network: str, target_network: str) -> str:
    moved = PLAN.format(rpo="1h", count=8)
    moved = moved.replace("source_site: alpha", f"source_site: {source}")
    moved = moved.replace("target_site: beta", f"target_site: {target}").replace("failover: 10.8.0", "failover: 10.7.0")
    return moved.replace("source: lan", f"source: {source_network}").replace(
        "failover: dmz", f"failover: {target_network}"
    )


def apply(sites: ThreeSites, source: str, *, at: str) -> dict[str, Any]:
    """Apply a plan once it is known what its machines are like where they run."""
    until(lambda: len(sites.control.ok("GET", f"/machines?site={at}")["items"]) == 2, f"an inventory of {at}")
    return dict(sites.control.ok("PUT", "/plans/shop", {"source": source}))


def run(sites: ThreeSites, verb: str, **wish: Any) -> dict[str, Any]:
    ended = sites.ended(sites.control.ok("POST", f"/plans/shop:{verb}", wish)["run"]["run_id"])
    assert ended["state"] == "succeeded", (ended["error"], ended["steps"])
    return ended


def plan(sites: ThreeSites) -> dict[str, Any]:
    return dict(sites.control.ok("GET", "/plans/shop"))


def test_on_to_a_third_site_and_back_to_the_first(sites: ThreeSites) -> None:
    onward = text("beta", "gamma", "dmz", "edge")
    # Not while it is replicated to where it was made for.
    sites.control.refused(409, "plan-cannot-move", "PUT", "/plans/shop", {"source": onward})
    run(sites, "failover", to_site="beta")
    problem = sites.control.refused(422, "site-unknown", "POST", "/plans/shop:reprotect", {"to_site": "gamma"})
    assert "target_site: gamma" in problem["hint"]
    sites.control.refused(
        409, "plan-cannot-move", "PUT", "/plans/shop", {"source": text("alpha", "gamma", "lan", "edge")}
    )
    at_beta = {point["checkpoint_id"] for point in sites.checkpoints()}
    apply(sites, onward, at="beta")
    assert len(sites.alpha.of("replicate")) == 0
    fences = len(sites.alpha.of("machine-fence"))

    preview = sites.control.ok("POST", "/plans/shop:reprotect-preview", {"to_site": "gamma"})
    assert preview["before"]["source_site"] == "alpha"
    assert (preview["after"]["source_site"], preview["after"]["target_site"]) == ("beta", "gamma")
    run(sites, "reprotect", to_site="gamma")
    orders = [disk for params in sites.gamma.of("replicate") for disk in params["disks"]]
    assert sorted((disk["disk_key"], disk["base_point"], disk["old_disk"]) for disk in orders) == [
        ("made-db/vda", None, None),
        ("made-web/vda", None, None),
    ]
    assert len(sites.alpha.of("machine-fence")) == fences, "nothing is said to a site that has no part in it"
    after = plan(sites)
    assert (after["state"], after["active_site"], after["epoch"]) == ("protected", "beta", 2)
    # What lies at the site that is the source now stays listed.
    assert at_beta < {point["checkpoint_id"] for point in sites.checkpoints()}

    run(sites, "failover", to_site="gamma")
    made = sites.gamma.of("machine-create")
    assert [(item["name"], item["purpose"], item["epoch"]) for item in made] == [
        ("db", "failover", 3),
        ("web", "failover", 3),
    ]
    assert {nic["network"] for item in made for nic in item["nics"]} == {"edge"}
    assert sites.beta.fenced == {"made-db": 3, "made-web": 3}
    after = plan(sites)
    assert (after["state"], after["active_site"]) == ("failed-over", "gamma")

    # Back at the first site the old primaries rest, and only what differs from their disks is copied.
    apply(sites, text("gamma", "alpha", "edge", "lan"), at="gamma")
    run(sites, "reprotect")
    assert {params["machine_id"] for params in sites.alpha.of("machine-fence")[fences:]} == {"id-db", "id-web"}
    orders = [disk for params in sites.alpha.of("replicate") for disk in params["disks"]]
    assert sorted(disk["old_disk"] for disk in orders) == ["id-db/vda", "id-web/vda"]
    after = plan(sites)
    assert (after["state"], after["active_site"], after["direction"]) == (
        "protected",
        "gamma",
        {"source": "gamma", "target": "alpha"},
    )


def test_not_while_the_old_primary_of_a_forced_failover_is_not_fenced(sites: ThreeSites) -> None:
    sites.alpha_node.stop()
    run(sites, "failover", to_site="beta", mode="unplanned")
    apply(sites, text("beta", "gamma", "dmz", "edge"), at="beta")
    wish = {"accept_divergence": True}
    sites.control.refused(409, "old-primary-not-fenced", "POST", "/plans/shop:reprotect", wish)
    sites.alpha_node.start()
    until(lambda: "old-primary-not-fenced" not in plan(sites)["conditions"], "the old primaries are fenced")
    problem = sites.control.refused(409, "divergent", "POST", "/plans/shop:reprotect", {})
    assert "'alpha'" in problem["detail"]
    run(sites, "reprotect", **wish)
    assert plan(sites)["direction"] == {"source": "beta", "target": "gamma"}
