"""Hooks of drills and failovers: their order, what they are told, what their failure does; gates; where none runs."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from doubles.control_process import Control, until
from doubles.scripted_node import ScriptedNode
from doubles.two_sites import PLAN, TwoSites, two_sites
from farshore.control import clock
from farshore.model.plan import Plan
from farshore.model.task import HookParams, Task
from farshore.recovery import evidence
from farshore.recovery.hooks.player import Player
from farshore.recovery.hooks.run import Settings
from farshore.recovery.secrets import Secrets
from pydantic import ValidationError

#: A stand-in for the interpreter: it tells the text of the file, and ends as the file says.
PLAYER = """#!/bin/sh
file=$(sed -n 's/.*import_tasks: //p' play.yml)
cat "$file"
grep -q WELL "$file" && printf '{"status": "successful", "ok": 1, "changed": 1}' > "/proc/self/fd/$4"
exit 0
"""


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        yield both


class Hooked:
    """What the recovery node of a site has played."""

    def __init__(self, folder: Path, node: ScriptedNode) -> None:
        folder.mkdir()
        program = folder / "program"
        program.write_text(PLAYER)
        program.chmod(0o755)
        (folder / "secrets").mkdir()
        self.node = node
        self.played: list[HookParams] = []
        self._player = Player(
            Settings(folder / "work", None, str(program)), Secrets(folder / "secrets"), self._fetch, folder / "kept", 4
        )
        node.handlers["hook"] = self._play

    def _fetch(self, digest: str) -> bytes:
        answer = requests.get(
            f"{self.node.url}/node/v1/bundles/{digest}",
            cert=self.node.certificate,
            verify=str(self.node.ca_path),
            timeout=60,
        )
        answer.raise_for_status()
        return base64.b64decode(answer.json()["content"])

    def _play(self, task: Task) -> dict[str, Any]:
        params = HookParams.model_validate(task.params)
        self.played.append(params)
        return self._player.play(
            params.bundle,
            params.file,
            params.timeout_s,
            is_cancelled=lambda: task.task_id in self.node.cancelled,
            context=params.context,
            variables=params.vars,
            secrets=params.secrets,
        ).model_dump(mode="json")

    def asked(self) -> list[str]:
        return [params.file.removeprefix("hooks/").removesuffix(".yml") for params in self.played]


def put(sites: TwoSites, hooks: str, *files: str, **more: str) -> Any:
    """Send the plan with hooks; ``files`` name those that end well, ``more`` the text of others."""
    text = PLAN.format(rpo="1h", count=8) + hooks
    content = {**dict.fromkeys(files, "WELL"), **more}
    encoded = {f"hooks/{name}.yml": base64.b64encode(value.encode()).decode() for name, value in content.items()}
    return sites.control.ok("PUT", "/plans/shop", {"source": text, "files": encoded})


HOOKS = """\
hooks:
  pre_drill: hooks/before.yml
  post_drill: hooks/after.yml
  always_drill: hooks/open.yml
boot_groups:
  - {name: data, machines: [db], hooks: {pre_drill: hooks/group.yml, post_drill: hooks/grouped.yml}}
  - {name: front, machines: [web]}
"""


def of_web(hooks: str) -> str:
    return f"  - name: web\n    hooks: {hooks}\n"


def test_hooks_of_all_levels_run_in_order_and_are_told_of_the_run(sites: TwoSites, tmp_path: Path) -> None:
    beta = Hooked(tmp_path / "hooks", sites.beta_node)
    text = PLAN.format(rpo="1h", count=8).replace("  - name: web\n", of_web("{pre_drill: hooks/web.yml}")) + HOOKS
    problem = sites.control.refused(422, "hook-files-missing", "PUT", "/plans/shop", {"source": text})
    assert problem["field"] == "files"
    named = ["hooks/after.yml", "hooks/before.yml", "hooks/group.yml", "hooks/grouped.yml"]
    named += ["hooks/open.yml", "hooks/web.yml"]
    assert sites.control.ok("POST", "/plans/shop:preview", {"source": text})["files"] == named
    files = {name: base64.b64encode(b"WELL").decode() for name in named}
    left_out = {name: content for name, content in files.items() if name != "hooks/group.yml"}
    problem = sites.control.refused(422, "hook-file-missing", "PUT", "/plans/shop", {"source": text, "files": left_out})
    assert problem["field"] == "boot_groups[0].hooks.pre_drill"
    assert problem["evidence"]["line"] > 20
    plan = sites.control.ok("PUT", "/plans/shop", {"source": text, "files": files})
    # Again without files: those that it has are kept, and nothing changes.
    assert sites.control.call("PUT", "/plans/shop", {"source": text}).headers["X-Farshore-Changed"] == "false"
    sites.protect()
    run = sites.ended(sites.control.ok("POST", "/plans/shop:drill", {})["run"]["run_id"])
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    assert beta.asked() == ["before", "group", "grouped", "web", "after", "open"]
    before, group, _, web, after, always = beta.played
    assert (always.context["outcome"], always.context["error"]) == ("succeeded", None)
    assert {params.bundle for params in beta.played} == {plan["definition"]["bundle"]}
    assert before.context["run_id"] == run["run_id"]
    assert (before.context["verb"], before.context["moment"], before.context["level"]) == ("drill", "pre", "plan")
    assert (before.context["source_site"], before.context["target_site"]) == ("alpha", "beta")
    assert set(group.context["machines"]) == {"db"}
    assert web.context["machine"]["address"] == "10.9.0.11"
    assert web.context["machine"]["checkpoint"]
    assert after.context["machines"]["db"]["state"] == "green"
    steps = {(step["name"], step["machine"]): step for step in run["steps"]}
    assert steps["hook pre_drill", None]["evidence"]["output"] == "WELL"
    assert steps["hook pre_drill", "web"]["state"] == "succeeded"
    order = [(step["name"], step["machine"]) for step in run["steps"]]
    assert order.index(("validate", "db")) < order.index(("hook post_drill of group data", None))
    assert order.index(("hook post_drill of group data", None)) < order.index(("hook pre_drill", "web"))
    assert order.index(("hook pre_drill", "web")) < order.index(("power on", "web"))
    report = sites.control.ok("GET", f"/runs/{run['run_id']}/report")
    evidence.verify(report)
    assert any(step["evidence"] for step in report["body"]["run"]["steps"])
    # A node gets no bundle that no task of it needs.
    answer = requests.get(
        f"{sites.alpha_node.url}/node/v1/bundles/{before.bundle}",
        cert=sites.alpha_node.certificate,
        verify=str(sites.alpha_node.ca_path),
        timeout=60,
    )
    assert answer.status_code == 404


def test_a_hook_that_fails_stops_the_run_before_anything_is_done(sites: TwoSites, tmp_path: Path) -> None:
    beta = Hooked(tmp_path / "hooks", sites.beta_node)
    put(sites, "hooks: {pre_failover: hooks/bad.yml, always_failover: hooks/open.yml}\n", "open", bad="no result")
    sites.protect()
    run = sites.ended(sites.control.ok("POST", "/plans/shop:failover", {"to_site": "beta"})["run"]["run_id"])
    assert (run["state"], run["error"]["code"]) == ("failed", "hook-failed")
    # What is always done comes after the way back, and is told how it went.
    assert beta.asked() == ["bad", "open"]
    assert (beta.played[1].context["outcome"], beta.played[1].context["error"]["code"]) == ("failed", "hook-failed")
    assert [step["name"] for step in run["steps"]][-1] == "hook always_failover"
    assert sites.alpha.asked()["machine-stop"] == 0
    assert sites.control.ok("GET", "/plans/shop")["active_site"] == "alpha"
    step = next(step for step in run["steps"] if step["name"] == "hook pre_failover")
    assert (step["state"], step["evidence"]["output"]) == ("failed", "no result")
    again = sites.control.ok("POST", f"/runs/{run['run_id']}:retry", {})["run"]["run_id"]
    assert sites.ended(again)["error"]["code"] == "hook-failed"
    assert beta.asked() == ["bad", "open", "bad", "open"]


def test_a_hook_may_fail_where_the_plan_says_so_and_one_of_a_machine_fails_that_machine(
    sites: TwoSites, tmp_path: Path
) -> None:
    beta = Hooked(tmp_path / "hooks", sites.beta_node)
    hooks = "hooks: {pre_drill: {file: hooks/bad.yml, on_failure: continue}}\n"
    text = PLAN.format(rpo="1h", count=8).replace("  - name: web\n", of_web("{pre_drill: hooks/bad.yml}")) + hooks
    bad = {"hooks/bad.yml": base64.b64encode(b"no result").decode()}
    sites.control.ok("PUT", "/plans/shop", {"source": text, "files": bad})
    sites.protect()
    run = sites.ended(sites.control.ok("POST", "/plans/shop:drill", {})["run"]["run_id"])
    assert beta.asked() == ["bad", "bad"]
    assert {machine["name"]: machine["state"] for machine in run["machines"]} == {"db": "green", "web": "failed"}
    assert run["error"]["code"] == "hook-failed"
    assert not sites.beta.tagged


def test_a_gate_holds_the_run_until_it_is_resumed(sites: TwoSites) -> None:
    put(sites, "boot_groups:\n  - {name: all, machines: [db, web], hooks: {pre_failover: gate}}\n")
    sites.protect()
    run_id = sites.control.ok("POST", "/plans/shop:failover", {"to_site": "beta"})["run"]["run_id"]
    until(lambda: sites.control.ok("GET", f"/runs/{run_id}")["state"] == "paused", "the run waits at its gate")
    run = sites.control.ok("GET", f"/runs/{run_id}")
    gate = run["facts"]["gate"]
    assert (gate["step"], gate["machine"], gate["expired"]) == ("hook pre_failover of group all", None, False)
    began = next(step for step in run["steps"] if step["name"] == gate["step"])["started_at"]
    assert gate["until"] > (clock.parse_iso(began) or 0.0) + 86399
    # The old machines are off and fenced, and nothing has been started yet: now the storage may be switched.
    assert sites.alpha.asked()["machine-fence"] == 2
    assert sites.beta.asked()["machine-power-on"] == 0
    sites.control.ok("POST", f"/runs/{run_id}:resume")
    run = sites.ended(run_id)
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    assert run["facts"]["gate"] is None
    assert sites.beta.asked()["machine-power-on"] == 2


def test_a_gate_that_nobody_opens_is_given_up_and_says_so(sites: TwoSites) -> None:
    put(sites, "boot_groups:\n  - {name: all, machines: [db, web], hooks: {pre_drill: {hook: gate, timeout: 1s}}}\n")
    sites.protect()
    run = sites.ended(sites.control.ok("POST", "/plans/shop:drill", {})["run"]["run_id"])
    assert (run["state"], run["error"]["code"], run["facts"]["gate"]) == ("failed", "gate-timeout", None)
    step = next(step for step in run["steps"] if step["name"] == "hook pre_drill of group all")
    assert (step["state"], step["error"]["code"]) == ("failed", "gate-timeout")
    assert sites.beta.asked()["machine-power-on"] == 0
    assert not sites.beta.tagged


@pytest.mark.parametrize(
    ("hooks", "why"),
    [
        ("hooks: {always_drill: gate}\n", "waits at no gate"),
        ("boot_groups:\n  - {name: all, machines: [db, web], hooks: {always_drill: h.yml}}\n", "plan's own hooks"),
        ("boot_groups:\n  - {name: all, machines: [db, web], hooks: {pre_reprotect: h.yml}}\n", "plan alone"),
        ("boot_groups:\n  - {name: all, machines: [db, web], hooks: {post_rollback: gate}}\n", "plan alone"),
    ],
)
def test_what_is_called_for_the_plan_alone_is_not_named_by_a_part_of_it(hooks: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Plan.model_validate(yaml.safe_load(PLAN.format(rpo="1h", count=8) + hooks))


def test_an_unplanned_failover_calls_no_hook_of_the_site_that_is_given_up(sites: TwoSites, tmp_path: Path) -> None:
    alpha = Hooked(tmp_path / "alpha-hooks", sites.alpha_node)
    beta = Hooked(tmp_path / "beta-hooks", sites.beta_node)
    hooks = "hooks: {pre_failover: {file: hooks/array.yml, at: source}, post_failover: hooks/dns.yml}\n"
    put(sites, hooks, "array", "dns")
    sites.protect()
    wish = {"to_site": "beta", "mode": "unplanned"}
    run = sites.ended(sites.control.ok("POST", "/plans/shop:failover", wish)["run"]["run_id"])
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    assert (alpha.asked(), beta.asked()) == ([], ["dns"])
    step = next(step for step in run["steps"] if step["name"] == "hook pre_failover")
    assert "given up" in step["detail"]


def test_a_planned_failover_calls_hooks_at_both_sites(sites: TwoSites, tmp_path: Path) -> None:
    alpha = Hooked(tmp_path / "alpha-hooks", sites.alpha_node)
    beta = Hooked(tmp_path / "beta-hooks", sites.beta_node)
    hooks = "hooks: {pre_failover: {file: hooks/array.yml, at: source}, post_failover: hooks/dns.yml}\n"
    put(sites, hooks, "array", "dns")
    sites.protect()
    run = sites.ended(sites.control.ok("POST", "/plans/shop:failover", {"to_site": "beta"})["run"]["run_id"])
    assert run["state"] == "succeeded", (run["error"], run["steps"])
    assert (alpha.asked(), beta.asked()) == (["array"], ["dns"])


def test_a_rollback_calls_hooks_before_and_after_and_one_that_fails_afterwards_moves_nothing(
    sites: TwoSites, tmp_path: Path
) -> None:
    alpha = Hooked(tmp_path / "alpha-hooks", sites.alpha_node)
    beta = Hooked(tmp_path / "beta-hooks", sites.beta_node)
    hooks = (
        "hooks: {pre_rollback: {file: hooks/tell.yml, at: source}, post_rollback: hooks/dns.yml,"
        " always_rollback: hooks/open.yml}\n"
    )
    put(sites, hooks, "tell", "open", dns="it goes wrong")
    sites.protect()
    wish = {"to_site": "beta", "commit": "manual"}
    assert sites.ended(sites.control.ok("POST", "/plans/shop:failover", wish)["run"]["run_id"])["state"] == "succeeded"
    run = sites.ended(sites.control.ok("POST", "/plans/shop:rollback")["run"]["run_id"])
    assert (run["state"], run["facts"]["failures"]["hook post_rollback"]["code"]) == ("partial", "hook-failed"), run
    assert (alpha.asked(), beta.asked()) == (["dns", "open"], ["tell"])
    assert [params.context["verb"] for params in alpha.played] == ["rollback", "rollback"]
    steps = [step["name"] for step in run["steps"]]
    assert steps.index("hook pre_rollback") < steps.index("stop") < steps.index("hook post_rollback")
    plan = sites.control.ok("GET", "/plans/shop")
    assert (plan["state"], plan["active_site"]) == ("protected", "alpha")


def test_a_rollback_that_may_not_begin_leaves_all_where_it_runs(sites: TwoSites, tmp_path: Path) -> None:
    Hooked(tmp_path / "alpha-hooks", sites.alpha_node)
    put(sites, "hooks: {pre_rollback: hooks/tell.yml}\n", tell="it goes wrong")
    sites.protect()
    wish = {"to_site": "beta", "commit": "manual"}
    assert sites.ended(sites.control.ok("POST", "/plans/shop:failover", wish)["run"]["run_id"])["state"] == "succeeded"
    run = sites.ended(sites.control.ok("POST", "/plans/shop:rollback")["run"]["run_id"])
    assert (run["state"], run["error"]["code"]) == ("failed", "hook-failed"), run
    plan = sites.control.ok("GET", "/plans/shop")
    assert (plan["state"], plan["active_site"], plan["epoch"]) == ("failed-over", "beta", 2)
    assert {sites.beta.machines[name]["power"] for name in ("made-db", "made-web")} == {"on"}


def test_every_run_with_a_story_leaves_its_evidence_in_all_forms(sites: TwoSites) -> None:
    sites.plan(**{"rpo: 1h\n": "rpo: 1h\nrto: 1h\n"})
    sites.protect()
    drill = sites.ended(sites.control.ok("POST", "/plans/shop:drill", {"keep": True})["run"]["run_id"])
    clean_up = sites.ended(sites.control.ok("POST", "/plans/shop:drill-end")["run"]["run_id"])
    key = evidence.load_key(sites.control.ok("GET", "/evidence-key")["pem"].encode())
    reports = []
    for run in (drill, clean_up):
        paths = {"json": "report", "html": "report.html", "xml": "report.xml"}
        content = {
            name: sites.control.call("GET", f"/runs/{run['run_id']}/{path}").content for name, path in paths.items()
        }
        report = evidence.read(content["json"])
        evidence.verify(report, key)
        evidence.verify_rendering(report, "html", content["html"])
        evidence.verify_rendering(report, "junit", content["xml"])
        for name, data in content.items():
            assert (sites.control.home.reports / f"{run['run_id']}.{name}").read_bytes() == data
        reports.append(report)
    evidence.verify_chain(reports, key, from_origin=True)
    body = reports[0]["body"]
    assert body["objectives"]["machines"] == {name: {"rpo": True, "rto": True} for name in ("db", "web")}
    plan = sites.control.ok("GET", "/plans/shop")["definition"]
    assert (
        body["plan"]["digest"]
        == hashlib.sha256(json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    )
    assert body["plan"]["digest"] == reports[1]["body"]["plan"]["digest"]
