"""``farshore checkpoint``: what is known of checkpoints, and the scrub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from doubles.cli_documents import run_document
from doubles.cli_server import Api, Result

Cli = Callable[..., Result]


def checkpoint(**changes: Any) -> dict[str, Any]:
    return {
        "checkpoint_id": "cp-1",
        "group_id": "grp-1",
        "plan": "shop",
        "plan_revision": 1,
        "level": "machine",
        "sequence": 3,
        "epoch": 1,
        "ordered_at": "2026-01-31T12:00:00Z",
        "taken_at": "2026-01-31T12:00:01Z",
        "published_at": "2026-01-31T12:00:09Z",
        "pinned": False,
        "label": "",
        "note": "",
        "in_use_by": [],
        "integrity": "audited",
        "addenda": [],
        "state": "published",
        "machines": ["db"],
        "disks": [{"disk_key": "db/vda", "size_bytes": 1 << 30, "point": "p", "tree_root": "ab" * 32}],
        "stats": None,
        **changes,
    }


SUSPECT = checkpoint(
    checkpoint_id="cp-2",
    integrity="suspect",
    addenda=[
        {
            "verdict": "suspect",
            "by": "scrub",
            "origin": "run-7",
            "at": "2026-02-01T03:00:00Z",
            "reason": "disk db/vda at offset 131072: the target holds other bytes",
            "damages": [{"disk_key": "db/vda", "kind": "content", "offset": 131072, "length": 65536, "detail": ""}],
            "more": 4,
            "read_bytes": 1 << 30,
        }
    ],
)


def test_the_list_says_which_are_suspect(api: Api, cli: Cli):
    api.on("GET", "/checkpoints", {"items": [SUSPECT, checkpoint()]})
    out = cli("checkpoint", "list").out
    assert "suspect" in out
    assert "audited" in out


def test_damage_is_shown_with_disk_and_offset(api: Api, cli: Cli):
    api.on("GET", "/checkpoints/cp-2", SUSPECT)
    out = cli("checkpoint", "show", "cp-2").out
    for text in ("suspect", "run-7", "131072", "64.0 KiB", "content", "and 4 more"):
        assert text in out


def test_a_scrub_is_followed_and_its_failure_is_the_commands(api: Api, cli: Cli):
    api.on("POST", "/checkpoints/cp-2:scrub", {"run": run_document(kind="scrub"), "changed": True}, 202)
    api.on("GET", "/runs/run-1", run_document(kind="scrub", state="succeeded", ended_at="2026-01-31T12:00:20Z"))
    assert cli("checkpoint", "scrub", "cp-2").status == 0
    error = {"code": "checkpoint-suspect", "detail": "checkpoint cp-2 is damaged", "hint": ""}
    api.on("GET", "/runs/run-1", run_document(kind="scrub", state="failed", error=error))
    failed = cli("checkpoint", "scrub", "cp-2")
    assert failed.status == 1
    assert "cp-2 is damaged" in failed.err
    started = cli("checkpoint", "scrub", "cp-2", "--no-wait", "--json")
    assert started.document["run"]["run_id"] == "run-1"


def test_suspect_checkpoints_are_taken_only_on_demand(api: Api, cli: Cli):
    api.on("POST", "/plans/shop:drill", {"run": None, "changed": False}, 202)
    api.on("POST", "/plans/shop:failover", {"run": None, "changed": False}, 202)
    cli("drill", "start", "shop")
    cli("drill", "start", "shop", "--allow-suspect")
    cli("failover", "shop", "--to", "beta", "--mode", "unplanned", "--allow-suspect")
    assert ["allow_suspect" in request.body for request in api.sent("POST")] == [False, True, True]
