"""Machines of a committed failover leave the chain of checkpoints by themselves, beside everything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.two_sites import TwoSites, two_sites
from farshore.errors import Permanent

MIB = 1 << 20


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        both.beta.layered = True
        both.plan()
        both.protect()
        yield both


def failover(sites: TwoSites, **wish: Any) -> None:
    run = sites.control.ok("POST", "/plans/shop:failover", {"to_site": "beta", **wish})["run"]
    assert sites.ended(run["run_id"])["state"] == "succeeded"


def detaches(sites: TwoSites) -> list[dict[str, Any]]:
    return list(sites.control.ok("GET", "/runs?plan=shop&kind=detach")["items"])


def begun(sites: TwoSites, number: int = 1) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = detaches(sites)
        return found[0] if len(found) == number else None

    return dict(until(look, f"{number} runs that leave the chain"))


def test_it_begins_by_itself_and_outlives_the_control_plane(sites: TwoSites) -> None:
    copying = {"state": "copying", "disks_left": 1, "done_bytes": MIB, "total_bytes": 64 * MIB, "detail": "vda: a bit"}
    sites.beta.detaching = {"db": [copying, copying], "web": [{"state": "waiting", "detail": "it is off"}]}
    gate = sites.beta.hold("machine-detach")
    failover(sites)
    run = begun(sites)
    assert run["actor"] == "control plane"
    until(lambda: len(sites.beta.of("machine-detach")) == 2, "both machines are asked")
    # Nobody waits for it: the plan is replicated back beside it.
    reprotect = sites.control.ok("POST", "/plans/shop:reprotect", {})["run"]["run_id"]
    assert sites.ended(reprotect)["state"] == "succeeded"
    sites.control.kill()
    sites.control.start()
    gate.set()
    ended = sites.ended(run["run_id"])
    assert ended["state"] == "succeeded", (ended["error"], ended["steps"])
    steps = {step["machine"]: step for step in ended["steps"] if step["name"] == "leave chain"}
    assert {name: (step["state"], step["attempts"]) for name, step in steps.items()} == {
        "db": ("succeeded", 3),
        "web": ("succeeded", 2),
    }
    assert sorted({params["machine_id"] for params in sites.beta.of("machine-detach")}) == ["made-db", "made-web"]
    # What it has changed is known soon, so that nothing of the kind is ordered again.
    until(lambda: not any(found["on_points"] for found in machines(sites)), "an inventory without chains")


def machines(sites: TwoSites) -> list[dict[str, Any]]:
    return list(sites.control.ok("GET", "/machines?site=beta")["items"])


def test_it_waits_for_the_commit_and_says_which_machine_stays_on_checkpoints(sites: TwoSites) -> None:
    sites.beta.fail("machine-detach", Permanent("the storage is read-only", code="read-only"))
    failover(sites, commit="manual")
    until(lambda: any(found["on_points"] for found in machines(sites)), "an inventory with chains")
    assert detaches(sites) == []
    sites.control.ok("POST", "/plans/shop:commit", {})
    ended = sites.ended(begun(sites)["run_id"])
    assert (ended["state"], ended["error"]["code"]) == ("failed", "not-detached")
    assert sorted(machine["state"] for machine in ended["machines"]) == ["failed", "succeeded"]
    assert [step["error"]["code"] for step in ended["steps"] if step["error"]] == ["read-only"]
    # It is over: a run of the other kinds may begin.
    assert sites.ended(sites.control.ok("POST", "/plans/shop:reprotect", {})["run"]["run_id"])["state"] == "succeeded"


def test_what_has_migrated_leaves_it_too(sites: TwoSites) -> None:
    run = sites.control.ok("POST", "/plans/shop:migrate", {})["run"]
    assert sites.ended(run["run_id"])["state"] == "succeeded"
    assert sites.control.ok("GET", "/plans/shop")["state"] == "migrated"
    ended = sites.ended(begun(sites)["run_id"])
    assert (ended["state"], ended["error"]) == ("succeeded", None)
    assert sorted({params["machine_id"] for params in sites.beta.of("machine-detach")}) == ["made-db", "made-web"]


def test_what_is_protected_no_more_goes_on_leaving_it(sites: TwoSites) -> None:
    gate = sites.beta.hold("machine-detach")
    failover(sites)
    run = begun(sites)
    sites.control.ok("POST", "/plans/shop:protect", {"state": "unprotected"})
    gate.set()
    ended = sites.ended(run["run_id"])
    assert (ended["state"], ended["error"]) == ("succeeded", None)
