"""``farshore reprotect``, ``rollback``, ``commit``, ``migrate`` and ``retire``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from doubles.cli_documents import run_document
from doubles.cli_server import Api, Result

Cli = Callable[..., Result]
PREVIEW = {"changed": True, "before": {"active_site": "beta"}, "after": {"active_site": "alpha"}, "warnings": ["mind"]}


@pytest.mark.parametrize(
    ("words", "verb", "body"),
    [
        (("reprotect", "shop"), "reprotect", {}),
        (
            ("reprotect", "shop", "--to", "alpha", "--accept-divergence"),
            "reprotect",
            {"to_site": "alpha", "accept_divergence": True},
        ),
        (("rollback", "shop"), "rollback", {}),
        (("rollback", "shop", "--force"), "rollback", {"force": True}),
        (("migrate", "shop", "--to", "beta", "--yes"), "migrate", {"to_site": "beta"}),
        (("migrate", "shop", "--group", "back", "--yes"), "migrate", {"groups": ["back"]}),
        (("retire", "shop"), "retire", {}),
        (
            ("retire", "shop", "--machine", "db", "--site", "alpha", "--accept-divergence"),
            "retire",
            {"machines": ["db"], "site": "alpha", "accept_divergence": True},
        ),
        (
            ("failover", "shop", "--to", "beta", "--group", "back", "--group", "front", "--yes"),
            "failover",
            {"to_site": "beta", "mode": "planned", "groups": ["back", "front"]},
        ),
        (
            ("drill", "start", "shop", "--group", "back"),
            "drill",
            {"checkpoint": "latest", "keep": False, "groups": ["back"]},
        ),
    ],
)
def test_they_start_runs_and_follow_them(
    api: Api, cli: Cli, words: tuple[str, ...], verb: str, body: dict[str, object]
) -> None:
    ended = run_document(kind=verb, state="succeeded", ended_at="2026-01-31T08:00:11Z")
    api.on("POST", f"/plans/shop:{verb}", {"run": run_document(kind=verb), "changed": True}, 202)
    api.on("GET", "/runs/run-1", ended)
    assert cli(*words).status == 0
    assert [(sent.path, sent.body) for sent in api.sent("POST")] == [(f"/plans/shop:{verb}", body)]


@pytest.mark.parametrize("verb", ["reprotect", "rollback", "migrate", "retire"])
def test_a_check_shows_and_orders_nothing(api: Api, cli: Cli, verb: str) -> None:
    api.on("POST", f"/plans/shop:{verb}-preview", PREVIEW)
    result = cli(verb, "shop", "--check")
    assert (result.status, "alpha" in result.out, "mind" in result.out) == (0, True, True)
    assert [sent.path for sent in api.sent("POST")] == [f"/plans/shop:{verb}-preview"]


@pytest.mark.parametrize(("changed", "said"), [(True, "committed"), (False, "nothing to do")])
def test_a_commit_says_whether_something_waited(api: Api, cli: Cli, changed: bool, said: str) -> None:
    api.on("POST", "/plans/shop:commit", {"changed": changed, "plan": {}})
    result = cli("commit", "shop")
    assert (result.status, said in result.out) == (0, True)
