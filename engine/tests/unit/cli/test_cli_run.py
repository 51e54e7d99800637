"""What ``farshore run show`` says of cycles and their disks."""

from __future__ import annotations

from collections.abc import Callable

from doubles.cli_documents import run_document
from doubles.cli_server import Api, Result

Cli = Callable[..., Result]

MIB = 1 << 20
CYCLE = {
    "group_id": "grp-shop=db",
    "checkpoint_id": "cp-7",
    "state": "done",
    "error": None,
    "stats": {
        "mode": "incremental",
        "disk_bytes": 1024 * MIB,
        "changed_bytes": 64 * MIB,
        "moved_bytes": 64 * MIB,
        "resent_bytes": 3 * MIB,
        "seconds": 8.0,
        "disks": [
            {
                "disk_key": "db/vda",
                "mode": "incremental",
                "moved_bytes": 64 * MIB,
                "resent_bytes": 3 * MIB,
                "retries": 2,
                "seconds": 4.0,
                "level_bytes": 48 * MIB,
                "level_changes": [{}, {}, {}],
            }
        ],
    },
}


def test_each_disk_of_a_cycle_is_shown_with_its_rate_and_window(api: Api, cli: Cli):
    api.on("GET", "/runs/run-1", run_document(state="succeeded", cycles=[CYCLE]))
    out = cli("run", "show", "run-1").out
    assert "3.0 MiB sent again" in out
    (row,) = [line for line in out.splitlines() if "db/vda" in line]
    assert " ".join(row.split()) == "db/vda incremental 64.0 MiB 16.0 MiB/s 48.0 MiB 3 3.0 MiB 2"


def test_a_cycle_of_an_older_node_has_no_disks(api: Api, cli: Cli):
    stats = {key: value for key, value in CYCLE["stats"].items() if key not in {"disks", "resent_bytes"}}  # type: ignore[attr-defined]
    api.on("GET", "/runs/run-1", run_document(state="succeeded", cycles=[CYCLE | {"stats": stats}]))
    out = cli("run", "show", "run-1").out
    assert "sent again →" not in out
    assert "their nodes did not tell" in out
