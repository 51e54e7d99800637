"""What people do with runs: pause, resume, approve, go on with one that failed; limits and delays; a killed server."""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.many_machines import STEPS, Watched, many, names
from doubles.two_sites import TwoSites, two_sites


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        yield both


def planned(sites: TwoSites, **changes: str) -> TwoSites:
    sites.plan(**changes)
    sites.protect()
    return sites


def failover(sites: TwoSites, **wish: Any) -> str:
    return str(sites.control.ok("POST", "/plans/shop:failover", {"to_site": "beta", **wish})["run"]["run_id"])


def state(sites: TwoSites, run_id: str, *wanted: str) -> dict[str, Any]:
    """Return the run once it is in one of ``wanted``; a run that ended otherwise is shown."""

    def look() -> dict[str, Any] | None:
        run = sites.control.ok("GET", f"/runs/{run_id}")
        assert run["state"] in wanted or run["ended_at"] is None, (run["state"], run["error"])
        return run if run["state"] in wanted else None

    return dict(until(look, f"run {run_id} is {wanted}"))


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def again(sites: TwoSites) -> None:
    sites.control.kill()
    sites.control.start()


def test_a_paused_failover_begins_nothing_new_and_survives_a_kill(sites: TwoSites) -> None:
    planned(sites)
    gate = sites.alpha.hold("machine-stop")
    run_id = failover(sites)
    until(lambda: sites.alpha.asked()["machine-stop"], "the stop begins")
    asked = sites.control.ok("POST", f"/runs/{run_id}:pause")
    assert (asked["state"], asked["pause_requested"]) == ("running", True)  # what runs ends first
    assert "nothing new" in asked["next"]
    answer = sites.control.call("POST", f"/runs/{run_id}:pause")
    assert answer.headers["X-Farshore-Changed"] == "false"
    gate.set()
    run = state(sites, run_id, "paused")
    assert f"farshore run resume {run_id}" in run["next"]
    again(sites)
    assert state(sites, run_id, "paused")["pause_requested"]
    assert sites.alpha.asked()["machine-stop"] == 1  # web is off, db was not even asked to stop
    assert sites.alpha.machines["id-db"]["power"] == "on"
    assert sites.control.ok("POST", f"/runs/{run_id}:resume")["state"] == "running"
    run = sites.ended(run_id)
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    assert sites.alpha.asked()["machine-stop"] == 2
    actions = [item["action"] for item in sites.control.ok("GET", "/audit")["items"]]
    assert actions.count("pause_run") == actions.count("resume_run") == 1
    sites.control.refused(409, "run-ended", "POST", f"/runs/{run_id}:pause")
    sites.control.refused(409, "not-retryable", "POST", f"/runs/{run_id}:retry", {})


def test_a_paused_drill_can_be_cancelled_and_cleans_up(sites: TwoSites) -> None:
    planned(sites)
    gate = sites.beta.hold("machine-create")
    run_id = sites.control.ok("POST", "/plans/shop:drill", {})["run"]["run_id"]
    until(lambda: sites.beta.asked()["machine-create"], "machines are made")
    sites.control.ok("POST", f"/runs/{run_id}:pause")
    gate.set()
    state(sites, run_id, "paused")
    assert sites.beta.asked()["machine-power-on"] == 0
    sites.control.ok("POST", f"/runs/{run_id}:cancel")
    run = sites.ended(run_id)
    assert (run["state"], run["facts"]["remaining"]) == ("cancelled", [])
    assert sites.beta.machines == {}
    assert sites.beta.asked()["machine-power-on"] == 0
    retried = sites.control.ok("POST", f"/runs/{run_id}:retry", {})["run"]
    assert retried["retry_of"] == run_id
    assert sites.ended(retried["run_id"])["state"] == "succeeded"
    assert sites.control.ok("POST", f"/runs/{run_id}:retry", {})["changed"] is False
    assert sites.control.ok("GET", f"/runs/{run_id}")["retried_by"] == retried["run_id"]


def test_a_run_waits_for_two_others_to_agree(sites: TwoSites) -> None:
    planned(sites, retention="approval: {verbs: [failover], people: 2}\nretention")
    control = sites.control
    first, second = control.role("recovery-admin"), control.role("recovery-admin")
    run_id = failover(sites)
    run = control.ok("GET", f"/runs/{run_id}")
    assert (run["state"], run["approval"]) == ("waiting-approval", {"people": 2, "by": []})
    assert "2 people" in run["next"]
    control.refused(403, "own-run", "POST", f"/runs/{run_id}:approve")
    control.refused(403, "role-too-small", "POST", f"/runs/{run_id}:approve", token=control.role("operator"))
    control.refused(409, "failover-running", "POST", "/plans/shop:failover", {"to_site": "beta"})
    assert sites.replicate()["state"] == "succeeded"  # nothing of the failover has begun
    assert control.ok("GET", "/plans/shop")["state"] == "protected"
    for token, changed in ((first, "true"), (first, "false")):
        answer = control.call("POST", f"/runs/{run_id}:approve", token=token)
        assert (answer.status_code, answer.headers["X-Farshore-Changed"]) == (200, changed)
        assert answer.json()["state"] == "waiting-approval"
    again(sites)
    assert "one person" in control.ok("GET", f"/runs/{run_id}")["next"]
    assert sites.alpha.asked()["machine-stop"] == 0
    assert control.ok("POST", f"/runs/{run_id}:approve", token=second)["state"] == "pending"
    run = sites.ended(run_id)
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    people = [item["actor"] for item in run["approval"]["by"]]
    assert len(set(people)) == 2
    assert run["actor"] not in people
    report = control.ok("GET", f"/runs/{run_id}/report")
    assert [item["actor"] for item in report["body"]["run"]["approval"]["by"]] == people
    audit = control.ok("GET", "/audit")
    assert [item["action"] for item in audit["items"]].count("approve_run") == 2
    control.refused(409, "not-waiting", "POST", f"/runs/{run_id}:approve", token=control.role("admin"))


def test_a_run_that_is_cancelled_before_it_was_approved_has_done_nothing(sites: TwoSites) -> None:
    planned(sites, retention="approval: {verbs: [failover, drill]}\nretention")
    for path, wish in (("/plans/shop:failover", {"to_site": "beta"}), ("/plans/shop:drill", {})):
        run_id = sites.control.ok("POST", path, wish)["run"]["run_id"]
        assert sites.control.ok("GET", f"/runs/{run_id}")["state"] == "waiting-approval"
        sites.control.ok("POST", f"/runs/{run_id}:cancel")
        run = sites.ended(run_id)
        assert (run["state"], run["error"]["code"]) == ("cancelled", "cancelled")
        assert run["report_url"] is not None
    assert sites.control.ok("GET", "/plans/shop")["state"] == "protected"
    assert sites.alpha.asked()["machine-stop"] == sites.beta.asked()["machine-create"] == 0


def test_a_retried_failover_does_nothing_again_that_succeeded(sites: TwoSites) -> None:
    planned(sites)
    sites.beta.green["web"] = False
    run = sites.ended(failover(sites))
    assert (run["state"], run["error"]["code"]) == ("failed", "probe-failed")
    before = sites.beta.asked()
    sites.control.refused(
        422, "machine-unknown", "POST", f"/runs/{run['run_id']}:retry", {"step": "create", "machine": "webb"}
    )
    sites.beta.green["web"] = True
    new = sites.control.ok("POST", f"/runs/{run['run_id']}:retry", {})["run"]
    ended = sites.ended(new["run_id"])
    assert ended["state"] == "succeeded", (ended["error"], ended["steps"])
    done = sites.beta.asked() - before
    assert (done["machine-create"], done["machine-power-on"], done["machine-probe"]) == (0, 0, 1)
    assert [machine["rpo_s"] for machine in ended["machines"]] == [0.0, 0.0]
    assert all(machine["rto_s"] > 0 and machine["machine_id"] for machine in ended["machines"])
    kept = next(step for step in ended["steps"] if (step["name"], step["machine"]) == ("create", "web"))
    assert run["run_id"] in kept["detail"]
    assert sites.control.ok("GET", "/plans/shop")["state"] == "failed-over"
    assert sites.alpha.asked()["machine-stop"] == 2


def test_a_failover_goes_on_from_the_step_and_machine_that_were_chosen(sites: TwoSites) -> None:
    planned(sites)
    sites.beta.green["web"] = False
    run_id = sites.ended(failover(sites))["run_id"]
    for wish, done, end in (
        ({"step": "power on"}, (0, 1, 1), "failed"),
        ({"step": "create"}, (1, 1, 1), "failed"),
        ({"machine": "db", "step": "validate"}, (0, 0, 2), "succeeded"),
    ):
        sites.beta.green["web"] = end == "succeeded"
        before = sites.beta.asked()
        run_id = sites.control.ok("POST", f"/runs/{run_id}:retry", wish)["run"]["run_id"]
        ended = sites.ended(run_id)
        assert ended["state"] == end, (ended["error"], ended["steps"])
        asked = sites.beta.asked() - before
        assert tuple(asked[kind] for kind in STEPS) == done
    assert len(sites.beta.machines) == 2


def test_limits_and_delays_hold_and_a_machine_that_fails_beside_the_others_leaves_the_run_partial(
    control: Control, tmp_path: Path
) -> None:
    limits = {"create": 3, "start": 2}
    with many(control, tmp_path, 2, 6, delay=3.0, limits=limits) as sites:
        watched = Watched(sites, 0.1, seed=1)
        sites.beta.green["m1-02"] = False
        run = sites.ended(failover(sites))
        assert run["state"] == "partial", (run["error"], run["steps"])
        assert [item["name"] for item in run["machines"] if item["state"] != "green"] == ["m1-02"]
        assert watched.most["machine-create"] <= limits["create"]
        assert watched.most["starting"] <= limits["start"]
        first, second = names(2, 6)
        assert set(watched.begun("machine-power-on")[:6]) == set(first)
        assert watched.begun("machine-create")[:3] == first[:3]
        kinds = [kind for kind, _, _ in watched.log]
        last_made = len(kinds) - 1 - kinds[::-1].index("machine-create")
        assert kinds.index("machine-power-on") < last_made, "the first start while the last are made"
        times = {(step["name"], step["machine"]): step for step in run["steps"]}
        ends = max(_seconds(times["validate", name]["ended_at"]) for name in first)
        begins = min(_seconds(times["power on", name]["started_at"]) for name in second)
        assert begins - ends > 2.99  # times are cut to milliseconds
        sites.beta.green["m1-02"] = True
        new = control.ok("POST", f"/runs/{run['run_id']}:retry", {})["run"]["run_id"]
        assert sites.ended(new)["state"] == "succeeded"
        assert Counter(watched.begun("machine-power-on")) == Counter([*first, *second])


@pytest.mark.timeout(900)  # five starts of a control plane, also where others want the machine
def test_a_control_plane_that_is_killed_anywhere_ends_a_failover_of_many_right(
    control: Control, tmp_path: Path
) -> None:
    seed = int(os.environ.get("FARSHORE_KILL_SEED") or time.time_ns() % 1_000_000)
    sys.stdout.write(f"seed {seed}; FARSHORE_KILL_SEED={seed} repeats it\n")
    groups, size, kills = 4, 6, 5
    with many(control, tmp_path, groups, size, limits={"create": 8, "start": 6}) as sites:
        watched = Watched(sites, 0.15, seed)
        everyone = [name for group in names(groups, size) for name in group]
        # Stops, fences and the final copy at alpha, then three steps for each machine at beta.
        steps = 2 * len(everyone) + len(STEPS) * len(everyone)
        begun = len(sites.alpha.calls)
        moments = sorted(random.Random(seed).sample(range(steps), kills))
        run_id = failover(sites)
        for moment in moments:
            until(
                lambda moment=moment: (
                    len(sites.alpha.calls) - begun + len(watched.log) >= moment
                    or control.ok("GET", f"/runs/{run_id}")["ended_at"]
                ),
                f"step {moment} of {steps}",
                180,
            )
            again(sites)
        run = sites.ended(run_id, 300)
        assert run["state"] == "succeeded", (run["error"], run["steps"])
        assert {machine["state"] for machine in run["machines"]} == {"green"}
        for kind in STEPS:
            tasks = {(name, task) for found, name, task in watched.log if found == kind}
            assert Counter(name for name, _ in tasks) == Counter(everyone), kind  # one task for each, none twice
        ours = {machine["machine_id"] for machine in run["machines"]}
        assert set(sites.beta.machines) == ours  # no orphan
        assert sites.beta.tagged[run["facts"]["tag"]] == {f"machine:{machine_id}" for machine_id in ours}
        for earlier, later in zip(names(groups, size), names(groups, size)[1:], strict=False):
            log = [(kind, name) for kind, name, _ in watched.log]
            last = max(log.index(("machine-probe", name)) for name in earlier)
            assert last < min(log.index(("machine-power-on", name)) for name in later)
        assert Counter(sites.alpha.fenced.values()) == {2: len(everyone)}
        plan = control.ok("GET", "/plans/shop")
        assert (plan["state"], plan["epoch"]) == ("failed-over", 2)
        assert "Traceback" not in control.log()


def test_a_policy_of_approval_is_made_weaker_only_with_approval(sites: TwoSites) -> None:
    planned(sites, retention="approval: {verbs: [failover, drill], people: 1}\nretention")
    control, other = sites.control, sites.control.role("recovery-admin")
    weaker = {"retention": "approval: {verbs: [drill], people: 1}\nretention"}
    answer = sites.plan(**weaker)
    asked = next(one for one in control.ok("GET", "/runs?plan=shop&kind=approval")["items"])
    assert any(asked["run_id"] in warning for warning in answer["warnings"])
    assert asked["state"] == "waiting-approval"
    assert "approval-to-approve" in control.ok("GET", "/plans/shop")["conditions"]
    run_id = failover(sites)
    assert control.ok("GET", f"/runs/{run_id}")["state"] == "waiting-approval"  # as before
    control.refused(403, "own-run", "POST", f"/runs/{asked['run_id']}:approve")
    control.ok("POST", f"/runs/{run_id}:cancel")
    assert sites.ended(run_id)["state"] == "cancelled"

    # None at all is another wish, which takes the place of the first one.
    sites.plan()
    assert sites.ended(asked["run_id"])["state"] == "cancelled"
    again_asked = next(one for one in control.ok("GET", "/runs?plan=shop&kind=approval&state=open")["items"])
    control.ok("POST", f"/runs/{again_asked['run_id']}:approve", token=other)
    ended = sites.ended(again_asked["run_id"])
    assert (ended["state"], len(ended["approval"]["by"])) == ("succeeded", 1), ended["error"]
    assert "approval-to-approve" not in control.ok("GET", "/plans/shop")["conditions"]
    assert "weaken-approval" in [item["action"] for item in control.ok("GET", "/audit")["items"]]
    assert sites.ended(failover(sites))["state"] == "succeeded"
