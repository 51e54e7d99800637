"""In check mode nothing is written: only GET and side-effect-free previews are sent, and the state stays as it was."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

MODULES = sorted(path.stem for path in (Path(__file__).parents[4] / "plugins" / "modules").glob("*.py"))
FAST = {"wait_interval": 0.001}

#: Every module with parameters that would change something, from the state that the fixture makes.
WRITES = [
    ("site", {"name": "gamma", "platform": "kvm"}),
    ("site", {"name": "beta", "platform": "kvm", "description": "other"}),
    ("site", {"name": "beta", "state": "absent"}),
    ("site_link", {"source_site": "beta", "target_site": "alpha"}),
    ("site_link", {"source_site": "alpha", "target_site": "beta", "bandwidth": {"limit": "9 MiB/s"}}),
    ("site_link", {"source_site": "alpha", "target_site": "beta", "state": "absent"}),
    ("replication_node", {"name": "n-2", "site": "alpha", "data_address": "127.0.0.1:1"}),
    ("replication_node", {"name": "n-1", "site": "alpha", "data_address": "127.0.0.1:9101", "enrolment_token": True}),
    ("replication_node", {"name": "n-1", "state": "absent"}),
    ("protection_plan", {"name": "shop", "definition": {"name": "shop", "rpo": "1m"}}),
    ("protection_plan", {"name": "shop", "state": "absent"}),
    ("protect", {"plan": "shop"}),
    ("replicate", {"plan": "shop"}),
    ("checkpoint", {"plan": "shop", "label": "new"}),
    ("checkpoint", {"plan": "shop", "label": "old", "pin": False}),
    ("checkpoint", {"plan": "shop", "label": "old", "pin": False, "state": "absent"}),
    ("drill", {"plan": "shop"}),
    ("drill", {"plan": "kept", "state": "absent"}),
    ("failover", {"plan": "shop", "to_site": "beta"}),
    ("failover", {"plan": "shop", "to_site": "beta", "groups": ["back"]}),
    ("failover", {"plan": "kept", "state": "committed"}),
    ("failover", {"plan": "kept", "state": "rolled_back"}),
    ("reprotect", {"plan": "shop", "accept_divergence": True}),
    ("migrate", {"plan": "shop", "to_site": "beta"}),
    ("retire", {"plan": "shop", "site": "alpha"}),
    ("failover", {"plan": "shop", "to_site": "beta", "mode": "unplanned", "force": True}),
    ("run", {"run_id": "run-2", "state": "cancelled", "wait": False}),
    ("run", {"run_id": "run-2", "state": "paused", "wait": False}),
    ("run", {"run_id": "run-3", "state": "resumed", "wait": False}),
    ("run", {"run_id": "run-4", "state": "approved", "wait": False}),
    ("run", {"run_id": "run-5", "state": "retried", "wait": False}),
]
READS = [
    ("catalog_info", {"check_sites": ["beta"]}),
    ("preflight_info", {"plan": "shop"}),
    ("site_info", {}),
    ("machine_info", {}),
    ("protection_plan_info", {}),
    ("checkpoint_info", {}),
    ("run_info", {}),
]


@pytest.fixture
def world(ok, double):
    for name in ("alpha", "beta"):
        ok("site", name=name, platform="kvm")
    ok("replication_node", name="n-1", site="alpha", data_address="127.0.0.1:9101")
    ok("site_link", source_site="alpha", target_site="beta")
    for name in ("shop", "kept"):
        ok("protection_plan", name=name, definition={"name": name})
    double.state.plans["kept"].update(conditions=["drilling"], committed=False)
    double.state.machines = {}
    ok("checkpoint", plan="shop", label="old", **FAST)
    for state in ("running", "paused", "waiting-approval", "failed"):
        double.state.start("failover", "shop", state=state, pause_requested=state == "paused", until=10**9)
    double.log.clear()
    return double


def test_every_module_is_tried():
    # What a report changes is a file here; test_report tries it.
    assert sorted({module for module, unused in WRITES + READS} | {"report"}) == MODULES


@pytest.mark.parametrize("diff", [False, True])
@pytest.mark.parametrize(("module", "params"), WRITES)
def test_check_mode_foresees_and_writes_nothing(world, ok, module, params, diff):
    before = copy.deepcopy((world.snapshot(), world.state.runs))
    result = ok(module, check=True, diff=diff, **params)
    assert result["changed"], result
    assert "diff" in result or module == "replication_node"
    for method, path in world.requests():
        assert method == "GET" or (method == "POST" and path.endswith((":preview", "-preview"))), (method, path)
    assert copy.deepcopy((world.snapshot(), world.state.runs)) == before


@pytest.mark.parametrize(("module", "params"), WRITES)
def test_the_real_run_then_changes_what_was_foreseen(world, ok, module, params):
    more = FAST if module in ("replicate", "checkpoint", "drill", "failover", "reprotect", "migrate", "retire") else {}
    foreseen = ok(module, check=True, **params, **more)
    done = ok(module, **params, **more)
    assert done["changed"] == foreseen["changed"]


@pytest.mark.parametrize(("module", "params"), READS)
def test_info_modules_only_read(world, ok, module, params):
    assert not ok(module, check=True, **params)["changed"]
    assert {method for method, unused in world.requests()} == {"GET"}
