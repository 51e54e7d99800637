"""Failovers: the order of a planned one, the way back before the epoch, the unplanned one, the stale primary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.two_sites import TwoSites, two_sites
from farshore.errors import Conflict, Permanent
from farshore.model.task import Task


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        both.plan()
        both.protect()
        yield both


def failover(sites: TwoSites, **wish: Any) -> str:
    return str(sites.control.ok("POST", "/plans/shop:failover", {"to_site": "beta", **wish})["run"]["run_id"])


def plan(sites: TwoSites) -> dict[str, Any]:
    return dict(sites.control.ok("GET", "/plans/shop"))


def test_a_planned_failover_goes_by_the_book(sites: TwoSites) -> None:
    preview = sites.control.ok("POST", "/plans/shop:failover-preview", {"to_site": "beta"})
    assert preview["after"]["stop"] == [["web"], ["db"]]
    assert preview["after"]["epoch"] == 2
    assert sites.alpha.asked()["machine-stop"] == 0
    run = sites.ended(failover(sites))
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    assert [machine["rpo_s"] for machine in run["machines"]] == [0.0, 0.0]
    assert all(machine["rto_s"] > 0 for machine in run["machines"])
    names = [step["name"] for step in run["steps"]]
    first = [names.index(name) for name in ("preflight", "sync", "stop", "final sync", "fence", "raise epoch")]
    assert first == sorted(first)
    assert names.index("raise epoch") < names.index("create") < names.index("power on") < names.index("validate")
    assert [params["machine_id"] for params in sites.alpha.of("machine-stop")] == ["id-web", "id-db"]
    order = [kind for kind, _ in sites.alpha.calls if kind in {"machine-stop", "point", "machine-fence"}]
    assert order[-6:] == ["machine-stop", "machine-stop", "point", "point", "machine-fence", "machine-fence"]
    assert sites.alpha.fenced == {"id-db": 2, "id-web": 2}
    made = sites.beta.of("machine-create")
    assert [(item["name"], item["purpose"], item["epoch"], item["nics"][0]["network"]) for item in made] == [
        ("db", "failover", 2, "dmz"),
        ("web", "failover", 2, "dmz"),
    ]
    assert made[0]["nics"][0]["address"] == "10.8.0.10"
    final = {cycle["checkpoint_id"] for cycle in run["cycles"][2:]}
    assert {machine["checkpoint_id"] for machine in run["machines"]} == final
    after = plan(sites)
    assert (after["state"], after["active_site"], after["epoch"]) == ("failed-over", "beta", 2)
    assert [machine["state"] for machine in after["machines"]] == ["failed-over", "failed-over"]
    again = sites.control.call("POST", "/plans/shop:failover", {"to_site": "beta"})
    assert (again.status_code, again.json()) == (200, {"run": None, "changed": False})
    assert sites.control.ok("POST", "/plans/shop:failover-preview", {"to_site": "beta"})["changed"] is False
    sites.control.refused(409, "failback-unavailable", "POST", "/plans/shop:failover", {"to_site": "alpha"})
    sites.control.refused(409, "plan-failed-over", "POST", "/plans/shop:replicate", {})
    machine = sites.control.ok("GET", "/machines/id-web")
    assert (machine["state"], machine["active_site"], machine["rpo_s"]) == ("failed-over", "beta", None)
    sites.control.ok("POST", "/sites/beta:refresh")
    until(lambda: sites.control.ok("GET", "/machines?site=beta&name=web")["items"], "beta is looked at")
    found = until(lambda: sites.control.ok("GET", "/machines?site=beta&name=web")["items"], "beta is looked at")
    assert found[0]["plan"] == "shop"
    audit = sites.control.ok("GET", "/audit")
    assert audit["chain_broken_at"] is None
    raised = next(item for item in audit["items"] if item["action"] == "raise-epoch")
    assert (raised["detail"]["epoch_seen"], raised["detail"]["epoch"]) == (1, 2)


def test_the_old_primary_is_never_replicated_from_again(sites: TwoSites) -> None:
    assert sites.ended(failover(sites))["state"] == "succeeded"
    assert sites.control.ok("POST", "/plans/shop:protect", {"state": "unprotected"})["state"] == "unprotected"
    problem = sites.control.refused(409, "plan-failed-over", "POST", "/plans/shop:protect", {"state": "protected"})
    assert "beta" in problem["detail"]


def test_a_machine_that_does_not_stop_leads_back(sites: TwoSites) -> None:
    sites.alpha.fail("machine-stop", Conflict("web did not shut down", code="stop-timeout"))
    run = sites.ended(failover(sites))
    assert (run["state"], run["error"]["code"]) == ("failed", "stop-timeout")
    after = plan(sites)
    assert (after["state"], after["active_site"], after["epoch"]) == ("protected", "alpha", 1)
    assert all(machine["power"] == "on" for machine in sites.alpha.machines.values())
    assert sites.beta.asked()["machine-create"] == 0
    assert sites.replicate()["state"] == "succeeded"


def test_a_fence_that_does_not_hold_leads_back_with_everything_running(sites: TwoSites) -> None:
    sites.alpha.fail("machine-fence", Permanent("not kept", code="fence-not-kept"))
    run = sites.ended(failover(sites))
    assert (run["state"], run["error"]["code"]) == ("failed", "fence-not-kept")
    assert sites.alpha.fenced == {}
    assert all(machine["power"] == "on" for machine in sites.alpha.machines.values())
    assert plan(sites)["epoch"] == 1
    assert sites.ended(failover(sites))["state"] == "succeeded"


@pytest.mark.parametrize(
    ("kind", "stands", "error"),
    [
        ("machine-stop", {"power": "on"}, "not-verified-off"),
        ("machine-fence", {"power": "off", "fenced": False}, "fence-not-kept"),
        ("machine-fence", {"power": "on", "fenced": True}, "not-verified-off"),
    ],
)
def test_what_is_read_back_counts_and_not_that_it_was_ordered(
    sites: TwoSites, kind: str, stands: dict[str, Any], error: str
) -> None:
    sites.alpha_node.handlers[kind] = lambda task: {"machine_id": task.params["machine_id"], **stands}
    run = sites.ended(failover(sites))
    assert (run["state"], run["error"]["code"]) == ("failed", error)
    after = plan(sites)
    assert (after["state"], after["active_site"], after["epoch"]) == ("protected", "alpha", 1)
    assert sites.beta.asked()["machine-create"] == 0


def test_a_machine_that_was_off_is_not_started_on_the_way_back(sites: TwoSites) -> None:
    sites.alpha.machines["id-web"]["power"] = "off"
    sites.control.ok("POST", "/sites/alpha:refresh")
    sites.beta.fail("replicate", Permanent("one", code="odd"), Permanent("two", code="odd"))
    run = sites.ended(failover(sites))
    assert run["state"] == "failed"
    sites.alpha.fail("machine-fence", Permanent("not kept", code="fence-not-kept"))
    assert sites.ended(failover(sites))["state"] == "failed"
    assert {machine["name"]: machine["power"] for machine in sites.alpha.machines.values()} == {
        "db": "on",
        "web": "off",
    }


def test_a_cancelled_failover_leads_back_before_the_epoch_and_not_after(sites: TwoSites) -> None:
    sites.alpha.hold("machine-fence")
    run_id = failover(sites)
    until(lambda: sites.alpha.asked()["machine-fence"], "the fence begins")
    sites.control.refused(409, "failover-running", "POST", "/plans/shop:failover", {"to_site": "beta"})
    sites.control.ok("POST", f"/runs/{run_id}:cancel")
    run = sites.ended(run_id)
    assert run["state"] == "cancelled"
    assert plan(sites)["state"] == "protected"
    assert all(machine["power"] == "on" for machine in sites.alpha.machines.values())
    sites.alpha._gates["machine-fence"].set()
    gate = sites.beta.hold("machine-create")
    run_id = failover(sites)
    until(lambda: sites.beta.asked()["machine-create"], "the epoch is raised")
    sites.control.refused(409, "past-epoch", "POST", f"/runs/{run_id}:cancel")
    gate.set()
    assert sites.ended(run_id)["state"] == "succeeded"


def test_a_failover_that_fails_after_the_epoch_goes_on_when_ordered_again(sites: TwoSites) -> None:
    sites.beta.green["db"] = False
    run = sites.ended(failover(sites))
    assert (run["state"], run["error"]["code"]) == ("failed", "probe-failed")
    after = plan(sites)
    assert (after["state"], after["epoch"], after["active_site"]) == ("failing-over", 2, "beta")
    assert sites.alpha.fenced == {"id-db": 2, "id-web": 2}
    assert sites.alpha.asked()["machine-start"] == 0
    sites.beta.green["db"] = True
    run = sites.ended(failover(sites))
    assert run["state"] == "succeeded"
    assert plan(sites)["state"] == "failed-over"
    assert plan(sites)["epoch"] == 2
    assert sites.alpha.asked()["machine-stop"] == 2


def test_an_unplanned_failover_asks_nothing_of_the_source_and_fences_it_at_first_contact(sites: TwoSites) -> None:
    sites.alpha_node.stop()
    before = len(sites.alpha.calls)
    run = sites.ended(failover(sites, mode="unplanned"))
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    assert all(machine["rpo_s"] > 0 for machine in run["machines"])
    assert len(sites.alpha.calls) == before
    assert "old-primary-not-fenced" in plan(sites)["conditions"]
    sites.alpha.calls.clear()
    reply = sites.alpha_node.poll()  # first contact
    assert [task.kind for task in reply.tasks] == ["machine-fence", "machine-fence"]
    for task in reply.tasks:
        sites.alpha_node.running[task.task_id] = task
    assert sites.alpha_node.poll().tasks == ()  # and nothing else before that has ended
    for task in reply.tasks:
        sites.alpha_node.report(task, **sites.alpha_node.execute(task))
    assert sites.alpha.fenced == {"id-db": 2, "id-web": 2}
    until(lambda: "old-primary-not-fenced" not in plan(sites)["conditions"], "the fence is known to hold")
    sites.alpha_node.start()
    actions = [item["action"] for item in sites.control.ok("GET", "/audit")["items"]]
    assert actions.count("fence_old_primary") == 2
    assert "force-epoch" in actions


def test_an_unplanned_failover_asks_nothing_of_a_source_that_answers_but_to_stay_down(sites: TwoSites) -> None:
    called: list[str] = []
    fence = sites.alpha_node.handlers["machine-fence"]

    def refuse(task: Task) -> dict[str, Any]:
        called.append(task.kind)
        raise Permanent(f"{task.kind} was asked of the source", code="asked")

    def noted(task: Task) -> dict[str, Any] | None:
        called.append(task.kind)
        return fence(task)

    kinds = set(sites.alpha_node.handlers) - {"machine-fence", "inventory"}
    sites.alpha_node.handlers |= {**dict.fromkeys(kinds, refuse), "machine-fence": noted}
    run = sites.ended(failover(sites, mode="unplanned"))
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    until(lambda: "old-primary-not-fenced" not in plan(sites)["conditions"], "the fence is known to hold")
    # What the control plane keeps at its sites may have been on its way, or comes once the machines stay down.
    assert set(called) - {"bundle-put"} == {"machine-fence"}


def test_an_unplanned_failover_in_the_middle_of_a_cycle_waits_for_the_target_only(sites: TwoSites) -> None:
    gate = sites.beta.hold("replicate")
    sites.control.ok("POST", "/plans/shop:replicate", {})
    until(lambda: sites.beta.asked()["replicate"] == 4, "both copy")
    sites.alpha_node.stop()
    run_id = failover(sites, mode="unplanned")
    run = sites.ended(run_id)
    gate.set()
    assert run["state"] == "succeeded"
    assert all(item["sequence"] == 1 for item in sites.checkpoints())


def test_a_planned_failover_whose_source_dies_is_superseded_by_force(sites: TwoSites) -> None:
    sites.alpha.hold("machine-stop")
    stuck = failover(sites)
    until(lambda: sites.alpha.asked()["machine-stop"], "the stop begins")
    sites.alpha_node.stop()
    wish = {"to_site": "beta", "mode": "unplanned"}
    sites.control.refused(409, "failover-running", "POST", "/plans/shop:failover", wish)
    run = sites.ended(failover(sites, mode="unplanned", force=True))
    assert run["state"] == "succeeded"
    old = sites.control.ok("GET", f"/runs/{stuck}")
    assert (old["state"], old["error"]["code"]) == ("failed", "superseded")
    assert plan(sites)["epoch"] == 2


def test_bad_wishes_are_refused_by_field(sites: TwoSites) -> None:
    problem = sites.control.refused(422, "site-unknown", "POST", "/plans/shop:failover", {"to_site": "betta"})
    assert problem["field"] == "to_site"
    assert "beta" in problem["hint"]
    wish = {"to_site": "beta", "checkpoint": sites.checkpoints()[0]["checkpoint_id"]}
    sites.control.refused(422, "checkpoint-not-latest", "POST", "/plans/shop:failover", wish)
    sites.control.refused(404, "plan-unknown", "POST", "/plans/shopp:failover", {"to_site": "beta"})
    answer = sites.control.call("POST", "/plans/shop:failover", {"to_site": "alpha"})
    assert (answer.status_code, answer.json()["changed"]) == (200, False)


@pytest.mark.parametrize(
    ("site", "kind"),
    [
        ("beta", "replicate"),
        ("alpha", "machine-stop"),
        ("alpha", "machine-fence"),
        ("beta", "machine-create"),
        ("beta", "machine-probe"),
    ],
)
def test_a_control_plane_killed_in_a_failover_ends_it_right(sites: TwoSites, site: str, kind: str) -> None:
    where = sites.alpha if site == "alpha" else sites.beta
    asked = where.asked()[kind]
    gate = where.hold(kind)
    run_id = failover(sites)
    until(lambda: where.asked()[kind] > asked, f"{kind} begins")
    sites.control.kill()
    gate.set()
    sites.control.start()
    run = sites.ended(run_id)
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    assert sites.alpha.asked()["machine-stop"] == 2
    assert sites.alpha.asked()["machine-fence"] == 2
    assert sites.beta.asked()["machine-create"] == 2
    assert plan(sites)["epoch"] == 2


@pytest.mark.parametrize("mode", ["planned", "unplanned"])
def test_a_failover_begun_anew_after_the_epoch_touches_no_source(sites: TwoSites, mode: str) -> None:
    gate = sites.beta.hold("machine-probe")
    run_id = failover(sites, mode=mode)
    until(lambda: sites.beta.asked()["machine-probe"], "the machine is up at beta")
    until(lambda: len(sites.alpha.fenced) == 2, "the old primary is fenced")
    sites.control.kill()
    for path in sites.control.home.path.glob("dbos.db*"):
        path.unlink()  # the orchestrator remembers nothing
    sites.control.start()
    gate.set()
    run = sites.ended(run_id)
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    assert sites.alpha.asked()["machine-unfence"] == sites.alpha.asked()["machine-start"] == 0
    assert sites.alpha.fenced == {"id-db": 2, "id-web": 2}
    assert all(machine["power"] == "off" for machine in sites.alpha.machines.values())
    after = plan(sites)
    assert (after["state"], after["active_site"], after["epoch"]) == ("failed-over", "beta", 2)


def test_a_failover_on_its_way_back_is_begun_anew_on_its_way_back(sites: TwoSites) -> None:
    sites.alpha.fail("machine-fence", Permanent("not kept", code="fence-not-kept"))
    gate = sites.alpha.hold("machine-start")
    run_id = failover(sites)
    until(lambda: sites.alpha.asked()["machine-start"], "the source is started again")
    sites.control.kill()
    for path in sites.control.home.path.glob("dbos.db*"):
        path.unlink()
    sites.control.start()
    gate.set()
    run = sites.ended(run_id)
    assert (run["state"], run["error"]["code"]) == ("failed", "fence-not-kept")
    assert all(machine["power"] == "on" for machine in sites.alpha.machines.values())
    after = plan(sites)
    assert (after["state"], after["active_site"], after["epoch"]) == ("protected", "alpha", 1)


def test_an_old_primary_that_still_runs_is_powered_off_at_first_contact(sites: TwoSites) -> None:
    sites.alpha_node.stop()
    assert sites.ended(failover(sites, mode="unplanned"))["state"] == "succeeded"
    assert all(machine["power"] == "on" for machine in sites.alpha.machines.values())
    sites.alpha.ignore_power_off = 1
    sites.alpha_node.start()
    until(lambda: "old-primary-not-fenced" not in plan(sites)["conditions"], "the fence is known to hold")
    assert all(machine["power"] == "off" for machine in sites.alpha.machines.values())
    assert all(params["power_off"] for params in sites.alpha.of("machine-fence"))
    assert sites.alpha.asked()["machine-fence"] == 3  # a machine that was still on is no fenced one
