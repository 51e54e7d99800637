"""The pages in a real browser: they live, they fit, and they keep to their policy."""

from __future__ import annotations

import re

import pytest
from doubles.ui_stand import TOKENS
from playwright.sync_api import Page, expect

PAGES = ("/", "/plans/shop", "/runs", "/runs/run-01J9DRILL", "/runs/run-01J9FAILOVER")


def sign_in(tab: Page, url: str, token: str = "fsh_adm_x") -> None:  # noqa: S107 - of the stand
    tab.goto(url + "/")
    tab.get_by_label("Token").fill(token)
    tab.get_by_role("button", name="Sign in").click()
    expect(tab.get_by_role("heading", name="Plans")).to_be_visible()


def test_a_wrong_token_is_told_and_a_right_one_leads_to_the_page_that_was_wanted(served, tab: Page):
    tab.goto(served.url + "/plans/shop")
    tab.get_by_label("Token").fill("wrong")
    tab.get_by_role("button", name="Sign in").click()
    expect(tab.get_by_role("alert").filter(has_text="not valid")).to_be_visible()
    tab.get_by_label("Token").fill("fsh_adm_x")
    tab.get_by_role("button", name="Sign in").click()
    expect(tab.get_by_role("heading", name="shop", exact=True)).to_be_visible()
    assert tab.url.endswith("/plans/shop")


def test_the_session_is_closed_to_scripts(served, tab: Page):
    sign_in(tab, served.url)
    assert tab.evaluate("document.cookie") == ""
    cookie = tab.context.cookies()[0]
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Strict")


def test_the_overview_lives(served, tab: Page):
    sign_in(tab, served.url)
    shop = tab.locator("[data-plan=shop]")
    expect(shop).to_contain_text("protected")
    served.stand.plans[0]["state"] = "failing-over"
    served.stand.plans[0]["active_site"] = "beta"
    expect(shop).to_contain_text("failing-over")
    expect(shop.locator(".way .here")).to_have_text("beta")


def test_a_run_is_followed_to_its_end_and_then_left_alone(served, tab: Page):
    sign_in(tab, served.url)
    tab.goto(served.url + "/runs/run-01J9DRILL")
    run = served.stand.runs[0]
    run["steps"][-1]["state"] = "running"
    expect(tab.locator(".steps li").last.locator(".dot.busy")).to_be_visible()
    run |= {"state": "succeeded", "ended_at": run["started_at"]}
    expect(tab.get_by_role("link", name="Report")).to_be_visible()
    assert tab.locator("#live").get_attribute("hx-trigger") is None


def test_a_drill_is_started_from_a_chosen_checkpoint(served, tab: Page):
    sign_in(tab, served.url)
    tab.goto(served.url + "/plans/shop")
    tab.get_by_role("combobox").select_option(index=3)
    tab.get_by_label("keep it up").check()
    tab.get_by_role("button", name="Start a drill").click()
    expect(tab.get_by_role("heading", name="Drill of shop")).to_be_visible()
    path, _, body = served.stand.posts[0]
    assert path == "/api/v1/plans/shop:drill"
    assert body == {"checkpoint": served.stand.checkpoints[1]["checkpoint_id"], "keep": True}


def test_what_was_chosen_survives_the_page_renewing_itself(served, tab: Page):
    sign_in(tab, served.url)
    tab.goto(served.url + "/plans/shop")
    tab.get_by_label("keep it up").check()
    served.stand.plans[0]["epoch"] = 7
    expect(tab.get_by_text("epoch 7")).to_be_visible()
    expect(tab.get_by_label("keep it up")).to_be_checked()


def test_a_refusal_is_shown_on_the_page(served, tab: Page):
    refusal = {"code": "drill-running", "detail": "drill run-7 of plan shop runs", "hint": "Wait for its end."}
    served.stand.refuse["drill"] = (409, refusal)
    sign_in(tab, served.url)
    tab.goto(served.url + "/plans/shop")
    tab.get_by_role("button", name="Start a drill").click()
    expect(tab.get_by_role("alert").filter(has_text="drill run-7 of plan shop runs")).to_be_visible()
    served.stand.plans[0]["epoch"] = 8
    expect(tab.get_by_text("epoch 8")).to_be_visible()


def test_a_page_that_gets_no_answer_says_so_and_recovers(served, tab: Page):
    sign_in(tab, served.url)
    lost = tab.get_by_text("The control plane does not answer")
    expect(lost).to_be_hidden()
    tab.route("**/*", lambda route: route.abort() if route.request.headers.get("hx-request") else route.continue_())
    expect(lost).to_be_visible()
    tab.unroute_all(behavior="ignoreErrors")
    expect(lost).to_be_hidden()


def test_a_revoked_token_leads_to_the_login(served, tab: Page, monkeypatch: pytest.MonkeyPatch):
    sign_in(tab, served.url)
    monkeypatch.delitem(TOKENS, "fsh_adm_x")
    expect(tab.get_by_role("button", name="Sign in")).to_be_visible()


def test_signing_out(served, tab: Page):
    sign_in(tab, served.url)
    tab.get_by_role("button", name="Sign out").click()
    expect(tab.get_by_role("button", name="Sign in")).to_be_visible()
    tab.goto(served.url + "/plans/shop")
    expect(tab.get_by_role("button", name="Sign in")).to_be_visible()


def test_times_are_the_visitors_own(served, tab: Page):
    sign_in(tab, served.url)
    tab.goto(served.url + "/plans/shop")
    first = tab.locator("td time").first
    expect(first).to_have_attribute("title", re.compile("UTC$"))
    expect(first).not_to_contain_text("UTC")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_page_fits_its_window_in_both_colours(served, tab: Page, width: int, scheme: str):
    tab.set_viewport_size({"width": width, "height": 800})
    tab.emulate_media(color_scheme=scheme)
    sign_in(tab, served.url)
    for path in PAGES:
        tab.goto(served.url + path)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, path
        worst = tab.evaluate(CONTRAST)
        assert worst["ratio"] >= 4.5, (path, worst)


#: The least contrast between a text and what it stands on, over all texts of the page (WCAG 2.2, 1.4.3: 4.5).
CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = (c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let worst = { ratio: 21, text: "" };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const seen = element.checkVisibility() && !element.closest("svg, option");
    if (!seen || !walker.currentNode.textContent.trim()) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst.ratio) worst = { ratio, text: walker.currentNode.textContent.trim().slice(0, 60) };
  }
  return worst;
}"""
