"""Drills: order, isolation, probes, clean-up, faults, restarts of the control plane."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.scripted_site import PICTURE
from doubles.two_sites import TwoSites, two_sites
from farshore.control.clock import parse_iso
from farshore.control.store.database import Store
from farshore.control.store.records import DueDrill, Run
from farshore.errors import Permanent, Retry
from farshore.recovery import evidence
from sqlalchemy import update


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        both.plan()
        both.protect()
        yield both


def drill(sites: TwoSites, **wish: object) -> str:
    return str(sites.control.ok("POST", "/plans/shop:drill", wish)["run"]["run_id"])


def test_a_drill_starts_machines_in_order_proves_them_and_leaves_nothing(sites: TwoSites) -> None:
    preview = sites.control.ok("POST", "/plans/shop:drill-preview", {})
    assert preview["after"]["order"] == [["db"], ["web"]]
    assert preview["after"]["networks"][0]["subnet"] == "10.9.0.0/24"
    assert sites.beta.asked()["machine-create"] == 0
    run = sites.ended(drill(sites))
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    assert [machine["state"] for machine in run["machines"]] == ["green", "green"]
    assert all(machine["rto_s"] > 0 and machine["rpo_s"] >= 0 for machine in run["machines"])
    assert [machine["address"] for machine in run["machines"]] == ["10.9.0.10", "10.9.0.11"]
    network = sites.beta.of("network-create")[0]
    assert network["tag"] == run["run_id"]
    assert network["name"].startswith("farshore-drill-")
    assert sorted(network["hosts"].values()) == ["10.9.0.10", "10.9.0.11"]
    made = {order["facts"]["name"]: order for order in sites.beta.of("machine-create")}
    assert made["db"]["name"].startswith("db-drill-")
    assert made["db"]["nics"][0] == {
        "mac": made["db"]["facts"]["nics"][0]["mac"],
        "network": network["name"],
        "address": "10.9.0.10",
        "source_mac": "",
    }
    order = [params["machine_id"].split("-drill-")[0] for params in sites.beta.of("machine-power-on")]
    assert order == ["made-db", "made-web"]
    steps = [(step["name"], step["machine"]) for step in run["steps"]]
    assert steps.index(("validate", "db")) < steps.index(("power on", "web"))
    assert steps[-3:] == [("clean-up", None), ("proof", None), ("replication", None)]
    assert steps.index(("isolation", None)) < steps.index(("create", "db"))
    assert steps.index(("packets outside", None)) < steps.index(("clean-up", None))
    assert [asked["canaries"] for asked in sites.beta.of("isolation")] == [True, False]
    isolation = run["facts"]["isolation"]
    assert isolation["proven"]
    assert [(one["control"], one["reached"]) for one in isolation["canaries"]] == [(False, False), (True, True)]
    assert [one["outside"] for one in isolation["packets"]] == [0]
    assert not sites.beta.tagged
    during = run["facts"]["during"]
    assert (during["resent_bytes"], during["cycles_failed"], during["cycles_skipped"]) == (0, 0, 0)
    assert all(not item["in_use_by"] for item in sites.checkpoints())
    report = sites.control.ok("GET", f"/runs/{run['run_id']}/report")
    evidence.verify(report)
    assert report["body"]["checkpoints"][0]["disks"][0]["tree_root"] == "00" * 32
    page = sites.control.call("GET", f"/runs/{run['run_id']}/report.html")
    assert page.headers["content-type"].startswith("text/html")
    assert "db" in page.text
    assert (sites.control.home.reports / f"{run['run_id']}.json").exists()
    second = sites.ended(drill(sites))
    evidence.verify_chain([report, sites.control.ok("GET", f"/runs/{second['run_id']}/report")])


def test_what_machines_showed_is_kept_and_its_digest_is_in_the_report(sites: TwoSites) -> None:
    sites.beta.green["web"] = False  # one that does not come up is the more worth a look
    run = sites.ended(drill(sites))
    assert run["state"] == "failed"
    report = sites.control.ok("GET", f"/runs/{run['run_id']}/report")
    seen = report["body"]["run"]["facts"]["sights"]
    assert sorted(seen) == ["db", "web"]
    for name, one in seen.items():
        screen = sites.control.call("GET", one["screen_url"].removeprefix("/api/v1"))
        assert screen.headers["content-type"] == "image/png"
        assert (hashlib.sha256(screen.content).hexdigest(), screen.content) == (one["screen_sha256"], PICTURE)
        console = sites.control.call("GET", one["console_url"].removeprefix("/api/v1"))
        assert console.headers["content-type"].startswith("text/plain")
        assert hashlib.sha256(console.content).hexdigest() == one["console_sha256"]
        assert console.text.startswith(f"console of {name}-drill-")
        kept = sites.control.home.reports / f"{run['run_id']}-{name}.png"
        assert kept.read_bytes() == PICTURE
    sites.control.refused(404, "sight-unknown", "GET", f"/runs/{run['run_id']}/machines/nobody/screen")


def test_a_machine_that_cannot_be_looked_at_fails_nothing(sites: TwoSites) -> None:
    sites.beta.fail("machine-look", *[Permanent("no eyes", code="blind")] * 2)
    run = sites.ended(drill(sites))
    assert run["state"] == "succeeded"
    assert "sights" not in run["facts"]


def test_a_network_that_leads_somewhere_fails_the_drill_before_anything_is_made(sites: TwoSites) -> None:
    sites.beta.leaks = True
    run = sites.ended(drill(sites))
    assert (run["state"], run["error"]["code"]) == ("failed", "not-isolated")
    assert "guest a reached hypervisor" in run["error"]["message"]
    step = next(step for step in run["steps"] if step["name"] == "isolation")
    assert (step["state"], step["error"]["code"]) == ("failed", "not-isolated")
    assert sites.beta.asked()["machine-create"] == 0
    assert not sites.beta.tagged


def test_packets_that_got_outside_fail_the_drill(sites: TwoSites) -> None:
    gate = sites.beta.hold("machine-look")
    run_id = drill(sites)
    until(lambda: sites.beta.asked()["machine-look"], "the machines are looked at")
    sites.beta.outside = 2
    gate.set()
    run = sites.ended(run_id)
    assert (run["state"], run["error"]["code"]) == ("failed", "not-isolated")
    assert run["facts"]["isolation"]["packets"][0]["outside"] == 2
    assert run["facts"]["isolation"]["canaries"]
    assert not sites.beta.tagged


def test_a_second_drill_is_refused_while_one_runs_and_its_checkpoint_stays(sites: TwoSites) -> None:
    gate = sites.beta.hold("machine-probe")
    run_id = drill(sites)
    until(lambda: sites.beta.asked()["machine-probe"], "the probe begins")
    problem = sites.control.refused(409, "drill-running", "POST", "/plans/shop:drill", {})
    assert problem["evidence"]["run"] == run_id
    sites.control.refused(409, "drill-running", "POST", "/plans/shop:failover", {"to_site": "beta"})
    used = next(item for item in sites.checkpoints() if item["in_use_by"] == [run_id])
    sites.control.refused(409, "checkpoint-in-use", "DELETE", f"/checkpoints/{used['checkpoint_id']}")
    assert "drilling" in sites.control.ok("GET", "/plans/shop")["conditions"]
    smaller = sites.control.ok("GET", "/plans/shop")["definition"]
    smaller["machines"] = smaller["machines"][:1]
    sites.control.refused(409, "run-open", "PUT", "/plans/shop", {"definition": smaller})
    sites.control.refused(409, "run-open", "POST", "/plans/shop:protect", {"state": "unprotected"})
    assert sites.replicate()["state"] == "succeeded"  # replication does not care
    gate.set()
    run = sites.ended(run_id)
    assert run["state"] == "succeeded"
    assert run["facts"]["during"]["cycles_published"] == 2


def test_a_red_probe_fails_the_run_says_which_and_nothing_is_left(sites: TwoSites) -> None:
    sites.beta.green["db"] = False
    run = sites.ended(drill(sites))
    assert run["state"] == "failed"
    assert run["error"]["code"] == "probe-failed"
    assert "db" in run["error"]["message"]
    assert [machine["state"] for machine in run["machines"]] == ["failed", "skipped"]
    assert [params["machine_id"] for params in sites.beta.of("machine-power-on")] == [
        sites.beta.of("machine-probe")[0]["machine_id"]
    ]
    assert not sites.beta.tagged


def test_a_machine_that_cannot_be_made_ends_the_drill_after_a_clean_up(sites: TwoSites) -> None:
    sites.beta.fail("machine-create", Permanent("no such CPU", code="cpu"))
    run = sites.ended(drill(sites))
    assert (run["state"], run["error"]["code"]) == ("failed", "cpu")
    assert sites.beta.asked()["machine-power-on"] == 0
    assert not sites.beta.tagged


def test_a_step_that_may_pass_is_tried_again(sites: TwoSites) -> None:
    sites.beta.fail("machine-power-on", Retry("hypervisor busy"))
    run = sites.ended(drill(sites))
    assert run["state"] == "succeeded"
    assert sites.beta.asked()["machine-power-on"] == 3


def test_a_cancelled_drill_stops_cleans_up_and_says_so(sites: TwoSites) -> None:
    sites.beta.hold("machine-probe")
    run_id = drill(sites)
    until(lambda: sites.beta.asked()["machine-probe"], "the probe begins")
    assert sites.control.call("POST", f"/runs/{run_id}:cancel").headers["X-Farshore-Changed"] == "true"
    run = sites.ended(run_id)
    assert run["state"] == "cancelled"
    assert not sites.beta.tagged
    assert all(not item["in_use_by"] for item in sites.checkpoints())
    assert sites.control.call("POST", f"/runs/{run_id}:cancel").headers["X-Farshore-Changed"] == "false"


def test_leftovers_fail_the_run_and_keep_the_checkpoint_until_they_are_gone(sites: TwoSites) -> None:
    sites.beta.leave_behind = ("network:stuck",)
    run = sites.ended(drill(sites))
    assert (run["state"], run["error"]["code"]) == ("failed", "leftovers")
    assert any(item["in_use_by"] for item in sites.checkpoints())
    sites.beta.leave_behind = ()
    ended = sites.control.ok("POST", "/plans/shop:drill-end")["run"]
    assert sites.ended(ended["run_id"])["state"] == "succeeded"
    assert not any(item["in_use_by"] for item in sites.checkpoints())


def test_a_kept_drill_runs_until_it_is_ended(sites: TwoSites) -> None:
    run = sites.ended(drill(sites, keep=True))
    assert run["state"] == "succeeded"
    assert sites.beta.tagged
    assert any(item["in_use_by"] for item in sites.checkpoints())
    sites.control.refused(409, "drill-running", "POST", "/plans/shop:drill", {})
    ended = sites.control.ok("POST", "/plans/shop:drill-end")
    assert ended["changed"] is True
    assert sites.ended(ended["run"]["run_id"])["state"] == "succeeded"
    assert not sites.beta.tagged
    again = sites.control.call("POST", "/plans/shop:drill-end")
    assert (again.status_code, again.json()) == (200, {"run": None, "changed": False})


def test_unknown_checkpoints_are_refused_by_name(sites: TwoSites) -> None:
    problem = sites.control.refused(404, "checkpoint-unknown", "POST", "/plans/shop:drill", {"checkpoint": "cp-nope"})
    assert problem["field"] == "checkpoint"
    assert "cp-" in problem["hint"]
    sites.control.refused(
        404, "checkpoint-unknown", "POST", "/plans/shop:drill", {"checkpoint": "2001-01-01T00:00:00Z"}
    )
    older = {item["machines"][0]: item for item in sites.checkpoints()}
    sites.replicate()
    run = sites.ended(drill(sites, checkpoint=older["web"]["checkpoint_id"]))
    assert run["machines"][1]["checkpoint_id"] == older["web"]["checkpoint_id"]
    assert run["machines"][0]["checkpoint_id"] == older["db"]["checkpoint_id"]  # of the same round


def test_a_control_plane_stopped_in_a_drill_goes_on_when_it_is_back(sites: TwoSites) -> None:
    gate = sites.beta.hold("machine-probe")
    run_id = drill(sites)
    until(lambda: sites.beta.asked()["machine-probe"], "the probe begins")
    assert sites.control.stop() == 0
    gate.set()
    sites.control.start()
    assert sites.ended(run_id)["state"] == "succeeded"
    assert "Traceback" not in sites.control.log()


@pytest.mark.parametrize(
    "kind",
    ["network-create", "machine-create", "machine-power-on", "machine-probe", "isolation", "machine-look", "sweep"],
)
def test_a_control_plane_killed_in_a_drill_ends_it_right(sites: TwoSites, kind: str) -> None:
    gate = sites.beta.hold(kind)
    run_id = drill(sites)
    until(lambda: sites.beta.asked()[kind], f"{kind} begins")
    sites.control.kill()
    gate.set()
    sites.control.start()
    run = sites.ended(run_id)
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    assert sites.beta.asked()["machine-create"] == 2
    assert sites.beta.asked()["machine-power-on"] == 2
    assert not sites.beta.tagged
    assert all(not item["in_use_by"] for item in sites.checkpoints())


def test_a_drill_whose_clean_up_fails_is_not_forgotten(sites: TwoSites) -> None:
    sites.beta.fail("sweep", Permanent("the hypervisor said no", code="odd"))
    run = sites.ended(drill(sites))
    assert (run["state"], run["error"]["code"]) == ("failed", "odd")
    assert sites.beta.tagged
    assert any(item["in_use_by"] == [run["run_id"]] for item in sites.checkpoints())
    sites.control.refused(409, "drill-running", "POST", "/plans/shop:drill", {})
    ended = sites.control.ok("POST", "/plans/shop:drill-end")["run"]
    assert sites.ended(ended["run_id"])["state"] == "succeeded"
    assert not sites.beta.tagged
    assert not any(item["in_use_by"] for item in sites.checkpoints())


def test_a_plan_with_a_kept_drill_neither_moves_nor_goes(sites: TwoSites) -> None:
    run = sites.ended(drill(sites, keep=True))
    assert run["state"] == "succeeded"
    sites.control.ok("PUT", "/sites/gamma", {"platform": "file"})
    sites.control.ok("POST", "/plans/shop:protect", {"state": "unprotected"})
    until(lambda: not sites.open_cycles(), "the cycles end")
    moved = {**sites.control.ok("GET", "/plans/shop")["definition"], "target_site": "gamma"}
    for method, body in (("PUT", {"definition": moved}), ("DELETE", None)):
        problem = sites.control.refused(409, "drill-running", method, "/plans/shop", body)
        assert "drill end shop" in problem["hint"]
    ended = sites.control.ok("POST", "/plans/shop:drill-end")["run"]
    assert sites.ended(ended["run_id"])["facts"]["definition"]["target_site"] == "beta"
    assert not sites.beta.tagged
    sites.control.ok("PUT", "/plans/shop", {"definition": moved})
    sites.control.ok("DELETE", "/plans/shop")


def scheduled(sites: TwoSites, text: str | None) -> None:
    definition = sites.control.ok("GET", "/plans/shop")["definition"]
    sites.control.ok("PUT", "/plans/shop", {"definition": {**definition, "drill": {"schedule": text}}})


def shown(sites: TwoSites) -> dict[str, Any]:
    return dict(sites.control.ok("GET", "/plans/shop")["drill"])


def fall_due(sites: TwoSites, ago_s: float = 1.0) -> None:
    """Let the drill that waits have been due a while ago."""
    until(lambda: shown(sites)["next_at"], "the schedule is read")
    store = Store(sites.control.home.database)
    with store.write() as tx:
        tx.execute(update(DueDrill).where(DueDrill.state == "waiting").values(due_at=time.time() - ago_s))
    store.close()


def test_a_drill_runs_when_its_schedule_says_and_the_next_time_is_shown(sites: TwoSites) -> None:
    sites.control.refused(422, "plan-invalid", "PUT", "/plans/shop", broken(sites, "at tea time"))
    scheduled(sites, "every 7d")
    first = until(lambda: shown(sites)["next_at"], "the schedule is read")
    fall_due(sites, 60.0)
    run_id = until(lambda: (shown(sites)["last"] or {}).get("run_id"), "the drill begins")
    run = sites.ended(run_id)
    assert (run["state"], run["actor"]) == ("succeeded", "schedule")
    now = shown(sites)
    assert now["missed"] is None
    assert now["last"]["run_id"] == run_id
    assert 6.9 * 86400 < parse_iso(now["next_at"]) - time.time() < 7 * 86400  # type: ignore[operator]
    assert now["next_at"] <= first
    scheduled(sites, None)
    until(lambda: shown(sites)["next_at"] is None, "the schedule is gone")


def test_a_drill_that_is_due_waits_for_what_goes_on_and_is_told_of_when_it_is_missed(sites: TwoSites) -> None:
    scheduled(sites, "every 7d")
    until(lambda: shown(sites)["next_at"], "the schedule is read")
    kept = sites.ended(drill(sites, keep=True))
    fall_due(sites)
    until(lambda: kept["run_id"] in str(shown(sites)["waits_for"]), "it says what it waits for")
    assert len(sites.control.ok("GET", "/runs?plan=shop&kind=drill")["items"]) == 1
    fall_due(sites, 7200)
    store = Store(sites.control.home.database)
    with store.write() as tx:  # the one that is kept is older than that
        tx.execute(update(Run).where(Run.run_id == kept["run_id"]).values(created_at=time.time() - 10_000))
    store.close()
    missed = until(lambda: shown(sites)["missed"], "it is told of")
    assert kept["run_id"] in missed["reason"]
    assert "drill-missed" in sites.control.ok("GET", "/plans/shop")["conditions"]
    assert shown(sites)["waits_for"] is None
    sites.ended(sites.control.ok("POST", "/plans/shop:drill-end")["run"]["run_id"])
    assert sites.ended(drill(sites))["state"] == "succeeded"  # by hand is as good
    assert shown(sites)["missed"] is None


def test_what_fell_due_while_nobody_was_there_is_missed(sites: TwoSites) -> None:
    scheduled(sites, "*/30 * * * *")
    fall_due(sites, 10 * 3600)
    missed = until(lambda: shown(sites)["missed"], "it is told of")
    assert "the control plane was not running" in missed["reason"]
    assert "more times have passed since" in missed["reason"]
    assert parse_iso(shown(sites)["next_at"]) > time.time()  # type: ignore[operator]


def broken(sites: TwoSites, text: str) -> dict[str, Any]:
    definition = sites.control.ok("GET", "/plans/shop")["definition"]
    return {"definition": {**definition, "drill": {"schedule": text}}}
