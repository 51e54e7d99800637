"""Documents as the API gives them."""

from __future__ import annotations

from typing import Any

SITE = {
    "name": "alpha",
    "platform": "kvm",
    "description": "",
    "state": "online",
    "nodes": ["alpha-1"],
    "networks": [{"name": "lan", "subnet": "192.168.50.0/24", "isolated": False, "active": True}],
    "pool": {"path": "/srv/pool", "capacity_bytes": 100 << 30, "free_bytes": 60 << 30},
    "inventory_at": "2026-01-31T08:00:00Z",
    "machine_count": 2,
}


def machine(name: str, **more: Any) -> dict[str, Any]:
    return {
        "machine_id": f"id-{name}",
        "name": name,
        "site": "alpha",
        "power": "on",
        "cpus": 2,
        "memory_bytes": 256 << 20,
        "disks": [{"disk_id": "vda", "size_bytes": 1 << 30, "tracked": True}],
        "nics": [{"mac": "52:54:00:00:00:01", "network": "lan", "addresses": ["192.168.50.11"]}],
        "plan": None,
        "state": "unprotected",
        "conditions": [],
        "epoch": 0,
        "active_site": "alpha",
        "rpo_s": None,
        "newest_checkpoint": None,
        "findings": [],
        "bottleneck": None,
    } | more


def plan(**more: Any) -> dict[str, Any]:
    return {
        "name": "shop",
        "revision": 3,
        "definition": {"name": "shop", "source_site": "alpha", "target_site": "beta", "rpo": 900.0},
        "source": "name: shop\n",
        "activity": "active",
        "active_site": "alpha",
        "state": "protected",
        "conditions": [],
        "epoch": 1,
        "rpo_s": 42.0,
        "rpo_target_s": 900.0,
        "machines": [
            {
                "name": "db",
                "machine_id": "id-db",
                "state": "protected",
                "active_site": "alpha",
                "rpo_s": 42.0,
                "newest_checkpoint": "cp-1",
            }
        ],
        "groups": ["grp-shop-db"],
        "next_cycle_at": "2026-01-31T08:15:00Z",
        "last_error": None,
    } | more


def run_document(**more: Any) -> dict[str, Any]:
    return {
        "run_id": "run-1",
        "kind": "drill",
        "plan": "shop",
        "state": "running",
        "created_at": "2026-01-31T08:00:00Z",
        "started_at": "2026-01-31T08:00:01Z",
        "ended_at": None,
        "actor": "first-admin",
        "params": {},
        "url": "/runs/run-1",
        "report_url": "/api/v1/runs/run-1/report",
        "error": None,
        "steps": [],
        "machines": [],
        "cycles": [],
        "progress": {"done_bytes": 0, "total_bytes": 0, "note": ""},
    } | more
