"""A plan that was taken away and stored again under its name begins anew, without a trace of its first life."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.control_process import Control, until
from doubles.two_sites import TwoSites, two_sites


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        yield both


@pytest.mark.parametrize("keep_copies", [False, True])
def test_a_plan_has_a_second_life(sites: TwoSites, keep_copies: bool) -> None:
    control = sites.control
    for life in range(2):
        sites.plan()
        sites.protect()
        run = sites.replicate()
        assert run["state"] == "succeeded", (life, run["error"])
        assert sites.ended(control.ok("POST", "/plans/shop:drill", {})["run"]["run_id"])["state"] == "succeeded"
        control.ok("POST", "/plans/shop:replicate", {})  # taken away in the middle of a cycle
        control.ok("POST", "/plans/shop:protect", {"state": "unprotected", "keep_copies": keep_copies})

        def gone() -> bool:
            answer = control.call("DELETE", "/plans/shop")
            if not answer.ok:
                assert (answer.status_code, answer.json()["code"]) == (503, "cycle-open")
                assert int(answer.headers["Retry-After"]) >= 1
            return bool(answer.ok)

        until(gone, "the plan goes")
    if not keep_copies:
        until(lambda: not sites.beta.manifests, "all copies are gone")
    assert "Traceback" not in control.log()
