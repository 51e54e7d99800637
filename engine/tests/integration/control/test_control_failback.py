"""The way back: replication turned, failback, and on again the first way; what is refused and what is kept."""

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


def failover(sites: TwoSites, to_site: str, **wish: Any) -> dict[str, Any]:
    run = sites.control.ok("POST", "/plans/shop:failover", {"to_site": to_site, **wish})["run"]
    ended = sites.ended(run["run_id"])
    assert ended["state"] == "succeeded", (ended["error"], ended["steps"])
    return ended


def reprotect(sites: TwoSites, **wish: Any) -> dict[str, Any]:
    run = sites.control.ok("POST", "/plans/shop:reprotect", wish)["run"]
    return sites.ended(run["run_id"])


def plan(sites: TwoSites) -> dict[str, Any]:
    return dict(sites.control.ok("GET", "/plans/shop"))


def calls(site: Any, kind: str) -> list[str]:
    return [params["machine_id"] for params in site.of(kind)]


def test_there_and_back_and_there_again(sites: TwoSites) -> None:
    failover(sites, "beta")
    sites.control.refused(409, "failback-unavailable", "POST", "/plans/shop:failover", {"to_site": "alpha"})
    preview = sites.control.ok("POST", "/plans/shop:reprotect-preview", {})
    assert (preview["after"]["source_site"], preview["after"]["target_site"]) == ("beta", "alpha")
    copied = len(sites.beta.of("replicate"))
    run = reprotect(sites)
    assert run["state"] == "succeeded", (run["error"], run["steps"])

    # Read at beta, written at alpha, beginning with the disks of the old primaries.
    assert sorted(point["machine_ids"] for point in sites.beta.of("point")) == [["made-db"], ["made-web"]]
    orders = [params["disks"][0] for params in sites.alpha.of("replicate")]
    assert sorted((disk["disk_key"], disk["old_disk"], disk["base_point"]) for disk in orders) == [
        ("made-db/vda", "id-db/vda", None),
        ("made-web/vda", "id-web/vda", None),
    ]
    assert len(sites.beta.of("replicate")) == copied
    after = plan(sites)
    assert (after["state"], after["active_site"], after["epoch"]) == ("protected", "beta", 2)
    assert all(machine["rpo_s"] is not None for machine in after["machines"])
    again = sites.control.call("POST", "/plans/shop:reprotect", {})
    assert (again.status_code, again.json()) == (200, {"run": None, "changed": False})
    assert sites.replicate()["state"] == "succeeded"
    assert sites.alpha.of("replicate")[-1]["disks"][0]["base_point"] is not None
    # A drill of it is made where it would be recovered now.
    drill = sites.ended(sites.control.ok("POST", "/plans/shop:drill", {})["run"]["run_id"])
    assert drill["state"] == "succeeded", (drill["error"], drill["steps"])
    made = sites.alpha.of("machine-create")
    assert {nic["network"] for item in made for nic in item["nics"]} == {sites.alpha.of("network-create")[0]["name"]}

    run = failover(sites, "alpha")
    assert [machine["rpo_s"] for machine in run["machines"]] == [0.0, 0.0]
    assert calls(sites.beta, "machine-stop") == ["made-web", "made-db"]
    assert sites.beta.fenced == {"made-db": 3, "made-web": 3}
    made = sites.alpha.of("machine-create")[2:]
    assert [(item["name"], item["purpose"], item["epoch"], item["replaces"]) for item in made] == [
        ("db", "failback", 3, "id-db"),
        ("web", "failback", 3, "id-web"),
    ]
    assert [nic["network"] for item in made for nic in item["nics"]] == ["lan", "lan"]
    assert sites.alpha.asked()["machine-unfence"] == 0
    after = plan(sites)
    assert (after["state"], after["active_site"], after["epoch"]) == ("failed-over", "alpha", 3)

    assert reprotect(sites)["state"] == "succeeded"
    orders = [params["disks"][0] for params in sites.beta.of("replicate")[copied:]]
    assert sorted((disk["disk_key"], disk["old_disk"]) for disk in orders) == [
        (f"{machine['machine_id']}/vda", f"made-{machine['name']}/vda") for machine in plan(sites)["machines"]
    ]
    failover(sites, "beta")
    made = sites.beta.of("machine-create")[2:]
    assert [(item["name"], item["purpose"], item["replaces"]) for item in made] == [
        ("db", "failover", "made-db"),
        ("web", "failover", "made-web"),
    ]
    assert [nic["network"] for item in made for nic in item["nics"]] == ["dmz", "dmz"]
    assert plan(sites)["epoch"] == 4


def test_a_forced_failover_is_turned_only_knowingly_and_after_the_fence(sites: TwoSites) -> None:
    sites.alpha_node.stop()
    failover(sites, "beta", mode="unplanned")
    problem = sites.control.refused(409, "divergent", "POST", "/plans/shop:reprotect", {})
    assert problem["field"] == "accept_divergence"
    before = len(sites.alpha.calls)
    wish = {"accept_divergence": True}
    assert sites.control.ok("POST", "/plans/shop:reprotect-preview", wish)["warnings"]
    run_id = sites.control.ok("POST", "/plans/shop:reprotect", wish)["run"]["run_id"]
    sites.alpha_node.start()
    run = sites.ended(run_id)
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    assert sites.alpha.fenced == {"id-db": 2, "id-web": 2}
    later = [kind for kind, _ in sites.alpha.calls][before:]
    assert later.index("machine-fence") < later.index("replicate")
    assert "machine-start" not in later
    failover(sites, "alpha")
    assert plan(sites)["active_site"] == "alpha"


def test_what_fails_before_the_turn_changes_nothing(sites: TwoSites) -> None:
    failover(sites, "beta")
    sites.alpha.fail("machine-fence", Permanent("not kept", code="fence-not-kept"))
    run = reprotect(sites)
    assert (run["state"], run["error"]["code"]) == ("failed", "fence-not-kept")
    assert plan(sites)["state"] == "failed-over"
    assert sites.beta.asked()["point"] == 0
    assert reprotect(sites)["state"] == "succeeded"


def test_a_copy_that_fails_after_the_turn_is_made_by_the_schedule(sites: TwoSites) -> None:
    failover(sites, "beta")
    sites.alpha.fail("replicate", Permanent("one", code="odd"))
    run = reprotect(sites)
    assert (run["state"], run["error"]["code"]) == ("failed", "odd")
    until(lambda: plan(sites)["state"] == "protected", "the schedule copies what is missing")


def test_a_failback_that_fails_before_its_epoch_leads_back_to_where_it_ran(sites: TwoSites) -> None:
    failover(sites, "beta")
    assert reprotect(sites)["state"] == "succeeded"
    sites.beta.fail("machine-fence", Permanent("not kept", code="fence-not-kept"))
    run = sites.ended(sites.control.ok("POST", "/plans/shop:failover", {"to_site": "alpha"})["run"]["run_id"])
    assert (run["state"], run["error"]["code"]) == ("failed", "fence-not-kept")
    after = plan(sites)
    assert (after["state"], after["active_site"], after["epoch"]) == ("protected", "beta", 2)
    assert {name: sites.beta.machines[name]["power"] for name in ("made-db", "made-web")} == {
        "made-db": "on",
        "made-web": "on",
    }
    assert sites.alpha.asked()["machine-create"] == 0


@pytest.mark.parametrize("kind", ["machine-fence", "replicate"])
def test_a_control_plane_killed_in_a_reprotect_ends_it_right(sites: TwoSites, kind: str) -> None:
    failover(sites, "beta")
    gate = sites.alpha.hold(kind)
    before = sites.alpha.asked()[kind]
    run_id = sites.control.ok("POST", "/plans/shop:reprotect", {})["run"]["run_id"]
    until(lambda: sites.alpha.asked()[kind] > before, f"{kind} begins")
    sites.control.kill()
    for path in sites.control.home.path.glob("dbos.db*"):
        path.unlink()  # the orchestrator remembers nothing
    gate.set()
    sites.control.start()
    run = sites.ended(run_id)
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    assert plan(sites)["state"] == "protected"
    assert sites.beta.asked()["point"] == 2


def test_a_failover_that_was_not_committed_is_rolled_back(sites: TwoSites) -> None:
    failover(sites, "beta", commit="manual")
    sites.control.refused(409, "not-committed", "POST", "/plans/shop:reprotect", {})
    preview = sites.control.ok("POST", "/plans/shop:rollback-preview")
    assert (preview["after"]["active_site"], preview["after"]["epoch"]) == ("alpha", 3)
    sites.beta.fail("machine-fence", Permanent("not kept", code="fence-not-kept"))
    run = sites.ended(sites.control.ok("POST", "/plans/shop:rollback")["run"]["run_id"])
    assert (run["state"], run["error"]["code"]) == ("failed", "fence-not-kept")
    assert {sites.beta.machines[name]["power"] for name in ("made-db", "made-web")} == {"on"}
    assert (plan(sites)["state"], plan(sites)["epoch"]) == ("failed-over", 2)
    run = sites.ended(sites.control.ok("POST", "/plans/shop:rollback")["run"]["run_id"])
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    after = plan(sites)
    assert (after["state"], after["active_site"], after["epoch"]) == ("protected", "alpha", 3)
    assert sites.alpha.fenced == {}
    assert {machine["power"] for machine in sites.alpha.machines.values()} == {"on"}
    assert sites.beta.fenced == {"made-db": 3, "made-web": 3}
    assert {sites.beta.machines[name]["power"] for name in ("made-db", "made-web")} == {"off"}
    assert sites.replicate()["state"] == "succeeded"
    assert sites.beta.of("replicate")[-1]["disks"][0]["incremental"]  # its base is that of before
    failover(sites, "beta")
    assert [item["replaces"] for item in sites.beta.of("machine-create")[2:]] == ["made-db", "made-web"]
    sites.control.refused(409, "committed", "POST", "/plans/shop:rollback")


def test_a_commit_ends_the_way_back_once(sites: TwoSites) -> None:
    sites.control.refused(409, "nothing-to-roll-back", "POST", "/plans/shop:rollback")
    failover(sites, "beta", commit="manual")
    assert sites.control.ok("POST", "/plans/shop:commit")["changed"] is True
    assert sites.control.ok("POST", "/plans/shop:commit")["changed"] is False
    sites.control.refused(409, "committed", "POST", "/plans/shop:rollback")
    assert reprotect(sites)["state"] == "succeeded"


def test_a_migration_retires_the_source_and_leaves_no_way_back(sites: TwoSites) -> None:
    sites.control.refused(409, "not-a-migration", "POST", "/plans/shop:migrate", {"to_site": "alpha"})
    assert sites.control.ok("POST", "/plans/shop:migrate-preview", {})["after"]["purpose"] == "migration"
    run = sites.ended(sites.control.ok("POST", "/plans/shop:migrate", {})["run"]["run_id"])
    assert (run["state"], run["kind"]) == ("succeeded", "migrate"), (run["error"], run["steps"])
    assert [item["purpose"] for item in sites.beta.of("machine-create")] == ["migration", "migration"]
    until(lambda: sites.alpha.asked()["machine-untrack"] == 2, "the source is retired")
    assert sites.alpha.fenced == {"id-db": 2, "id-web": 2}
    after = plan(sites)
    assert (after["state"], after["active_site"], after["activity"]) == ("migrated", "beta", "inactive")
    again = sites.control.call("POST", "/plans/shop:migrate", {})
    assert (again.status_code, again.json()["changed"]) == (200, False)
    assert sites.control.call("POST", "/plans/shop:reprotect", {}).status_code == 409
    sites.control.refused(409, "failback-unavailable", "POST", "/plans/shop:failover", {"to_site": "alpha"})
