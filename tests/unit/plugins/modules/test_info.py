"""The info modules, and waiting for news of a run."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def plan(ok):
    ok("site", name="alpha", platform="kvm")
    ok("site", name="beta", platform="kvm")
    ok("protection_plan", name="shop", definition={"name": "shop"})


def test_sites_one_or_all(ok, bad):
    assert [site["name"] for site in ok("site_info")["sites"]] == ["alpha", "beta"]
    assert [site["name"] for site in ok("site_info", name="beta")["sites"]] == ["beta"]
    assert bad("site_info", name="gamma")["code"] == "not-found"


def test_waiting_for_a_site(ok, bad, double):
    double.state.sites["alpha"].update(state="online", inventory_at="2026-01-31T12:00:00Z")
    assert ok("site_info", name="alpha", wait_for="online")["sites"][0]["state"] == "online"
    double.state.sites["beta"]["nodes"] = ["beta-1"]
    late = bad("site_info", name="beta", wait_for="online", wait_timeout=1)
    assert late["code"] == "wait-timeout"
    assert "beta is no-node" in late["msg"]
    assert "beta-1" in late["hint"]
    assert late["sites"][0]["name"] == "beta"


def test_plans_one_or_all(ok, bad):
    assert [plan["name"] for plan in ok("protection_plan_info")["plans"]] == ["shop"]
    assert ok("protection_plan_info", name="shop")["plans"][0]["revision"] == 1
    assert bad("protection_plan_info", name="none")["code"] == "not-found"


def test_machines_are_asked_for_by_what_is_given(ok, double):
    double.state.machines = {"m-1": {"machine_id": "m-1", "name": "db", "site": "alpha"}}
    assert ok("machine_info", site="alpha", name="db")["machines"][0]["machine_id"] == "m-1"
    assert double.requests()[-1] == ("GET", "/api/v1/machines?name=db&site=alpha")
    assert ok("machine_info", machine_id="m-1")["machines"][0]["name"] == "db"


def test_checkpoints(ok, double):
    double.state.checkpoints = [{"checkpoint_id": "cp-1", "plan": "shop"}, {"checkpoint_id": "cp-2", "plan": "wiki"}]
    assert [one["checkpoint_id"] for one in ok("checkpoint_info", plan="shop")["checkpoints"]] == ["cp-1"]
    assert ok("checkpoint_info", checkpoint_id="cp-2")["checkpoints"][0]["plan"] == "wiki"


def test_runs_are_listed(ok):
    ok("drill", plan="shop", wait=False)
    ok("replicate", plan="shop", wait=False)
    assert [run["kind"] for run in ok("run_info", plan="shop")["runs"]] == ["replicate", "drill"]
    assert [run["kind"] for run in ok("run_info", kind="drill")["runs"]] == ["drill"]


def test_each_time_that_a_run_waits_for_somebody_is_told_with_what_to_do(ok, double):
    double.state.start("failover", "shop", until=10**9)
    run, told, lines = double.state.runs["run-1"], [], []
    for state in ("waiting-approval", "running", "paused", "running", "paused"):
        run.update(state=state, next="" if state == "running" else f"farshore run verb-for-{state}")
        for _look in range(2):
            result = ok("run_info", run_id="run-1", told=told)
            told = result["told"]
            lines += result["news"]
        assert result["progress"] == (run["next"] or "1.0 of 4.0 MiB")
    paused = "paused: farshore run verb-for-paused"
    waiting = "waiting-approval: farshore run verb-for-waiting-approval"
    assert lines == ["begin: running", waiting, "goes on", paused, "goes on", paused]


def test_news_are_told_once(ok, double):
    double.state.polls_until_end = 2
    ok("drill", plan="shop", wait=False)
    first = ok("run_info", run_id="run-1", wait_for="change", wait_interval=0.001)
    assert first["news"] == ["begin: running"]
    assert not first["ended"]
    assert first["progress"] == "1.0 of 4.0 MiB"
    second = ok("run_info", run_id="run-1", wait_for="change", wait_interval=0.001, told=first["told"])
    assert second["news"] == ["begin: succeeded after 1.2 s", "drill run-1: succeeded"]
    assert second["ended"]
    third = ok("run_info", run_id="run-1", wait_for="change", told=second["told"])
    assert third["news"] == []


def test_waiting_for_a_change_that_does_not_come_is_no_failure(ok, double):
    double.state.polls_until_end = 10**9
    ok("drill", plan="shop", wait=False)
    told = ok("run_info", run_id="run-1")["told"]
    result = ok("run_info", run_id="run-1", wait_for="change", wait_timeout=1, wait_interval=0.3, told=told)
    assert result["news"] == []
    assert not result["ended"]


def test_waiting_for_the_end_of_a_run_that_fails_is_no_failure(ok, double):
    start = double.state.start
    double.state.start = lambda kind, plan, **more: start(kind, plan, end="failed")
    ok("drill", plan="shop", wait=False)
    result = ok("run_info", run_id="run-1", wait_for="end", wait_interval=0.001)
    assert result["ended"]
    assert result["runs"][0]["state"] == "failed"


def test_waiting_needs_a_run(bad):
    assert "run_id" in bad("run_info", wait_for="end")["msg"]
