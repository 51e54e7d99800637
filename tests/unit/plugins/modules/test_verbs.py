"""replicate, checkpoint, drill, failover: they start runs, wait for them, and fail where the run does."""

from __future__ import annotations

import pytest
from double import Problem

PLAN = {"name": "shop", "machines": [{"name": "db"}]}
FAST = {"wait_interval": 0.001}


@pytest.fixture(autouse=True)
def plan(ok):
    ok("protection_plan", name="shop", definition=PLAN)


@pytest.mark.parametrize(
    ("module", "params"),
    [
        ("replicate", {}),
        ("drill", {}),
        ("failover", {"to_site": "beta", "commit": "manual"}),
        ("reprotect", {"to_site": "alpha"}),
        ("migrate", {}),
        ("retire", {"machines": ["db"]}),
    ],
)
def test_a_run_is_started_and_waited_for(ok, double, module, params):
    double.state.polls_until_end = 3
    result = ok(module, plan="shop", **params, **FAST)
    assert result["changed"]
    assert result["run"]["state"] == "succeeded"
    assert double.requests().count(("GET", "/api/v1/runs/run-1")) == 4


@pytest.mark.parametrize("module", ["drill", "failover", "migrate"])
def test_groups_are_sent_where_they_are_given(ok, double, module):
    more = {"to_site": "beta"} if module == "failover" else {}
    ok(module, plan="shop", groups=["back", "front"], wait=False, **more)
    assert double.log[-1][2]["groups"] == ["back", "front"]
    ok(module, plan="shop", wait=False, **more)
    assert "groups" not in double.log[-1][2]


def test_a_failover_is_committed_once(ok, double):
    assert not ok("failover", plan="shop", state="committed")["changed"]
    double.state.plans["shop"]["committed"] = False
    assert ok("failover", plan="shop", state="committed", check=True)["changed"]
    made = ok("failover", plan="shop", state="committed", diff=True)
    assert (made["changed"], made["run"]) == (True, None)
    assert made["diff"]["after"] == {"committed": True}
    assert not ok("failover", plan="shop", state="committed")["changed"]


def test_a_failover_is_rolled_back_where_one_waits_for_it(ok, bad, double):
    before = len(double.log)
    assert not ok("failover", plan="shop", state="rolled_back", **FAST)["changed"]
    assert [method for method, unused in double.requests()[before:]] == ["GET"]
    double.state.plans["shop"]["turned"] = False  # moved for good: that is no way back
    assert bad("failover", plan="shop", state="rolled_back", **FAST)["code"] == "committed"
    double.state.plans["shop"]["committed"] = False
    made = ok("failover", plan="shop", state="rolled_back", **FAST)
    assert (made["run"]["kind"], made["run"]["state"]) == ("rollback", "succeeded")


def test_a_failover_needs_a_site(bad):
    assert "to_site" in bad("failover", plan="shop")["msg"]


def test_without_wait_the_run_is_only_named(ok, double):
    result = ok("drill", plan="shop", wait=False)
    assert result["run"]["run_id"] == "run-1"
    assert result["run"]["state"] == "running"
    assert result["run"]["url"] == f"{double.url}/runs/run-1"
    assert ("GET", "/api/v1/runs/run-1") not in double.requests()


@pytest.mark.parametrize("end", ["failed", "partial", "cancelled"])
def test_the_module_fails_where_the_run_does(bad, double, end):
    start = double.state.start
    double.state.start = lambda kind, plan, **more: start(
        kind,
        plan,
        end=end,
        error={"code": "probe-red", "detail": "web: no answer on port 80", "hint": "See the console."},
    )
    result = bad("drill", plan="shop", **FAST)
    assert result["code"] == "probe-red"
    assert "web: no answer on port 80" in result["msg"]
    assert "See the console." in result["msg"]
    assert result["run"]["state"] == end
    assert result["changed"]


def test_a_run_that_failed_without_a_reason_names_red_machines(bad, double):
    start = double.state.start
    machines = [{"name": "db", "state": "green", "probes": []}, {"name": "web", "state": "failed", "probes": []}]
    double.state.start = lambda kind, plan, **more: start(kind, plan, end="failed", machines=machines)
    result = bad("drill", plan="shop", **FAST)
    assert result["code"] == "run-failed"
    assert "web is failed" in result["msg"]


def test_the_time_limit_leaves_the_run_going(bad, double):
    double.state.polls_until_end = 10**9
    result = bad("failover", plan="shop", to_site="beta", wait_timeout=1, wait_interval=0.2)
    assert result["code"] == "wait-timeout"
    assert result["run"]["run_id"] == "run-1"
    assert double.state.runs["run-1"]["state"] == "running"


def test_a_wait_of_no_seconds_is_refused(bad, double):
    before = len(double.log)
    assert bad("drill", plan="shop", wait_timeout=0)["field"] == "wait_timeout"
    assert len(double.log) == before


def test_replicate_does_nothing_while_a_checkpoint_is_young(ok, double):
    double.state.checkpoints.append({"checkpoint_id": "cp-1", "plan": "shop", "label": None, "pinned": False})
    result = ok("replicate", plan="shop", max_age="5m")
    assert not result["changed"]
    assert result["run"] is None
    assert double.log[-1][2] == {"max_age_s": 300.0}


@pytest.mark.parametrize("text", ["soon", "-5m", "5 weeks", "1e9"])
def test_a_bad_duration_names_its_parameter(bad, text):
    assert bad("replicate", plan="shop", max_age=text)["field"] == "max_age"


def test_a_checkpoint_is_made_once(ok, double):
    first = ok("checkpoint", plan="shop", label="before upgrade", **FAST)
    assert first["changed"]
    assert first["checkpoint"]["label"] == "before upgrade"
    assert first["run"]["state"] == "succeeded"
    again = ok("checkpoint", plan="shop", label="before upgrade", **FAST)
    assert not again["changed"]
    assert again["run"] is None
    assert again["checkpoint"]["checkpoint_id"] == first["checkpoint"]["checkpoint_id"]
    assert ok("checkpoint", plan="shop", label="before upgrade", pin=False, **FAST)["changed"]


def test_check_mode_foresees_a_checkpoint(ok):
    foreseen = ok("checkpoint", plan="shop", label="x", check=True, diff=True)
    assert foreseen["changed"]
    assert foreseen["diff"]["before"] == {}
    assert foreseen["diff"]["after"]["label"] == "x"
    ok("checkpoint", plan="shop", label="x", **FAST)
    assert not ok("checkpoint", plan="shop", label="x", check=True)["changed"]
    assert ok("checkpoint", plan="shop", label="x", pin=False, check=True)["changed"]


def test_a_pinned_checkpoint_goes_only_when_unpinned(ok, bad, double):
    ok("checkpoint", plan="shop", label="x", **FAST)
    assert bad("checkpoint", plan="shop", label="x", state="absent")["code"] == "checkpoint-pinned"
    foreseen = ok("checkpoint", plan="shop", label="x", state="absent", pin=False, check=True)
    assert foreseen["changed"]
    assert double.state.checkpoints[0]["pinned"]
    assert ok("checkpoint", plan="shop", label="x", state="absent", pin=False)["changed"]
    assert not ok("checkpoint", plan="shop", label="x", state="absent", pin=False)["changed"]


def test_a_checkpoint_that_exists_is_pinned_labelled_held_and_cleared(ok, double):
    doubt = {"verdict": "flagged", "score": 97}
    double.state.checkpoints = [
        {"checkpoint_id": "cp-7", "plan": "shop", "label": "", "pinned": False, "hold": None, "suspicion": doubt}
    ]
    wish = {"checkpoint_id": "cp-7", "pin": True, "label": "gold", "hold": "case 4711", "cleared": "a test of ours"}
    foreseen = ok("checkpoint", **wish, check=True, diff=True)
    assert foreseen["changed"]
    assert foreseen["diff"]["after"] == {"pinned": True, "label": "gold", "hold": "case 4711", "suspicion": "cleared"}
    assert double.state.checkpoints[0]["label"] == ""
    made = ok("checkpoint", **wish)
    assert made["changed"]
    shown = double.state.checkpoints[0]
    assert (shown["pinned"], shown["label"], shown["hold"]["reason"]) == (True, "gold", "case 4711")
    assert shown["suspicion"]["cleared"] == {"note": "a test of ours"}
    assert not ok("checkpoint", **wish)["changed"]
    assert ok("checkpoint", checkpoint_id="cp-7", hold="")["changed"]
    assert double.state.checkpoints[0]["hold"] is None
    assert not ok("checkpoint", checkpoint_id="cp-7", hold="")["changed"]


def test_a_new_checkpoint_can_be_asked_for_under_a_hold_and_of_a_level(ok, double):
    ok("checkpoint", plan="shop", label="x", consistency="application", hold="case 4711", **FAST)
    sent = [body for method, path, body, unused in double.log if method == "PUT" and "checkpoints" in path]
    assert sent == [{"consistency": "application", "pin": True, "hold": "case 4711"}]
    double.state.checkpoints[0]["hold"] = {"reason": "case 4711", "by": "me"}
    assert not ok("checkpoint", plan="shop", label="x", hold="case 4711", check=True)["changed"]
    assert ok("checkpoint", plan="shop", label="x", hold="", **FAST)["changed"]
    assert double.state.checkpoints[0]["hold"] is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"plan": "shop"},
        {"plan": "shop", "checkpoint_id": "cp-1"},
        {"plan": "shop", "label": "x", "cleared": "yes"},
        {"checkpoint_id": "cp-1", "consistency": "group"},
    ],
)
def test_a_checkpoint_is_named_in_one_way(bad, options):
    bad("checkpoint", **options)


def test_a_checkpoint_is_read_back_once_or_when_that_was_long_ago(ok, bad, double):
    assert bad("checkpoint", plan="shop", label="x", state="verified")["field"] == "label"
    ok("checkpoint", plan="shop", label="x", **FAST)
    foreseen = ok("checkpoint", plan="shop", label="x", state="verified", check=True, diff=True)
    assert foreseen["changed"]
    assert foreseen["diff"]["after"]["integrity"] == "verified"
    assert "integrity" not in double.state.checkpoints[0]
    first = ok("checkpoint", plan="shop", label="x", state="verified", **FAST)
    assert (first["changed"], first["run"]["kind"], first["run"]["state"]) == (True, "scrub", "succeeded")
    assert first["checkpoint"]["integrity"] == "verified"
    assert not ok("checkpoint", plan="shop", label="x", state="verified", **FAST)["changed"]
    assert not ok("checkpoint", plan="shop", label="x", state="verified", max_age="1000000h", **FAST)["changed"]
    assert ok("checkpoint", plan="shop", label="x", state="verified", max_age="1h", **FAST)["changed"]


def test_suspect_checkpoints_are_asked_for_by_name(ok, bad, double):
    ok("drill", plan="shop", allow_suspect=True, **FAST)
    orders = [entry[2] for entry in double.log if entry[0] == "POST" and entry[1].endswith(":drill")]
    assert orders[-1]["allow_suspect"] is True
    assert bad("failover", plan="shop", to_site="beta", allow_suspect=True)["field"] == "allow_suspect"


def test_a_drill_of_late_will_do(ok):
    assert ok("drill", plan="shop", max_age="1d", **FAST)["changed"]
    again = ok("drill", plan="shop", max_age="1d")
    assert not again["changed"]
    assert again["last"]["run_id"] == "run-1"


def test_a_drill_while_one_runs(bad, double):
    double.state.plans["shop"]["conditions"] = ["drilling"]
    assert bad("drill", plan="shop")["code"] == "drill-running"


def test_a_kept_drill_is_ended_once(ok, double):
    assert not ok("drill", plan="shop", state="absent")["changed"]
    double.state.plans["shop"]["conditions"] = ["drilling"]
    assert ok("drill", plan="shop", state="absent", check=True)["changed"]
    ended = ok("drill", plan="shop", state="absent", **FAST)
    assert ended["changed"]
    assert ended["run"]["kind"] == "cleanup"


def test_a_second_failover_changes_nothing(ok, double):
    double.state.plans["shop"]["active_site"] = "beta"
    result = ok("failover", plan="shop", to_site="beta")
    assert not result["changed"]
    assert result["run"] is None


@pytest.mark.parametrize("wrong", [{"checkpoint": "cp-1"}, {"force": True}])
def test_what_goes_with_an_unplanned_failover_only(bad, double, wrong):
    before = len(double.log)
    assert bad("failover", plan="shop", to_site="beta", **wrong)["field"] == next(iter(wrong))
    assert len(double.log) == before
    wrong["mode"] = "unplanned"


def test_a_preview_shows_what_a_failover_makes(ok):
    result = ok("failover", plan="shop", to_site="beta", check=True, diff=True)
    assert result["changed"]
    assert result["run"] is None
    assert result["diff"]["after"] == {"creates": ["db"]}


def test_one_key_is_one_run(ok, double):
    results = [ok("drill", plan="shop", idempotency_key=key, wait=False) for key in ("job-7", "job-7")]
    assert [result["run"]["run_id"] for result in results] == ["run-1", "run-1"]
    assert len(double.state.runs) == 1


def test_a_lost_reply_does_not_start_a_second_run(ok, double):
    """The control plane carries the drill out, but the connection ends before the answer."""
    route = double.route
    lost = []

    def losing(method, path, query, body):
        answer = route(method, path, query, body)
        if path.endswith(":drill") and not lost:
            lost.append(path)
            key = double.log[-1][3]["Idempotency-Key"]
            double.state.keys[key] = answer
            raise Problem(503, "unavailable", "lost", headers={"Retry-After": "0"})
        return answer

    double.route = losing
    assert ok("drill", plan="shop", wait=False)["run"]["run_id"] == "run-1"
    assert lost
    assert len(double.state.runs) == 1
