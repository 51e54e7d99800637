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


FLAGGED = checkpoint(
    checkpoint_id="cp-3",
    hold={"reason": "case 4711", "by": "ann", "at": "2026-02-01T03:00:00Z"},
    retention={"stays": True, "reasons": ["legal hold", "daily"]},
    suspicion={
        "verdict": "flagged",
        "score": 97,
        "reasons": ["db/vda: 9 GiB were written, 90% of what the disk holds"],
        "tainted_by": None,
        "cleared": None,
    },
    evidence={
        "method": "paused together",
        "longest_pause_s": 0.25,
        "longest_freeze_s": 1.5,
        "below_application": ["web: no guest agent answers: not connected"],
    },
)


def test_the_list_can_leave_out_the_encrypted(api: Api, cli: Cli):
    api.on("GET", "/checkpoints", {"items": [FLAGGED]})
    out = cli("checkpoint", "list", "--clean").out
    assert "flagged 97" in out
    assert api.sent("GET")[0].query["clean"] == "true"


def test_one_shows_what_is_thought_of_it_and_how_it_was_taken(api: Api, cli: Cli):
    api.on("GET", "/checkpoints/cp-3", FLAGGED)
    out = " ".join(cli("checkpoint", "show", "cp-3").out.split())
    for said in (
        "flagged 97",
        "90% of what the disk holds",
        "held: case 4711; daily",
        "at longest paused 0.2 s, frozen 1.5 s",
        "web: no guest agent answers",
    ):
        assert said in out


def test_a_hold_is_placed_and_lifted_and_a_checkpoint_cleared(api: Api, cli: Cli):
    api.on("PUT", "/checkpoints/cp-3/hold", FLAGGED)
    api.on("DELETE", "/checkpoints/cp-3/hold", checkpoint())
    api.on("POST", "/checkpoints/cp-3:clear", checkpoint())
    assert cli("checkpoint", "hold", "cp-3", "--reason", "case 4711").status == 0
    assert api.sent("PUT")[0].body == {"reason": "case 4711"}
    assert cli("checkpoint", "release", "cp-3").status == 0
    assert cli("checkpoint", "clear", "cp-3", "--note", "a test").status == 0
    assert api.sent("POST")[0].body == {"note": "a test"}


def test_retention_is_shown_by_the_plans_rules_or_by_others(api: Api, cli: Cli):
    answer = {
        "changed": True,
        "before": {},
        "after": {},
        "checkpoints": [
            {
                "checkpoint_id": "cp-1",
                "group_id": "grp-1",
                "taken_at": "2026-01-31T12:00:01Z",
                "stays": False,
                "reasons": ["no rule keeps it"],
            }
        ],
        "crowded": ["grp-1"],
        "warnings": ["group grp-1 has reached max_chain 32"],
    }
    api.on("POST", "/plans/shop:retention-preview", answer)
    api.on("GET", "/plans/shop", {"definition": {"retention": {"count": 8, "max_chain": 32}}})
    out = cli("checkpoint", "retention", "shop").out
    assert "goes" in out
    assert "no rule keeps it" in out
    assert "max_chain 32" in out
    assert cli("checkpoint", "retention", "shop", "--rule", "daily=7", "--rule", "max_age=90d").status == 0
    bodies = [sent.body for sent in api.sent("POST")]
    assert bodies == [{}, {"retention": {"count": 8, "max_chain": 32, "daily": 7, "max_age": "90d"}}]
    assert cli("checkpoint", "retention", "shop", "--rule", "daily").status == 2


def test_a_level_and_a_hold_can_be_asked_for(api: Api, cli: Cli):
    api.on(
        "PUT",
        "/plans/shop/checkpoints/gold",
        {"checkpoint": checkpoint(), "checkpoints": [], "run": None, "changed": True},
    )
    assert (
        cli("checkpoint", "create", "shop", "--label", "gold", "--consistency", "application", "--hold", "x").status
        == 0
    )
    assert api.sent("PUT")[0].body == {"pin": True, "consistency": "application", "hold": "x"}
