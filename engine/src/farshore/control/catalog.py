"""The catalogue of checkpoints: a projection of the manifests at the target sites, which can be made again any time.

The creation of the manifest object is what publishes a checkpoint. Its row follows from the report of the node that
created it, or, where that report never came, from the next scan of the site's manifest store.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from sqlalchemy import select

from farshore.control import integrity, tasks
from farshore.control.planning import protect
from farshore.control.store import settings
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Plan
from farshore.control.views.protection import members
from farshore.model.checkpoint import Manifest
from farshore.model.task import CatalogScanResult, Empty

log = logging.getLogger(__name__)


def project(tx: Transaction, manifest: Manifest, cycle: Cycle | None) -> None:
    """Record a published manifest. ``cycle``: the one that ordered it, None if that is not known. Again: nothing."""
    if tx.get(Checkpoint, manifest.checkpoint_id) is not None:
        return
    tx.add(
        Checkpoint(
            checkpoint_id=manifest.checkpoint_id,
            group_id=manifest.group_id,
            plan=manifest.plan,
            plan_revision=manifest.plan_revision,
            epoch=manifest.epoch,
            sequence=manifest.sequence,
            level=manifest.level,
            ordered_at=manifest.ordered_at,
            # Without the second clock's reading only the wall clock tells the age.
            ordered_boot_s=(cycle.ordered_boot_s if cycle else None) or 0.0,
            ordered_boot_id=(cycle.ordered_boot_id if cycle else None) or "",
            taken_at=manifest.taken_at,
            published_at=time.time(),
            source_site=manifest.source_site,
            target_site=manifest.target_site,
            manifest=manifest.model_dump(mode="json"),
            cycle_id=cycle.cycle_id if cycle else "",
            stats=cycle.stats if cycle else None,
            state="published",
            pinned=cycle.pin if cycle else False,
            label=cycle.label if cycle else "",
            note="",
        )
    )
    tx.flush()
    tx.changed("checkpoint", manifest.checkpoint_id)
    plan = tx.get(Plan, manifest.plan)
    if plan is None:
        return
    copied = {facts.machine_id for facts in manifest.machines}
    for row in members(tx, manifest.plan):
        if row.machine_id in copied and row.state in {"seeding", "reprotecting"}:
            row.state = "protected"
            tx.changed("machine", str(row.machine_id))
    protect.settle(tx, plan)


def scan(tx: Transaction, site: str, occasion: str) -> None:
    """Order a reading of a site's manifest store, once per ``occasion``."""
    tasks.ensure(tx, f"catalog-scan/{site}/{occasion}", "catalog-scan", site, Empty())


def reconcile(tx: Transaction, site: str, result: dict[str, Any]) -> None:
    """Record the manifests of ours that a scan has found and the catalogue lacks, and what is known of all of them."""
    ours = settings.catalog_id(tx)
    found = CatalogScanResult.model_validate(result)
    for manifest in found.manifests:
        if manifest.catalog_id != ours or tx.get(Checkpoint, manifest.checkpoint_id) is not None:
            continue
        cycle = tx.scalars(select(Cycle).where(Cycle.checkpoint_id == manifest.checkpoint_id)).first()
        if cycle is not None and cycle.ended_at is None:
            continue  # its report is on its way
        taken = select(Checkpoint.checkpoint_id).where(
            Checkpoint.group_id == manifest.group_id,
            Checkpoint.epoch == manifest.epoch,
            Checkpoint.sequence == manifest.sequence,
        )
        if (other := tx.scalars(taken).first()) is not None:
            log.error(
                "site %s holds two checkpoints with sequence %d of %s: %s and %s; the second is not offered",
                site,
                manifest.sequence,
                manifest.group_id,
                other,
                manifest.checkpoint_id,
            )
            continue
        log.warning("checkpoint %s was found at site %s and recorded", manifest.checkpoint_id, site)
        project(tx, manifest, None)
    integrity.learn(tx, found.addenda)
