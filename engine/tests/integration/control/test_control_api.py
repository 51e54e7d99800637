"""Sites, nodes, plans, tokens, keys, events: what people meet, wrong input first."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from doubles.control_process import Control, until
from doubles.scripted_site import facts
from doubles.two_sites import PLAN, TwoSites, two_sites


@pytest.fixture(scope="module")
def sites(shared: Control, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoSites]:
    with two_sites(shared, tmp_path_factory.mktemp("sites")) as both:
        both.alpha.machines["id-spare"] = facts("spare")
        shared.ok("POST", "/sites/alpha:refresh")
        yield both


def plan_text(*changes: tuple[str, str]) -> dict[str, str]:
    found = PLAN.format(rpo="1h", count=8)
    for old, new in changes:
        assert old in found
        found = found.replace(old, new)
    return {"source": found}


def test_sites_and_nodes_are_declared_and_previewed(sites: TwoSites) -> None:
    control = sites.control
    wanted = {"platform": "file", "description": "third"}
    assert control.ok("POST", "/sites/gamma:preview", wanted)["changed"] is True
    made = control.call("PUT", "/sites/gamma", wanted)
    assert (made.status_code, made.headers["X-Farshore-Changed"]) == (201, "true")
    again = control.call("PUT", "/sites/gamma", wanted)
    assert (again.status_code, again.headers["X-Farshore-Changed"]) == (200, "false")
    assert control.ok("POST", "/sites/gamma:preview", wanted)["changed"] is False
    assert control.ok("GET", "/sites/gamma")["state"] == "no-node"
    node = {"site": "gama", "roles": ["replication"], "data_address": "127.0.0.1:9103"}
    problem = control.refused(422, "site-unknown", "PUT", "/nodes/gamma-1", node)
    assert (problem["field"], "gamma" in problem["hint"]) == ("site", True)
    assert control.call("PUT", "/nodes/gamma-1", {**node, "site": "gamma"}).status_code == 201
    assert control.ok("GET", "/nodes/gamma-1")["state"] == "new"
    control.refused(409, "site-in-use", "DELETE", "/sites/gamma")
    control.refused(409, "site-in-use", "PUT", "/sites/gamma", {"platform": "kvm"})
    control.refused(503, "site-offline", "POST", "/sites/gamma:check")
    assert control.call("DELETE", "/nodes/gamma-1").status_code == 204
    control.refused(503, "site-no-node", "POST", "/sites/gamma:check")
    assert control.call("DELETE", "/sites/gamma").status_code == 204
    assert control.call("DELETE", "/sites/gamma").headers["X-Farshore-Changed"] == "false"
    problem = control.refused(404, "site-unknown", "GET", "/sites/alfa")
    assert problem["hint"].startswith("Did you mean alpha?")
    problem = control.refused(422, "invalid", "PUT", "/nodes/x", {**node, "data_address": "nowhere"})
    assert problem["field"] == "data_address"
    control.refused(422, "invalid", "PUT", "/nodes/x", {**node, "site": "alpha", "data_address": "h:99999"})


def test_what_the_sites_have_is_shown(sites: TwoSites) -> None:
    site = sites.control.ok("GET", "/sites/alpha")
    assert (site["state"], site["machine_count"], site["networks"][0]["name"]) == ("online", 3, "lan")
    machines = sites.control.ok("GET", "/machines?site=alpha")["items"]
    assert [item["name"] for item in machines] == ["db", "spare", "web"]
    assert sites.control.ok("GET", "/machines/id-db")["name"] == "db"
    problem = sites.control.refused(404, "machine-unknown", "GET", "/machines/spar")
    assert "spare" in problem["hint"]
    sites.control.refused(404, "site-unknown", "GET", "/machines?site=nowhere")


def own(setting: str) -> tuple[str, str]:
    """Return a change that gives the database's interface a setting of its own."""
    return (
        "addresses: {drill: 10.9.0.10",
        f"networks: {{lan: {{failover: {{{setting}}}}}}}\n      addresses: {{drill: 10.9.0.10",
    )


@pytest.mark.parametrize(
    ("change", "code", "field", "line"),
    [
        (("target_site: beta", "target_site: betta"), "site-unknown", "target_site", 3),
        (("target_site: beta", "target_site: alpha"), "plan-invalid", "target_site", 3),
        (("rpo: 1h", "rpo: 0s"), "plan-invalid", "rpo", 4),
        (("rpo: 1h", "rpo: soon"), "plan-invalid", "rpo", 4),
        (("rpo: 1h", "rpq: 1h"), "plan-invalid", "rpq", 4),
        (("rpo: 1h", "rpo: 1h\nrpo: 2h"), "plan-invalid", "rpo", 5),
        (("- name: web", "- name: wep"), "machine-unknown", "machines[1].name", 11),
        (("depends_on: [db]", "depends_on: [dc]"), "plan-invalid", "machines[1].depends_on", 12),
        (("  - name: db\n", "  - name: db\n    depends_on: [web]\n"), "plan-invalid", "machines.depends_on", 5),
        (("port: 5432", "port: 70000"), "plan-invalid", "machines[0].probes[0].port", 10),
        (("type: http", "type: https"), "plan-invalid", "machines[1].probes[0]", 16),
        (("source: lan", "source: lam"), "network-unknown", "networks[0].source", 18),
        (("failover: dmz", "failover: dmx"), "network-unknown", "networks[0].failover", 20),
        (("10.8.0.10", "10.7.0.10"), "address-outside-network", "machines[0].recovery.addresses.failover", 8),
        (own("address: 10.7.0.9"), "address-outside-network", "machines[0].recovery.networks.lan.failover.address", 8),
        (own("network: dmx"), "network-unknown", "machines[0].recovery.networks.lan.failover.network", 8),
        (("10.9.0.11", "10.9.0.10"), "plan-invalid", "machines[1].recovery.addresses.drill", 14),
        (("10.9.0.0/24", "10.9.0.0/99"), "plan-invalid", "networks[0].drill.subnet", 19),
        (("retention: {count: 8}", "retention: {count: 0}"), "plan-invalid", "retention.count", 21),
        (("name: shop", "name: [shop"), "plan-invalid", "source", 2),
        (("name: shop", "name: shop2"), "plan-invalid", "name", 1),
        (("name: shop", "- a"), "plan-invalid", "source", 2),
    ],
)
def test_an_error_in_a_plan_names_key_line_and_next_step(
    sites: TwoSites, change: tuple[str, str], code: str, field: str, line: int
) -> None:
    for method, path in (("POST", "/plans/shop:preview"), ("PUT", "/plans/shop")):
        problem = sites.control.refused(422, code, method, path, plan_text(change))
        assert problem["field"] == field, problem
        assert problem["evidence"]["line"] == line, problem
        assert problem["evidence"]["column"] >= 1
        assert problem["hint"]
    sites.control.refused(404, "plan-unknown", "GET", "/plans/shop")


def test_a_network_that_is_not_mapped_is_found(sites: TwoSites) -> None:
    body = plan_text()
    body["source"] = body["source"].split("networks:")[0]
    problem = sites.control.refused(422, "network-unmapped", "PUT", "/plans/shop", body)
    assert problem["field"] == "networks"


def test_plans_are_applied_changed_and_do_not_overlap(sites: TwoSites) -> None:
    control = sites.control
    preview = control.ok("POST", "/plans/shop:preview", plan_text())
    assert (preview["changed"], preview["before"], preview["after"]["rpo"]) == (True, None, 3600.0)
    made = control.call("PUT", "/plans/shop", plan_text())
    assert (made.status_code, made.json()["revision"], made.json()["warnings"]) == (201, 1, [])
    assert made.json()["state"] == "unprotected"
    assert made.json()["machines"][0]["machine_id"] == "id-db"
    again = control.call("PUT", "/plans/shop", plan_text())
    assert (again.status_code, again.headers["X-Farshore-Changed"]) == (200, "false")
    changed = control.call("PUT", "/plans/shop", plan_text(("rpo: 1h", "rpo: 30m")))
    assert (changed.json()["revision"], changed.headers["X-Farshore-Changed"]) == (2, "true")
    only_comment = {"source": plan_text(("rpo: 1h", "rpo: 30m"))["source"] + "# noted\n"}
    kept = control.call("PUT", "/plans/shop", only_comment)
    assert (kept.json()["revision"], kept.json()["source"][-8:]) == (2, "# noted\n")
    other = {
        "name": "other",
        "source_site": "alpha",
        "target_site": "beta",
        "machines": [{"name": "id-db"}],
        "networks": [{"source": "lan", "drill": {"subnet": "10.1.0.0/24"}, "failover": "dmz"}],
    }
    problem = control.refused(409, "machine-overlap", "PUT", "/plans/other", {"definition": other})
    assert problem["evidence"]["plans"] == ["other", "shop"]
    assert problem["field"] == "machines[0].name"
    other["machines"] = [{"name": "spare"}]
    assert control.call("PUT", "/plans/other", {"definition": other}).status_code == 201
    control.refused(422, "invalid", "PUT", "/plans/other", {})
    control.refused(422, "invalid", "PUT", "/plans/other", {"definition": other, "source": "name: x"})
    assert [plan["name"] for plan in control.ok("GET", "/plans")["items"]] == ["other", "shop"]
    control.refused(409, "not-protected", "POST", "/plans/other:replicate", {})
    control.refused(409, "not-protected", "POST", "/plans/other:drill", {})
    control.refused(409, "not-protected", "POST", "/plans/other:failover", {"to_site": "beta"})
    problem = control.refused(
        422, "machine-unknown", "POST", "/plans/shop:protect", {"state": "protected", "machines": ["spare"]}
    )
    assert problem["field"] == "machines[0]"
    for name in ("other", "shop"):
        assert control.call("DELETE", f"/plans/{name}").status_code == 204


def test_a_key_makes_a_change_happen_once(sites: TwoSites) -> None:
    control = sites.control
    headers = {"Idempotency-Key": "once"}
    first = control.call("PUT", "/sites/keyed", {"platform": "file"}, headers=dict(headers))
    assert first.status_code == 201
    control.ok("DELETE", "/sites/keyed")
    second = control.call("PUT", "/sites/keyed", {"platform": "file"}, headers=dict(headers))
    assert (second.status_code, second.json()) == (201, first.json())
    assert second.headers["Idempotency-Replayed"] == "true"
    control.refused(404, "site-unknown", "GET", "/sites/keyed")
    control.refused(422, "idempotency-key-reused", "PUT", "/sites/keyed", {"platform": "kvm"}, headers=dict(headers))


def test_keyed_changes_at_the_same_time_happen_once(sites: TwoSites) -> None:
    answers: list[requests.Response] = []
    body = {"name": "racer", "role": "viewer"}

    def ask() -> None:
        answers.append(sites.control.call("POST", "/tokens", body, headers={"Idempotency-Key": "race"}))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409, 409]
    assert sum(item["name"] == "racer" for item in sites.control.ok("GET", "/tokens")["items"]) == 1


def test_changes_are_streamed(sites: TwoSites) -> None:
    seen: list[dict[str, str]] = []
    ready = threading.Event()

    def listen() -> None:
        with sites.control.call("GET", "/events", stream=True, timeout=60) as stream:
            ready.set()
            for line in stream.iter_lines():
                if line.startswith(b"data: "):
                    seen.append(json.loads(line[6:]))
                    if {"kind": "site", "name": "streamed"} in seen:
                        return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert ready.wait(60)
    sites.control.ok("PUT", "/sites/streamed", {"platform": "file"})
    thread.join(60)
    assert {"kind": "site", "name": "streamed"} in seen
    assert all(item.get("kind") != "task" for item in seen)


def test_every_change_is_in_the_trail(sites: TwoSites) -> None:
    sites.control.ok("PUT", "/sites/trailed", {"platform": "file"})
    trail = sites.control.ok("GET", "/audit?limit=1000")
    assert trail["chain_broken_at"] is None
    entry = next(item for item in trail["items"] if item["subject"] == "trailed")
    assert entry["action"] == "put_site"
    assert entry["actor"].startswith("first-admin (")


def test_errors_of_the_web_server_are_problems_too(sites: TwoSites) -> None:
    assert sites.control.refused(404, "not-found", "GET", "/nothing")["hint"]
    sites.control.refused(405, "method-not-allowed", "PATCH", "/plans")
    health = sites.control.call("GET", "/health", token="")
    assert health.json()["status"] == "ok"
    assert health.headers["cache-control"] == "no-store"


def test_a_second_server_on_one_home_is_refused(sites: TwoSites) -> None:
    import subprocess
    import sys

    path = str(sites.control.home.path)
    command = [sys.executable, "-m", "farshore.control.server", "--home", path]
    second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 73
    assert "already-running" in second.stderr
    assert sites.control.home.running_pid() == sites.control.process.pid  # type: ignore[union-attr]


def test_a_taken_port_is_named(sites: TwoSites, tmp_path: Path) -> None:
    import subprocess
    import sys

    port = str(sites.control.home.port)
    command = [sys.executable, "-m", "farshore.control.server", "--home", str(tmp_path / "h"), "--port", port]
    second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 69
    assert port in second.stderr
    until(lambda: sites.control.ok("GET", "/health"), "the first one is not disturbed")
