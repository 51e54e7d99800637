"""The pages of a real control plane, whose two real nodes replicate machines of files."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from doubles.control_process import Control, until
from doubles.node_process import NodeProcess
from doubles.ports import free_port
from farshore.platforms.file.machine import FileMachine
from farshore.units import MIB
from playwright.sync_api import Page, expect

PLAN = """\
name: shop
description: the web shop with its database
source_site: alpha
target_site: beta
rpo: 1h
machines:
  - name: db
  - name: web
    depends_on: [db]
"""


@dataclass
class House:
    control: Control
    db: FileMachine

    def write(self, seed: int) -> None:
        self.db.write("vda", 2 * MIB, random.Random(seed).randbytes(MIB))

    def sign_in(self, tab: Page, path: str) -> None:
        tab.goto(self.control.home.url + path)
        tab.get_by_label("Token").fill(self.control.token)
        tab.get_by_role("button", name="Sign in").click()
        expect(tab.get_by_role("button", name="Sign out")).to_be_visible()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    with contextlib.ExitStack() as cleanup:
        control = Control(folder / "home")
        cleanup.callback(lambda: control.process and control.kill())
        control.start()
        machines = {name: FileMachine.create(folder / "alpha", name, {"vda": 12 * MIB}) for name in ("db", "web")}
        for site in ("alpha", "beta"):
            node = NodeProcess(folder, f"{site}-1", site, control.home.node_url, free_port())
            cleanup.callback(node.close)
            body = {"site": site, "roles": ["replication", "recovery"], "data_address": f"127.0.0.1:{node.port}"}
            control.ok("PUT", f"/sites/{site}", {"platform": "file"})
            control.ok("PUT", f"/nodes/{node.name}", body)
            ticket = control.ok("POST", f"/nodes/{node.name}:token")
            node.enrol(ticket["token"], ca_sha256=ticket["ca_sha256"])
            node.start()
        until(lambda: len(control.ok("GET", "/machines?site=alpha")["items"]) == 2, "the inventory comes")
        control.ok("PUT", "/plans/shop", {"source": PLAN})
        control.ok("PUT", "/site-links/alpha/beta", {"bandwidth": "4 Gbit/s"})
        made = House(control, machines["db"])
        made.write(1)
        control.ok("POST", "/plans/shop:protect", {"state": "protected"})
        until(lambda: len(control.ok("GET", "/checkpoints?plan=shop")["items"]) >= 2, "both machines have a checkpoint")
        yield made


def test_the_overview_shows_what_there_is(house: House, tab: Page):
    house.sign_in(tab, "/")
    for site in ("alpha", "beta"):
        card = tab.locator(f"[data-site={site}]")
        expect(card).to_contain_text("online")
        expect(card).to_contain_text(f"{site}-1")
        expect(card).to_contain_text(re.compile(r"[\d.]+ [KMGT]iB free of"))
    link = tab.locator("[data-link=alpha-beta]")
    expect(link).to_contain_text("4.0 Gbit/s")
    expect(link).to_contain_text("alpha listens")
    plan = tab.locator("[data-plan=shop]")
    expect(plan).to_contain_text("protected")
    expect(plan).to_contain_text("target 1 h")
    expect(plan.locator(".machines li")).to_have_count(2)


def test_a_cycle_is_ordered_followed_and_found_again(house: House, tab: Page):
    house.sign_in(tab, "/plans/shop")
    rows = tab.locator("section", has=tab.get_by_role("heading", name="Checkpoints")).locator("tbody tr")
    before = rows.count()
    house.write(2)
    tab.get_by_role("button", name="Replicate now").click()
    expect(tab.get_by_role("heading", name="Replication of shop")).to_be_visible()
    expect(tab.locator(".title .badge")).to_have_text("succeeded")
    expect(tab.get_by_text("incremental").first).to_be_visible()
    tab.get_by_role("navigation", name="Breadcrumb").get_by_role("link", name="shop").click()
    expect(rows).to_have_count(before + 2)
    expect(rows.filter(has_text="db").first).to_contain_text(re.compile(r"1\.\d MiB of 12\.0 MiB"))
    expect(tab.locator("svg.chart rect")).to_have_count(before + 2)


def test_what_the_page_does_is_in_the_audit_trail_under_the_visitors_name(house: House, tab: Page):
    house.sign_in(tab, "/plans/shop")
    house.write(3)
    tab.get_by_role("button", name="Replicate now").click()
    expect(tab.get_by_role("heading", name="Replication of shop")).to_be_visible()
    newest = house.control.ok("GET", "/audit?limit=1")["items"][0]
    assert (newest["action"], newest["subject"]) == ("replicate_plan", "shop")
    assert newest["actor"].startswith("first-admin")


def test_a_viewer_looks_and_finds_no_button(house: House, tab: Page):
    tab.goto(house.control.home.url + "/plans/shop")
    tab.get_by_label("Token").fill(house.control.role("viewer"))
    tab.get_by_role("button", name="Sign in").click()
    expect(tab.get_by_role("heading", name="shop", exact=True)).to_be_visible()
    expect(tab.get_by_role("button", name="Replicate now")).to_have_count(0)


def test_the_cookie_alone_changes_nothing_through_the_api(house: House, tab: Page):
    house.sign_in(tab, "/")
    answer = tab.request.post(house.control.home.url + "/api/v1/plans/shop:replicate", data={})
    assert (answer.status, answer.json()["code"]) == (403, "csrf")


def test_a_session_ends_with_its_token(house: House, tab: Page):
    made = house.control.ok("POST", "/tokens", {"name": "short", "role": "viewer"})
    tab.goto(house.control.home.url + "/")
    tab.get_by_label("Token").fill(made["token"])
    tab.get_by_role("button", name="Sign in").click()
    expect(tab.get_by_role("heading", name="Plans")).to_be_visible()
    house.control.ok("DELETE", f"/tokens/{made['token_id']}")
    expect(tab.get_by_role("button", name="Sign in")).to_be_visible()


def test_a_control_plane_that_stops_is_told_and_its_return_noticed(house: House, tab: Page, tmp_path: Path):
    house.sign_in(tab, "/")
    lost = tab.get_by_text("The control plane does not answer")
    assert house.control.stop() == 0
    expect(lost).to_be_visible()
    tab.screenshot(path=tmp_path / "lost.png")
    house.control.start()
    expect(lost).to_be_hidden()
    expect(tab.locator("[data-plan=shop]")).to_be_visible()


def test_a_run_that_waits_for_approval_is_approved_by_somebody_else(house: House, tab: Page):
    house.control.ok("PUT", "/plans/shop", {"source": PLAN + "approval: {verbs: [drill]}\n"})
    path = house.control.ok("POST", "/plans/shop:drill", {})["run"]["url"]
    house.sign_in(tab, path)
    badge = tab.locator(".title .badge")
    expect(badge).to_have_text("waiting-approval")
    expect(tab.get_by_text("waits for one person other than first-admin")).to_be_visible()
    tab.get_by_role("button", name="Approve").click()
    expect(tab.get_by_role("alert")).to_contain_text("somebody else has to approve it")
    tab.get_by_role("button", name="Sign out").click()
    tab.get_by_label("Token").fill(house.control.role("operator"))
    tab.get_by_role("button", name="Sign in").click()
    tab.goto(house.control.home.url + path)
    tab.get_by_role("button", name="Approve").click()
    expect(tab.get_by_text("Approved by a-operator")).to_be_visible()
    expect(badge).not_to_have_text("waiting-approval")
    until(lambda: house.control.ok("GET", path)["ended_at"], "the drill ends")
    house.control.ok("PUT", "/plans/shop", {"source": PLAN})
