"""Records of a small plan, for tests of what looks at records only."""

from __future__ import annotations

import time
from typing import Any

from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Group, Plan, PlanMachine, Site
from farshore.model.plan import Plan as Definition

GROUP = "group-1"


def plan(tx: Transaction, **changes: Any) -> Plan:
    """Insert plan ``shop`` (machine ``db``, alpha to beta, group ``group-1``) and return its record."""
    definition = {"name": "shop", "source_site": "alpha", "target_site": "beta", "machines": [{"name": "db"}]}
    definition |= changes.pop("definition", {})
    values = {
        "name": "shop",
        "revision": 1,
        "source": "",
        "definition": Definition.model_validate(definition).model_dump(mode="json"),
        "activity": "active",
        "state": "protected",
        "active_site": "alpha",
        "epoch": 1,
        "created_at": 1.0,
        "changed_at": 1.0,
    }
    for name in ("alpha", "beta"):
        tx.add(Site(name=name, platform="file", description="", created_at=1.0))
    made = Plan(**{**values, **changes})
    tx.add(made)
    tx.flush()
    tx.add(Group(group_id=GROUP, plan="shop", failures=0, not_before=0.0))
    tx.add(
        PlanMachine(
            plan="shop",
            name="db",
            position=0,
            site="alpha",
            machine_id="id-db",
            group_id=GROUP,
            activity="active",
            state="protected",
        )
    )
    tx.flush()
    return made


def cycle(tx: Transaction, **changes: Any) -> Cycle:
    """Insert a cycle of the plan and return its record."""
    values = {
        "cycle_id": "cyc-1",
        "plan": "shop",
        "group_id": GROUP,
        "plan_revision": 1,
        "epoch": 1,
        "purpose": "schedule",
        "state": "waiting",
        "created_at": 1.0,
    }
    made = Cycle(**{**values, **changes})
    tx.add(made)
    tx.flush()
    return made


def checkpoint(tx: Transaction, sequence: int, **changes: Any) -> Checkpoint:
    """Insert checkpoint ``cp-SEQUENCE`` of machine ``db`` and return its record."""
    now = time.time()
    values = {
        "checkpoint_id": f"cp-{sequence}",
        "group_id": GROUP,
        "plan": "shop",
        "plan_revision": 1,
        "epoch": 1,
        "sequence": sequence,
        "level": "crash",
        "ordered_at": now,
        "ordered_boot_s": 0.0,
        "ordered_boot_id": "",
        "taken_at": now,
        "published_at": now,
        "source_site": "alpha",
        "target_site": "beta",
        "manifest": {"machines": [{"machine_id": "id-db", "name": "db"}], "disks": []},
        "cycle_id": "",
        "state": "published",
    }
    made = Checkpoint(**{**values, **changes})
    tx.add(made)
    tx.flush()
    return made
