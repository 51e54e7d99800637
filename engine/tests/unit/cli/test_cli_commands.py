"""What each command sends, prints and ends with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from doubles.cli_documents import SITE, machine, plan, run_document
from doubles.cli_server import Api, Request, Result
from farshore.cli.main import hoist
from farshore.model.plan import Plan

Cli = Callable[..., Result]


def test_the_program_starts_without_engine_database_or_web_framework():
    code = (
        "import sys; import farshore.cli.main as m\n"
        "heavy = {'sqlalchemy', 'dbos', 'fastapi', 'requests', 'cryptography', 'pydantic', 'yaml', 'libvirt'}\n"
        "sys.exit(repr(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["status"], ["status"]),
        (["status", "--json"], ["--json", "status"]),
        (["--json", "status"], ["--json", "status"]),
        (["a", "--", "--json"], ["a", "--", "--json"]),
        (["a", "--json", "--", "--json"], ["--json", "a", "--", "--json"]),
    ],
)
def test_json_may_stand_anywhere_before_a_double_dash(given: list[str], wanted: list[str]):
    assert hoist(given) == wanted


def test_tables_for_people_and_one_document_for_programs(api: Api, cli: Cli):
    api.on("GET", "/sites", {"items": [SITE]})
    people = cli("site", "list")
    assert "alpha" in people.out
    assert "60.0 GiB" in people.out
    programs = cli("site", "list", "--json")
    assert programs.document == {"items": [SITE]}
    assert programs.err == ""


def test_an_error_is_one_line_with_field_code_and_hint(api: Api, cli: Cli):
    api.problem(
        "PUT", "/nodes/n1", 422, code="invalid", detail="no port in it", field="data_address", hint="Write HOST:PORT."
    )
    result = cli("node", "add", "n1", "--site", "alpha", "--data-address", "here")
    assert result.status == 65
    assert result.err == "error: data_address: no port in it [invalid] Write HOST:PORT.\n"
    assert result.out == ""


def test_an_error_for_programs_is_json_on_stderr(api: Api, cli: Cli):
    api.problem("GET", "/sites/x", 404, code="site-unknown", detail="there is no site 'x'", hint="Did you mean alpha?")
    result = cli("--json", "site", "show", "x")
    assert result.status == 66
    assert result.out == ""
    found = json.loads(result.err)
    assert (found["code"], found["exit_status"]) == ("site-unknown", 66)


@pytest.mark.parametrize(("status", "exit_status"), [(401, 77), (403, 77), (404, 66), (409, 73), (422, 65), (507, 74)])
def test_the_exit_status_tells_the_class_of_the_error(api: Api, cli: Cli, status: int, exit_status: int):
    api.problem("GET", "/plans", status, code="any", detail="any")
    assert cli("plan", "list").status == exit_status


def test_a_control_plane_that_is_down_says_how_to_start_it(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FARSHORE_HOME", str(tmp_path))
    monkeypatch.setenv("FARSHORE_TOKEN", "t")
    monkeypatch.setenv("FARSHORE_URL", "https://127.0.0.1:9")
    monkeypatch.delenv("FARSHORE_CA_PATH", raising=False)
    result = cli("status")
    assert result.status == 69
    assert "farshore up" in result.err
    assert result.err.count("\n") == 1


def test_status_shows_rpo_against_its_target(api: Api, cli: Cli):
    api.on("GET", "/sites", {"items": [SITE]})
    api.on("GET", "/plans", {"items": [plan(conditions=["rpo-exceeded"], last_error={"detail": "the pool is full"})]})
    api.on("GET", "/checkpoints", {"items": []})
    api.answers["GET", "/runs"] = lambda request: (
        200,
        {"items": [run_document()] if request.query["state"] == "open" else []},
    )
    result = cli("status")
    assert result.status == 0
    for text in ("shop", "42.0 s", "15 min 0 s", "rpo-exceeded", "the pool is full", "run-1"):
        assert text in result.out


def test_a_plan_says_what_its_last_error_asks_for(api: Api, cli: Cli):
    error = {"code": "pool-full", "message": "the pool is full", "hint": "Drop checkpoints, or make the pool larger."}
    api.on("GET", "/plans/shop", plan(last_error=error))
    result = cli("plan", "show", "shop")
    assert result.status == 0
    for text in ("the pool is full", "Drop checkpoints"):
        assert text in result.out


def test_brackets_in_names_and_notes_are_text_and_no_markup(api: Api, cli: Cli):
    odd = "[red]a[/red] [x] [/]"
    error = {"code": "odd-code", "detail": odd}
    api.on("GET", "/runs/run-1", run_document(state="failed", ended_at="2026-01-31T08:00:11Z", plan=odd, error=error))
    api.on("GET", "/sites", {"items": [SITE | {"name": odd}]})
    shown = cli("run", "show", "run-1").out
    assert shown.count(odd) >= 2
    assert "[odd-code]" in shown
    assert odd in cli("site", "list").out


def test_a_name_cannot_steer_the_terminal(api: Api, cli: Cli):
    api.on("GET", "/sites", {"items": [SITE | {"name": "\x1b]0;owned\x07\x9b2J"}]})
    api.problem("GET", "/plans", 409, code="any", detail="\x1b[2Jgone")
    assert not {"\x1b", "\x07", "\x9b"} & set(cli("site", "list").out + cli("plan", "list").err)


class TestSitesAndNodes:
    def test_a_site_is_added_and_the_next_step_named(self, api: Api, cli: Cli):
        api.on("PUT", "/sites/alpha", SITE | {"nodes": []}, status=201, X_Farshore_Changed="true")
        result = cli("site", "add", "alpha", "--platform", "kvm", "--description", "here")
        assert api.sent("PUT")[0].body == {"platform": "kvm", "description": "here"}
        assert "farshore node add" in result.out

    def test_a_second_time_nothing_changes_and_that_is_said(self, api: Api, cli: Cli):
        api.on("PUT", "/sites/alpha", SITE, X_Farshore_Changed="false")
        assert "unchanged" in cli("site", "add", "alpha").out
        assert cli("--json", "site", "add", "alpha").document["changed"] is False

    def test_a_check_with_an_error_ends_with_1_and_shows_the_worst_first(self, api: Api, cli: Cli):
        findings = [
            {"code": "slow", "severity": "warning", "message": "emulated", "remedy": "", "subject": ""},
            {
                "code": "pool-missing",
                "severity": "error",
                "message": "no pool",
                "remedy": "Make it.",
                "subject": "pool",
            },
        ]
        api.on("POST", "/sites/alpha:check", {"findings": findings})
        result = cli("site", "check", "alpha")
        assert result.status == 1
        assert result.out.index("pool-missing") < result.out.index("slow")

    def test_a_name_cannot_become_another_path(self, api: Api, cli: Cli):
        cli("site", "show", "a/b:c")
        assert api.requests[-1].path == "/sites/a%2Fb%3Ac"

    def test_a_node_token_goes_to_a_closed_file(self, api: Api, cli: Cli, tmp_path: Path):
        made = {"token": "fsn_a_b", "expires_at": "2026-01-31T09:00:00Z", "ca_pem": "", "ca_sha256": "sha256:00"}
        api.on("POST", "/nodes/n1:token", made)
        file = tmp_path / "token"
        result = cli("node", "token", "n1", "--output", str(file))
        assert file.read_text() == "fsn_a_b\n"
        assert file.stat().st_mode & 0o777 == 0o600
        assert "fsn_a_b" not in result.out
        assert f"--token-file {file}" in result.out

    def test_local_and_remote_node_commands_are_one_group(self, cli: Cli):
        shown = cli("node", "--help").out
        for command in ("run", "start", "enrol", "list", "add", "token", "remove"):
            assert f" {command} " in shown


class TestMachines:
    def test_a_machine_is_found_by_name_or_id(self, api: Api, cli: Cli):
        api.answers["GET", "/machines"] = lambda request: (
            200,
            {"items": [machine("db")] if request.query["name"] == "db" else []},
        )
        api.on("GET", "/machines/id-db", machine("db"))
        assert "id-db" in cli("machine", "show", "db").out
        assert "id-db" in cli("machine", "show", "id-db").out
        missing = cli("machine", "show", "nobody")
        assert missing.status == 66
        assert "farshore machine list" in missing.err

    def test_two_of_one_name_are_not_guessed_between(self, api: Api, cli: Cli):
        twins = [machine("db"), machine("db", machine_id="id-2", site="beta")]
        api.on("GET", "/machines", {"items": twins})
        result = cli("machine", "show", "db")
        assert result.status == 73
        assert "id-2 at beta" in result.err


class TestPlans:
    def test_applying_sends_the_text_as_it_is(self, api: Api, cli: Cli, tmp_path: Path):
        file = tmp_path / "shop.yml"
        text = "# a comment\nname: shop\nrpo: 15m\n"
        file.write_text(text)
        api.on("PUT", "/plans/shop", plan(activity="inactive"), status=201, X_Farshore_Changed="true")
        result = cli("plan", "apply", str(file))
        assert api.sent("PUT")[0].body == {"source": text}
        assert "farshore plan protect shop" in result.out

    def test_a_refused_plan_names_file_line_and_field(self, api: Api, cli: Cli, tmp_path: Path):
        file = tmp_path / "shop.yml"
        file.write_text("name: shop\n")
        api.problem(
            "PUT",
            "/plans/shop",
            422,
            code="plan-invalid",
            detail="'x' is no machine of this plan",
            field="machines[0].depends_on",
            evidence={"line": 7, "column": 18},
        )
        result = cli("plan", "apply", str(file))
        assert result.status == 65
        assert result.err.startswith(f"error: {file}:7:18: machines[0].depends_on: 'x' is no machine")

    @pytest.mark.parametrize(
        ("text", "place"), [("name: shop\n  bad: [\n", ":2:6:"), ("rpo: 15m\n", ":1: name:"), ("- a\n", ":1: name:")]
    )
    def test_a_file_that_is_no_plan_is_refused_here(self, api: Api, cli: Cli, tmp_path: Path, text: str, place: str):
        file = tmp_path / "bad.yml"
        file.write_text(text)
        result = cli("plan", "apply", str(file))
        assert result.status == 65
        assert f"{file}{place}" in result.err
        assert api.sent("PUT") == []

    def test_a_diff_shows_lines_and_writes_nothing(self, api: Api, cli: Cli, tmp_path: Path):
        file = tmp_path / "shop.yml"
        file.write_text("name: shop\nrpo: 5m\n")
        before, after = plan(), plan(definition=plan()["definition"] | {"rpo": 300.0})
        api.on("POST", "/plans/shop:preview", {"changed": True, "before": before, "after": after, "warnings": ["w1"]})
        result = cli("plan", "diff", str(file), "--exit-code")
        assert result.status == 1
        assert "-rpo: 900.0" in result.out
        assert "+rpo: 300.0" in result.out
        assert "warning: w1" in result.out
        assert [request.method for request in api.requests] == ["POST"]

    def test_a_diff_shows_what_it_is_likely_to_cost(self, api: Api, cli: Cli, tmp_path: Path):
        file = tmp_path / "shop.yml"
        file.write_text("name: shop\n")
        bill = {"calls": 17.69, "storage": 7.75, "transfer": 0.0, "total": 25.44}
        after = {
            "currency": "USD",
            "first_copy": {"calls": 1.23, "storage": 0.0, "transfer": 0.0, "total": 1.23},
            "per_month": bill,
            "basis": "assumed",
            "changed_gib_per_day": 48.0,
            "prices": [{"region": "us-east-1", "as_of": "2026-11", "source": "list"}],
            "unknown_machines": ["web"],
        }
        costs = {"before": after | {"per_month": bill | {"total": 20.0}}, "after": after}
        preview = {"changed": False, "before": plan(), "after": plan(), "warnings": [], "costs": costs}
        api.on("POST", "/plans/shop:preview", preview)
        out = " ".join(cli("plan", "diff", str(file)).out.split())
        assert "estimated per month 25.44 USD (API calls 17.69, storage 7.75); was 20.00" in out
        assert "estimated first copy 1.23 USD (API calls 1.23)" in out
        assert "48 GiB a day, assumed" in out
        assert "us-east-1, 2026-11: list" in out
        assert "not counted web" in out

    def test_protecting_says_whether_it_changed(self, api: Api, cli: Cli):
        api.on("POST", "/plans/shop:protect", plan(), X_Farshore_Changed="true")
        assert "is protected from now on" in cli("plan", "protect", "shop", "--machine", "db").out
        assert api.sent("POST")[0].body == {"state": "protected", "machines": ["db"]}
        cli("plan", "unprotect", "shop", "--drop-copies")
        assert api.sent("POST")[1].body == {"state": "unprotected", "keep_copies": False}


class TestPlanInit:
    @pytest.fixture
    def sites(self, api: Api) -> Api:
        api.on("GET", "/sites/alpha", SITE)
        api.on("GET", "/sites/beta", SITE | {"name": "beta", "networks": [{"name": "net-b", "isolated": False}]})
        return api

    def drafted(self, cli: Cli, *more: str) -> str:
        result = cli("plan", "init", "--source-site", "alpha", "--target-site", "beta", "--output", "-", *more)
        assert result.status == 0, result.err
        return result.out

    def test_the_draft_is_a_valid_plan_in_boot_order(self, sites: Api, cli: Cli):
        sites.on("GET", "/machines", {"items": [machine("web-1"), machine("db-1"), machine("thing")]})
        plan_ = Plan.model_validate(yaml.safe_load(self.drafted(cli, "--name", "shop", "--rpo", "5m")))
        assert (plan_.name, plan_.rpo, plan_.source_site, plan_.target_site) == ("shop", 300.0, "alpha", "beta")
        assert [group.machines for group in plan_.boot_groups] == [("db-1",), ("thing",), ("web-1",)]
        assert (plan_.networks[0].source, str(plan_.networks[0].drill.subnet)) == ("lan", "192.168.50.0/24")
        assert plan_.networks[0].failover == "net-b"

    def test_the_commented_examples_are_valid_too(self, sites: Api, cli: Cli):
        sites.on("GET", "/machines", {"items": [machine("db-1")]})
        lines = self.drafted(cli).splitlines()
        shown = [
            line.replace("    # ", "    ", 1)
            if line.startswith(("    # recovery", "    #   ", "    # probes"))
            else line
            for line in lines
        ]
        plan_ = Plan.model_validate(yaml.safe_load("\n".join(shown)))
        assert len(plan_.machines[0].probes) == 3
        assert str(plan_.machines[0].recovery.addresses["drill"]) == "192.168.50.11"

    @pytest.mark.parametrize("name", ["no", "1e3", "0x10", "web 1", "a: b", "täg", "x#y", "null"])
    def test_a_name_that_yaml_would_misread_is_quoted(self, sites: Api, cli: Cli, name: str):
        sites.on("GET", "/machines", {"items": [machine(name)]})
        assert yaml.safe_load(self.drafted(cli))["machines"][0]["name"] == name

    def test_machines_are_chosen_and_unknown_ones_named(self, sites: Api, cli: Cli):
        sites.on("GET", "/machines", {"items": [machine("db"), machine("web")]})
        assert [each["name"] for each in yaml.safe_load(self.drafted(cli, "web"))["machines"]] == ["web"]
        result = cli("plan", "init", "--source-site", "alpha", "--target-site", "beta", "wob")
        assert result.status == 66
        assert "There are: db, web." in result.err

    def test_a_machine_of_another_plan_is_left_out_or_refused(self, sites: Api, cli: Cli):
        sites.on("GET", "/machines", {"items": [machine("db", plan="other"), machine("web")]})
        assert [each["name"] for each in yaml.safe_load(self.drafted(cli))["machines"]] == ["web"]
        assert "'other'" in cli("plan", "init", "--source-site", "alpha", "--target-site", "beta", "db").err

    def test_two_of_one_name_are_listed_by_id(self, sites: Api, cli: Cli):
        sites.on("GET", "/machines", {"items": [machine("vm"), machine("vm", machine_id="id-2")]})
        assert {each["name"] for each in yaml.safe_load(self.drafted(cli))["machines"]} == {"id-vm", "id-2"}

    def test_a_file_that_exists_is_not_overwritten(self, sites: Api, cli: Cli, tmp_path: Path):
        sites.on("GET", "/machines", {"items": [machine("db")]})
        file = tmp_path / "plan.yml"
        arguments = ("plan", "init", "--source-site", "alpha", "--target-site", "beta", "--output", str(file))
        assert cli(*arguments).status == 0
        file.write_text("mine")
        result = cli(*arguments)
        assert (result.status, file.read_text()) == (73, "mine")


STEPS = [
    {
        "name": "machine-create",
        "machine": "db",
        "state": "succeeded",
        "started_at": "2026-01-31T08:00:02Z",
        "ended_at": "2026-01-31T08:00:04Z",
        "seconds": 2.0,
        "detail": "",
    },
    {
        "name": "machine-probe",
        "machine": "db",
        "state": "running",
        "started_at": "2026-01-31T08:00:04Z",
        "ended_at": None,
        "seconds": None,
        "detail": "try 3",
    },
]


def ended(state: str = "succeeded", **more: object) -> dict[str, object]:
    return run_document(state=state, ended_at="2026-01-31T08:00:11Z", steps=STEPS, **more)


class TestRuns:
    def test_a_drill_is_started_and_followed_to_its_end(self, api: Api, cli: Cli):
        api.on("POST", "/plans/shop:drill", {"run": run_document(), "changed": True}, status=202)
        outcome = {"type": "tcp", "target": "10.0.0.1:22", "green": True, "seconds": 3.0, "tries": 2, "detail": ""}
        machines = [
            {
                "name": "db",
                "state": "succeeded",
                "rpo_s": 12.0,
                "rto_s": 9.5,
                "checkpoint_id": "cp-1",
                "probes": [outcome],
                "address": "10.0.0.1",
            }
        ]
        api.answers["GET", "/runs/run-1"] = [
            lambda _: (200, run_document(steps=STEPS[:1])),
            lambda _: (200, ended(machines=machines)),
        ]
        result = cli("drill", "start", "shop", "--keep")
        assert api.sent("POST")[0].body == {"checkpoint": "latest", "keep": True}
        assert result.status == 0
        for text in ("machine-create db: succeeded in 2.0 s", "9.5 s", "tcp 10.0.0.1:22 green", "succeeded"):
            assert text in result.out

    def test_a_run_that_fails_is_told_with_its_own_code_and_hint(self, api: Api, cli: Cli):
        api.on("POST", "/plans/shop:replicate", {"run": run_document(kind="replicate"), "changed": True}, status=202)
        error = {"code": "no-space", "detail": "the pool is full", "hint": "Make room."}
        api.on("GET", "/runs/run-1", ended("failed", kind="replicate", error=error))
        result = cli("replicate", "shop")
        assert result.status == 1
        assert "the pool is full [no-space] Make room." in result.err

    def test_programs_get_one_document_at_the_end_of_a_wait(self, api: Api, cli: Cli):
        api.on("POST", "/plans/shop:replicate", {"run": run_document(), "changed": True}, status=202)
        api.answers["GET", "/runs/run-1"] = [lambda _: (200, run_document()), lambda _: (200, ended())]
        assert cli("--json", "replicate", "shop").document["state"] == "succeeded"

    def test_not_waiting_names_the_run_and_how_to_follow_it(self, api: Api, cli: Cli):
        api.on("POST", "/plans/shop:replicate", {"run": run_document(), "changed": True}, status=202)
        assert "farshore run watch run-1" in cli("replicate", "shop", "--no-wait").out
        assert api.sent("GET") == []

    def test_nothing_to_do_is_no_error(self, api: Api, cli: Cli):
        api.on("POST", "/plans/shop:replicate", {"run": None, "changed": False})
        result = cli("replicate", "shop", "--max-age", "5m")
        assert result.status == 0
        assert api.sent("POST")[0].body == {"max_age_s": 300.0}
        bad = cli("replicate", "shop", "--max-age", "soon")
        assert (bad.status, "--max-age" in bad.err) == (65, True)

    def test_watching_survives_a_control_plane_that_starts_again(self, api: Api, cli: Cli):
        api.answers["GET", "/runs/run-1"] = [
            *[lambda _: (503, {"code": "starting", "detail": "not yet"})] * 5,
            lambda _: (200, ended()),
        ]
        assert cli("run", "watch", "run-1").status == 0

    def test_ctrl_c_leaves_the_run_going_and_says_how_to_stop_it(self, api: Api, cli: Cli):
        def press_ctrl_c(_: Request) -> tuple[int, object]:
            os.kill(os.getpid(), signal.SIGINT)
            return 200, run_document()

        api.answers["GET", "/runs/run-1"] = [lambda _: (200, run_document()), press_ctrl_c]
        # Who starts the tests in the background may have it ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            result = cli("run", "watch", "run-1")
        finally:
            signal.signal(signal.SIGINT, before)
        assert result.status == 130
        assert "goes on" in result.err
        assert "farshore run cancel run-1" in result.err
        assert api.sent("POST") == []

    def test_a_report_goes_to_a_file_in_the_format_of_its_name(self, api: Api, cli: Cli, tmp_path: Path):
        api.on("GET", "/runs/run-1/report", {"run_id": "run-1"})
        api.on("GET", "/runs/run-1/report.html", "<html>")
        cli("run", "report", "run-1", "--output", str(tmp_path / "r.html"))
        assert (tmp_path / "r.html").read_text() == "<html>"
        assert cli("run", "report", "run-1").document == {"run_id": "run-1"}


class TestFailover:
    def test_a_check_only_previews(self, api: Api, cli: Cli):
        made = {"name": "db", "of": "db", "cpus": 2, "memory_bytes": 256 << 20, "disks": [{}]}
        preview = {
            "changed": True,
            "before": {"active_site": "alpha", "epoch": 1},
            "after": {
                "active_site": "beta",
                "epoch": 2,
                "machines": [made | {"nics": [{"mac": "52:54:00:00:00:01", "network": "lan", "address": "10.0.0.9"}]}],
                "order": [["db"], ["web", "mail"]],
                "stop": [["web"], ["db"]],
                "checkpoints": {"db": "cp-4"},
                "rpo_s": {"db": 12.0},
            },
            "warnings": ["no probe for web"],
        }
        api.on("POST", "/plans/shop:failover-preview", preview)
        result = cli("failover", "shop", "--to", "beta", "--check")
        assert [request.path for request in api.requests] == ["/plans/shop:failover-preview"]
        for text in (
            "alpha → beta",
            "db → web, mail",
            "web → db",
            "lan 10.0.0.9",
            "cp-4",
            "12.0 s",
            "warning: no probe for web",
        ):
            assert text in result.out

    def test_without_a_terminal_nobody_is_asked(self, api: Api, cli: Cli):
        api.on("POST", "/plans/shop:failover", {"run": run_document(kind="failover"), "changed": True}, status=202)
        api.on("GET", "/runs/run-1", ended(kind="failover"))
        assert cli("failover", "shop", "--to", "beta", "--mode", "unplanned", "--checkpoint", "cp-1").status == 0
        sent = api.sent("POST")
        assert [request.path for request in sent] == ["/plans/shop:failover"]
        assert sent[0].body == {"to_site": "beta", "mode": "unplanned", "checkpoint": "cp-1"}

    def test_a_second_time_nothing_changes(self, api: Api, cli: Cli):
        api.on("POST", "/plans/shop:failover", {"run": None, "changed": False})
        result = cli("failover", "shop", "--to", "beta")
        assert (result.status, "active at beta already" in result.out) == (0, True)


class TestCheckpointsAndTokens:
    def test_a_labelled_checkpoint_is_made_once(self, api: Api, cli: Cli):
        made = {"checkpoint": {"checkpoint_id": "cp-9"}, "run": None, "changed": False}
        api.on("PUT", "/plans/shop/checkpoints/before", made)
        result = cli("checkpoint", "create", "shop", "--label", "before")
        assert "cp-9 with label before exists already" in result.out
        assert api.sent("PUT")[0].body == {"pin": True}

    def test_pin_and_unpin(self, api: Api, cli: Cli):
        api.on("PATCH", "/checkpoints/cp-1", {"checkpoint_id": "cp-1"})
        cli("checkpoint", "pin", "cp-1", "--note", "audit")
        cli("checkpoint", "unpin", "cp-1")
        assert [request.body for request in api.sent("PATCH")] == [{"pin": True, "note": "audit"}, {"pin": False}]

    def test_a_new_token_is_shown_once(self, api: Api, cli: Cli):
        api.on("POST", "/tokens", {"token": "fsh_a_b", "token_id": "a"}, status=201)
        assert cli("token", "create", "ci", "--role", "operator", "--ttl", "1d").out == "fsh_a_b\n"
        assert api.sent("POST")[0].body == {"name": "ci", "role": "operator", "ttl_s": 86400.0}
