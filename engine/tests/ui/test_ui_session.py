"""Who is let in, and what cannot be smuggled in."""

from __future__ import annotations

import re

import pytest
import requests
from doubles.ui_stand import plan
from farshore.control.ui import session

ADMIN = "fsh_adm_x"


def get(url: str, token: str = ADMIN, **headers: str) -> requests.Response:
    return requests.get(url, cookies={"farshore_session": token}, headers=headers, allow_redirects=False, timeout=20)


def key_of(page: str) -> str:
    found = re.search(r'name="key" value="([0-9a-f]{64})"', page)
    assert found
    return found[1]


def test_a_stranger_is_asked_for_a_token_and_then_led_on(served):
    answer = requests.get(served.url + "/plans/shop", allow_redirects=False, timeout=20)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=%2Fplans%2Fshop")
    answer = requests.post(
        served.url + "/login", {"token": " fsh_op_x\n", "next": "/plans/shop"}, allow_redirects=False, timeout=20
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/plans/shop")
    cookie = answer.headers["set-cookie"]
    for part in ("farshore_session=fsh_op_x", "HttpOnly", "Secure", "SameSite=strict", "Path=/", "Max-Age=43200"):
        assert part in cookie


@pytest.mark.parametrize("token", ["wrong", "", "fsh_ä", "a\r\nSet-Cookie: x=y"])
def test_a_wrong_token_opens_nothing(served, token: str):
    answer = requests.post(served.url + "/login", {"token": token}, allow_redirects=False, timeout=20)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "the token is not valid" in answer.text


def test_a_session_whose_token_was_revoked_ends(served):
    answer = get(served.url + "/", token="fsh_gone_x")
    assert answer.status_code == 303
    assert 'farshore_session=""' in answer.headers["set-cookie"]


def test_a_living_part_of_a_stranger_leads_the_whole_page_to_the_login(served):
    answer = get(served.url + "/", token="fsh_gone_x", **{"HX-Request": "true"})
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (401, "/login")


@pytest.mark.parametrize(
    "wanted",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "\\\\evil.example", "javascript:x", "/a\nb"],
)
def test_the_login_leads_nowhere_else(wanted: str):
    assert session.local_path(wanted) == "/"


def test_a_local_path_is_kept():
    assert session.local_path("/plans/shop?said=fresh") == "/plans/shop?said=fresh"


@pytest.mark.parametrize("path", ["/", "/plans/shop", "/runs", "/runs/run-01J9DRILL", "/login", "/plans/none"])
def test_every_page_forbids_scripts_and_frames_of_others(served, path: str):
    headers = get(served.url + path).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")


def test_no_page_has_inline_script_or_style(served):
    for path in ("/", "/plans/shop", "/runs", "/runs/run-01J9DRILL", "/login"):
        text = get(served.url + path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", text), path


def test_names_and_notes_are_text_and_never_markup(served):
    evil = "<img src=x onerror=alert(1)>"
    served.stand.plans[0] = plan("shop", source=evil, last_error=evil, conditions=[evil])
    for path in ("/", "/plans/shop"):
        text = get(served.url + path).text
        assert evil not in text
        assert "&lt;img src=x" in text


class TestForms:
    def post(self, served, token: str = ADMIN, key: str | None = None, **headers: str) -> requests.Response:
        key = session.form_key(token) if key is None else key
        return requests.post(
            served.url + "/plans/shop/drill",
            {"key": key, "checkpoint": "latest"},
            cookies={"farshore_session": token},
            headers=headers,
            allow_redirects=False,
            timeout=20,
        )

    def test_the_key_on_the_page_starts_the_run_as_the_visitor(self, served):
        key = key_of(get(served.url + "/plans/shop").text)
        answer = self.post(served, key=key)
        assert (answer.status_code, answer.headers["location"]) == (303, "/runs/run-01J9DRILL")
        path, idempotency, body = served.stand.posts[0]
        assert (path, body) == ("/api/v1/plans/shop:drill", {"checkpoint": "latest", "keep": False})
        assert idempotency

    @pytest.mark.parametrize("key", ["", "0" * 64, session.form_key("fsh_op_x")])
    def test_a_form_without_the_key_of_this_session_does_nothing(self, served, key: str):
        assert self.post(served, key=key).status_code == 403
        assert served.stand.posts == []

    @pytest.mark.parametrize(
        "headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}]
    )
    def test_a_form_that_another_site_sent_does_nothing(self, served, headers: dict[str, str]):
        assert self.post(served, **headers).status_code == 403
        answer = requests.post(served.url + "/login", {"token": "fsh_adm_x"}, headers=headers, timeout=20)
        assert answer.status_code == 403
        assert served.stand.posts == []

    def test_a_stranger_cannot_even_name_a_plan(self, served):
        answer = requests.post(served.url + "/plans/shop/drill", {}, allow_redirects=False, timeout=20)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")

    def test_a_refusal_of_the_api_is_shown_where_it_was_asked(self, served):
        refusal = {"code": "drill-running", "detail": "drill run-7 of plan shop runs", "hint": "Wait for its end."}
        served.stand.refuse["drill"] = (409, refusal)
        answer = self.post(served)
        assert answer.status_code == 409
        for text in ("drill run-7 of plan shop runs", "drill-running", "Wait for its end.", "Start a drill"):
            assert text in answer.text

    def test_a_form_that_is_too_large_is_refused(self, served):
        assert self.post(served, key="x" * 20000).status_code == 422

    def test_signing_out_forgets_the_token(self, served):
        answer = requests.post(
            served.url + "/logout",
            {"key": session.form_key("fsh_adm_x")},
            cookies={session.COOKIE: ADMIN},
            allow_redirects=False,
            timeout=20,
        )
        assert answer.headers["location"] == "/login"
        assert 'farshore_session=""' in answer.headers["set-cookie"]


def test_a_viewer_is_offered_no_action(served):
    seen = get(served.url + "/plans/shop", token="fsh_view_x").text
    assert "Replicate now" not in seen
    assert "Replicate now" in get(served.url + "/plans/shop", token="fsh_op_x").text
    assert "Cancel the run" not in get(served.url + "/runs/run-01J9DRILL", token="fsh_view_x").text


def test_a_kept_drill_is_shown_and_can_be_ended(served):
    assert "End the drill" not in get(served.url + "/plans/shop").text
    served.stand.runs[0]["facts"] = {"kept": True}
    assert "End the drill" in get(served.url + "/plans/shop").text
    assert "End the drill" not in get(served.url + "/plans/shop", token="fsh_view_x").text


def test_a_plan_that_was_failed_over_offers_no_cycle_and_no_drill(served):
    served.stand.plans[0] |= {"active_site": "beta", "turned": False, "state": "failed-over", "rpo_s": None}
    seen = get(served.url + "/plans/shop").text
    assert "Replicate now" not in seen
    assert "Start a drill" not in seen
    assert "farshore reprotect shop" in seen


def test_what_does_not_exist_is_told_in_the_apis_words(served):
    answer = get(served.url + "/plans/shup")
    assert answer.status_code == 404
    assert "no plan is called &#39;shup&#39;" in answer.text


def test_a_name_stays_one_segment(served):
    assert get(served.url + "/plans/a%2Fb").status_code == 404
    assert get(served.url + "/runs/..%2Fplans%2Fshop").status_code == 404


def test_the_living_part_is_the_page_without_its_frame(served):
    part = get(served.url + "/", **{"HX-Request": "true"}).text
    assert "<html" not in part
    assert 'id="live"' in part
    assert 'data-plan="shop"' in part


def test_an_ended_run_asks_for_nothing_more(served):
    assert "hx-trigger" in get(served.url + "/runs/run-01J9DRILL").text
    assert "hx-trigger" not in get(served.url + "/runs/run-01J9FAILOVER").text
