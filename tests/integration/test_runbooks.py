"""The runbooks by their full names: parameters are checked, check mode changes nothing, results are handed on."""

from __future__ import annotations

import json
import ssl
import time
import urllib.request

import pytest
from stand import STACKS

PLAN = """
name: letters
source_site: north
target_site: south
rpo: 1h
machines:
  - name: web
"""


def everything(services):
    """Return all that the control plane tells, but for what moves with time."""
    context = ssl.create_default_context(cafile=services.variables["farshore_ca_path"])
    found = {}
    for kind in ("sites", "nodes", "plans", "checkpoints", "runs"):
        request = urllib.request.Request(  # noqa: S310  the address is ours
            f"{services.variables['farshore_url']}/api/v1/{kind}",
            headers={"Authorization": f"Bearer {services.variables['farshore_token']}"},
        )
        with urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        ).open(request) as answer:
            items = json.load(answer)["items"]
        for item in items:
            for moving in ("last_seen", "rpo_s", "inventory_at", "pool", "machines", "next_cycle_at"):
                item.pop(moving, None)
        found[kind] = items
    return found


def settled(services):
    """Return everything once no cycle is under way: the first one lets go of its point a moment after it published."""
    deadline = time.monotonic() + 60
    while True:
        found = everything(services)
        if all(cycle["ended_at"] for plan in found["plans"] for cycle in plan["cycles"]):
            return found
        assert time.monotonic() < deadline, found["plans"]
        time.sleep(0.2)


@pytest.fixture
def plan_src(services):
    path = services.folder / "letters.yml"
    path.write_text(PLAN, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("playbook", "variables", "says"),
    [
        ("protect", {}, "plan is not set"),
        ("protect", {"plan": "letters", "state": "gone"}, "protected, paused or unprotected"),
        ("checkpoint", {"plan": "letters"}, "label is not set"),
        ("failover", {"plan": "letters"}, "set to_site"),
        ("failover", {"plan": "letters", "to_site": "south", "mode": "hasty"}, "set to_site"),
        ("failback", {"plan": "letters"}, "set to_site"),
        ("failback", {"plan": "nothing", "to_site": "south"}, "nothing"),
        ("revert", {"plan": "letters"}, "set checkpoint"),
        ("revert", {"plan": "letters", "checkpoint": "latest"}, "set checkpoint"),
        ("revert", {"plan": "nothing", "checkpoint": "latest_clean"}, "nothing"),
        ("migrate", {"plan": "nothing"}, "nothing"),
        ("replicate", {"plan": "nothing"}, "nothing"),
        ("drill", {"plan": "nothing"}, "nothing"),
    ],
)
def test_what_is_wrong_is_named(services, playbook, variables, says):
    done = services.play(f"farshore.dr.{playbook}", check=False, **variables)
    assert done.returncode != 0
    assert says in done.stdout + done.stderr


@pytest.mark.parametrize("stack", sorted(STACKS))
def test_protect_and_replicate(services, plan_src, stack):
    run = services.with_stack(stack)
    before = everything(services)
    foreseen = run.play("farshore.dr.protect", "--check", "--diff", plan="letters", plan_src=plan_src, check=False)
    assert everything(services) == before, foreseen.stdout

    run.play("farshore.dr.protect", plan="letters", plan_src=plan_src)
    protected = settled(services)
    for playbook, variables in (
        ("protect", {"plan_src": plan_src, "state": "paused"}),
        ("replicate", {}),
        ("checkpoint", {"label": "kept"}),
        ("drill", {}),
        ("failover", {"to_site": "south"}),
    ):
        run.play(f"farshore.dr.{playbook}", "--check", "--diff", plan="letters", check=False, **variables)
        assert everything(services) == protected, playbook

    done = run.play("farshore.dr.replicate", plan="letters")
    assert "it goes on if this job is stopped" in done.stdout
    assert "succeeded" in done.stdout
    run.play("farshore.dr.checkpoint", plan="letters", label="kept", max_age="5m")
    run.play("farshore.dr.checkpoint", plan="letters", label="kept", pin=False)
    run.play("farshore.dr.protect", plan="letters", state="unprotected", keep_copies=False)
    run.play_text(
        """
- hosts: localhost
  gather_facts: false
  tasks:
    - farshore.dr.protection_plan:
        name: letters
        state: absent
        url: "{{ farshore_url }}"
        token: "{{ farshore_token }}"
        ca_path: "{{ farshore_ca_path }}"
"""
    )
