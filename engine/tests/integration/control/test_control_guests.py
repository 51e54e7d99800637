"""Guests in a run: what is asked of a node before a machine starts, what stops it, and its names after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.two_sites import TwoSites, two_sites

GUEST = """\
  - name: web
    guest: {stop_on: warning}
    depends_on: [db]
    recovery:
      hostname: web-dr
      dns: [www]
"""
NETWORK = """\
    failover: dmz
    guest: {failover: {subnet: 10.8.0.0/16, gateway: 10.8.0.1}}
dns: {server: 127.0.0.1, zone: shop.example}
"""


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        changes = {"  - name: web\n    depends_on: [db]\n    recovery:\n": GUEST, "    failover: dmz\n": NETWORK}
        both.plan(**changes)
        both.protect()
        yield both


def steps(run: dict[str, Any], name: str) -> dict[str, Any]:
    return {step["machine"]: step for step in run["steps"] if step["name"] == name}


def test_guests_are_prepared_before_they_start_and_named_after(sites: TwoSites) -> None:
    order = {"to_site": "beta", "mode": "unplanned"}
    run = sites.ended(sites.control.ok("POST", "/plans/shop:failover", order)["run"]["run_id"])
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    asked = {params["name"]: params for params in sites.beta.of("machine-prepare")}
    assert asked["web"]["hostname"] == "web-dr"
    [nic] = asked["web"]["nics"]
    assert (nic["address"], nic["prefix"], nic["gateway"]) == ("10.8.0.11", 16, "10.8.0.1")
    kinds = [kind for kind, _ in sites.beta.calls if kind in {"machine-prepare", "machine-power-on"}]
    assert kinds[:2] == ["machine-prepare"] * 2
    [names] = sites.beta.of("dns-update")
    assert names["records"] == [{"name": "www", "address": "10.8.0.11"}]
    assert "www A 10.8.0.11" in steps(run, "dns")["web"]["detail"]
    assert set(steps(run, "prepare")) == {"db", "web"}


def test_preflight_tells_what_a_node_lacks_and_no_more_once_it_is_there(sites: TwoSites) -> None:
    def codes() -> set[str]:
        findings = sites.control.ok("GET", "/plans/shop/preflight")["findings"]
        return {finding["code"] for finding in findings}

    sites.beta_node.kit = {"host": "elsewhere", "lacks": ["ntfs-3g (package ntfs-3g)"]}
    sites.alpha_node.kit = {"host": Path("/proc/sys/kernel/random/boot_id").read_text().strip()}
    until(lambda: {"guest-tools-missing", "control-plane-shares-fate"} <= codes(), "both nodes have told")
    sites.beta_node.kit = sites.alpha_node.kit
    until(lambda: not {"guest-tools-missing", "control-plane-shares-fate"} & codes(), "the node has it now")


def test_a_finding_stops_a_machine_where_the_plan_says_and_a_drill_names_nothing(sites: TwoSites) -> None:
    found = {"code": "ntfs-dirty", "severity": "warning", "message": "not closed", "remedy": "wait"}
    result = {"findings": [found], "stopped": "not closed [ntfs-dirty]"}
    sites.beta.guests = {"web": result}
    before = sites.control.ok("POST", "/plans/shop:failover-preview", {"to_site": "beta"})["after"]["guests"]
    assert before == {"db": None, "web": None}
    run = sites.ended(sites.control.ok("POST", "/plans/shop:drill", {})["run"]["run_id"])
    assert run["state"] == "failed"
    assert run["error"]["code"] == "guest-check-failed"
    assert "not closed" in steps(run, "prepare")["web"]["detail"]
    assert sites.beta.of("machine-power-on") == []
    assert sites.beta.of("dns-update") == []
    assert sites.beta.tagged == {}
    seen = sites.control.ok("POST", "/plans/shop:failover-preview", {"to_site": "beta"})["after"]["guests"]
    assert seen["web"]["run"] == run["run_id"]
    assert [(one["code"], one["severity"]) for one in seen["web"]["findings"]] == [("ntfs-dirty", "warning")]
    assert seen["db"]["findings"] == []
