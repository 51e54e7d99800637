"""How ready a plan is, and whether the catalogue is right, as modules tell it."""

from __future__ import annotations

FINDING = {"code": "site-offline", "severity": "error", "message": "no node of site 'beta' answers", "remedy": "Start."}


def test_findings_are_reported_and_change_nothing(ok, double):
    double.state.preflight = {"ready": False, "score": 62, "findings": [FINDING]}
    found = ok("preflight_info", plan="shop")
    assert (found["changed"], found["ready"], found["score"], found["findings"]) == (False, False, 62, [FINDING])
    assert double.requests() == [("GET", "/api/v1/plans/shop/preflight")]


def test_too_low_a_score_or_what_stands_in_the_way_fails_where_that_is_asked_for(ok, bad, double):
    assert ok("preflight_info", plan="shop", min_score=100)["score"] == 100
    double.state.preflight = {"ready": True, "score": 62, "findings": [dict(FINDING, severity="warning")]}
    assert ok("preflight_info", plan="shop", min_score=62)["ready"]
    low = bad("preflight_info", plan="shop", min_score=63)
    assert (low["code"], low["score"], low["hint"]) == ("not-ready", 62, "Start.")
    double.state.preflight = {"ready": False, "score": 95, "findings": [FINDING]}
    assert bad("preflight_info", plan="shop", min_score=0)["findings"] == [FINDING]


def test_sites_are_compared_only_where_named_and_never_in_check_mode(ok, double):
    assert ok("catalog_info")["sites"] == []
    assert ok("catalog_info", check_sites=["beta"])["sites"][0]["site"] == "beta"
    assert double.requests()[-1] == ("POST", "/api/v1/sites/beta:catalog-check")
    before = len(double.requests())
    assert ok("catalog_info", check_sites=["beta"], check=True)["sites"] == []
    assert {method for method, dummy in double.requests()[before:]} == {"GET"}


def test_a_difference_fails_where_that_is_asked_for(ok, bad, double):
    double.state.compared.update(agrees=False, findings=[dict(FINDING, message="cp-1: its point is gone")])
    assert not ok("catalog_info", check_sites=["beta"])["sites"][0]["agrees"]
    failed = bad("catalog_info", check_sites=["beta"], fail=True)
    assert failed["code"] == "catalog-differs"
    assert "beta: cp-1: its point is gone" in failed["msg"]
    double.state.catalog["bundles"][0]["current"] = False
    assert "bundle is not current" in bad("catalog_info", fail=True)["msg"]
