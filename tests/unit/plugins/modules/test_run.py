"""run: what it asks for, when it waits, what it says in check mode."""

from __future__ import annotations

import pytest

FAST = {"wait_interval": 0.001}


@pytest.fixture
def started(ok, double):
    ok("protection_plan", name="shop", definition={"name": "shop", "machines": [{"name": "db"}]})
    return lambda **fields: double.state.start("failover", "shop", **fields)["run_id"]


def test_pausing_waits_until_the_run_rests_and_resuming_until_its_end(ok, started):
    run_id = started(until=10**9)
    paused = ok("run", run_id=run_id, state="paused", **FAST)
    assert (paused["changed"], paused["run"]["state"]) == (True, "paused")
    assert paused["diff"] == {"before": {"state": "running"}, "after": {"state": "paused"}}
    again = ok("run", run_id=run_id, state="paused", **FAST)
    assert not again["changed"]
    assert again["diff"]["before"] == again["diff"]["after"]


def test_resuming_waits_for_the_end(ok, started):
    run_id = started(state="paused", pause_requested=True)
    result = ok("run", run_id=run_id, state="resumed", **FAST)
    assert (result["changed"], result["run"]["state"]) == (True, "succeeded")


def test_an_approved_run_is_named_without_wait(ok, started):
    run_id = started(state="waiting-approval", until=10**9)
    result = ok("run", run_id=run_id, state="approved", wait=False)
    assert result["run"]["approval"]["by"] == [{"actor": "me", "at": "now"}]


def test_a_refusal_is_the_modules_error(bad, started):
    assert bad("run", run_id=started(until=10**9), state="approved")["code"] == "not-waiting"


def test_cancelling_does_not_fail_where_the_run_ends_as_cancelled(ok, started):
    result = ok("run", run_id=started(until=10**9), state="cancelled", **FAST)
    assert result["run"]["state"] == "cancelled"


def test_a_retried_run_is_followed_by_its_own_name(ok, bad, double, started):
    run_id = started(state="failed")
    result = ok("run", run_id=run_id, state="retried", step="power on", machine="db", **FAST)
    assert (result["run"]["retry_of"], result["run"]["state"]) == (run_id, "succeeded")
    body = next(body for method, path, body, unused in double.log if path.endswith(":retry"))
    assert body == {"step": "power on", "machine": "db"}
    assert bad("run", run_id=run_id, state="paused", step="create")["field"] == "step"
