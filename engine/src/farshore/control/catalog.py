"""The catalogue of checkpoints: a projection of the manifests at the target sites, which can be made again any time.

The creation of the manifest object is what publishes a checkpoint. Its row follows from the report of the node that
created it, or, where that report never came, from the next scan of the site's manifest store.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.checkpoints.manifest import digest
from farshore.control import audit, integrity, suspicion, tasks
from farshore.control.planning import protect
from farshore.control.store import settings
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Plan, PlanMachine, Setting, Task
from farshore.control.views.places import site_state
from farshore.control.views.protection import direction
from farshore.errors import Conflict
from farshore.model.checkpoint import Manifest
from farshore.model.machine import Finding
from farshore.model.task import CatalogCheckResult, CatalogScanResult, Empty

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
            hold=cycle.hold if cycle else "",
            held_by=cycle.held_by if cycle else "",
            held_at=time.time() if cycle and cycle.hold else None,
            score=suspicion.rate(tx, manifest),
        )
    )
    tx.flush()
    _carry_over(tx, manifest.checkpoint_id)
    tx.changed("checkpoint", manifest.checkpoint_id)
    plan = tx.get(Plan, manifest.plan)
    if plan is None:
        return
    copied = {facts.machine_id for facts in manifest.machines}
    waiting = select(PlanMachine).where(
        PlanMachine.plan == manifest.plan,
        PlanMachine.machine_id.in_(copied),
        PlanMachine.state.in_(("seeding", "reprotecting")),
    )
    for row in tx.scalars(waiting):
        row.state = "protected"
        tx.changed("machine", str(row.machine_id))
    protect.settle(tx, plan)


def _carry_over(tx: Transaction, checkpoint_id: str) -> None:
    """Give a checkpoint the pins and labels that it had with the control plane before this one."""
    carried = tx.get(Setting, "carried")
    said = carried.value.get(checkpoint_id) if carried is not None else None
    if carried is None or said is None:
        return
    row = tx.get_one(Checkpoint, checkpoint_id)
    for name, value in said.items():
        if name in Checkpoint.__table__.columns:
            setattr(row, name, value)
    carried.value = {name: value for name, value in carried.value.items() if name != checkpoint_id}


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


# After a takeover -----------------------------------------------------------------------------------------------------


def rebuilding(session: Session) -> list[str]:
    """Return the sites whose manifests were not read yet since this control plane took over from another."""
    row = session.get(Setting, "rebuild")
    return list(row.value["sites"]) if row is not None else []


def is_unread(session: Session, plan: str) -> bool:
    """Say whether a plan has to wait: what its target holds has to be known before anything is added to it."""
    unread = rebuilding(session)
    return bool(unread) and direction(session.get_one(Plan, plan)).target in unread


def rebuild(tx: Transaction) -> None:
    """Have the manifests of each site read once after a takeover, as soon as a node of it polls."""
    row = tx.get(Setting, "rebuild")
    if row is None or not row.value["sites"]:
        return
    left = []
    for site in row.value["sites"]:
        prefix = f"catalog-scan/{site}/generation-{row.value['generation']}"
        tried = tx.scalars(
            select(Task).where(Task.kind == "catalog-scan", Task.site == site, Task.key.startswith(prefix))
        ).all()
        if any(task.state == "succeeded" for task in tried):
            _rebuilt(tx, site)
            continue
        left.append(site)
        if all(task.state in tasks.ENDED for task in tried) and site_state(tx, site) == "online":
            task = tasks.ensure(tx, f"{prefix}/{len(tried)}", "catalog-scan", site, Empty())
            task.not_before = time.time() + min(2.0 ** len(tried), 60.0) if tried else 0.0
    if left != row.value["sites"]:
        row.value = {**row.value, "sites": left}


def _rebuilt(tx: Transaction, site: str) -> None:
    """Say what was found, and hold back plans of which the manifests know a newer epoch than we do."""
    found = tx.scalars(select(Checkpoint).where(Checkpoint.target_site == site, Checkpoint.state == "published")).all()
    for plan in tx.scalars(select(Plan)):
        epoch = max((point.epoch for point in found if point.plan == plan.name), default=0)
        if epoch > plan.epoch:
            log.error("plan %s is in epoch %d at site %s, here in %d", plan.name, epoch, site, plan.epoch)
            plan.activity = "inactive"
            plan.last_error = Conflict(
                f"the manifests of site {site!r} know epoch {epoch} of plan {plan.name!r}, this control plane"
                f" {plan.epoch}: it took over from an old bundle",
                code="bundle-stale",
                hint="Find out where its machines run before anything else.",
            ).to_dict()
            tx.changed("plan", plan.name)
    log.warning("%d checkpoints were found at site %s", len(found), site)
    audit.record(tx, "control plane", "rebuild_catalog", site, checkpoints=len(found))
    tx.changed("site", site)


def superseded(tx: Transaction, node: str, generation: int) -> None:
    """Note that a node obeys another control plane, which took over from this one."""
    known = tx.get(Setting, "superseded")
    if known is not None and int(known.value["generation"]) >= generation:
        return
    tx.merge(Setting(key="superseded", value={"generation": generation, "node": node}))
    log.error("node %s obeys generation %d: another control plane took over from this one; stop it", node, generation)
    audit.record(tx, f"node {node}", "refuse_control_plane", "control plane", generation=generation)


# Catalogue = manifests = native points --------------------------------------------------------------------------------


def compare(session: Session, site: str, found: CatalogCheckResult) -> list[Finding]:
    """Return where the catalogue, the manifests of a site and its native points disagree.

    What a cycle or a removal under way explains is told as ``info``.
    """
    rows = {
        row.checkpoint_id: row
        for row in session.scalars(
            select(Checkpoint).where(Checkpoint.target_site == site, Checkpoint.state.in_(("published", "dropping")))
        )
    }
    stored = {item.checkpoint_id: item for item in found.manifests}
    running = set(
        session.scalars(select(Cycle.checkpoint_id).where(Cycle.ended_at.is_(None), Cycle.checkpoint_id.is_not(None)))
    )
    findings = list(found.findings)
    for checkpoint_id, row in rows.items():
        item = stored.get(checkpoint_id)
        if item is None and row.state == "published":
            findings.append(
                _differs(
                    "manifest-missing",
                    "error",
                    checkpoint_id,
                    "the catalogue offers it, the site has no manifest of it",
                    "It cannot be recovered from. Remove it: `farshore checkpoint delete`.",
                )
            )
        elif item is not None and item.digest != digest(Manifest.model_validate(row.manifest)):
            findings.append(
                _differs(
                    "manifest-differs",
                    "error",
                    checkpoint_id,
                    "its manifest at the site says something else than the catalogue",
                    "Somebody changed one of the two. Scrub it: `farshore checkpoint scrub`.",
                )
            )
    for checkpoint_id, item in stored.items():
        known = session.get(Checkpoint, checkpoint_id)
        if checkpoint_id not in rows and checkpoint_id not in running:
            gone = known is not None
            findings.append(
                _differs(
                    "manifest-left" if gone else "manifest-unrecorded",
                    "warning",
                    checkpoint_id,
                    f"the site publishes it for plan {item.plan!r}, the catalogue "
                    + ("has removed it" if gone else "does not know it"),
                    "Its removal was broken off; remove the manifest by hand."
                    if gone
                    else "Read the site's manifests again: `farshore catalog check --adopt`.",
                )
            )
    dropping = {checkpoint_id for checkpoint_id, row in rows.items() if row.state == "dropping"}
    findings += [
        _differs(
            "point-missing",
            "info" if missing.checkpoint_id in dropping else "error",
            missing.checkpoint_id,
            f"disk {missing.disk_key}: its point {missing.point} is not at the site",
            "It cannot be recovered from. Remove it, and replicate anew.",
        )
        for missing in found.missing
    ]
    findings += [
        _differs(
            "point-unnamed",
            "info" if running else "warning",
            orphan,
            "no manifest names this point"
            + ("; a cycle is under way, which may be about to" if running else ": a cycle left it behind"),
            "" if running else "The site's node removes it by itself when its term has ended.",
        )
        for orphan in found.orphans
    ]
    return findings


def _differs(code: str, severity: Literal["info", "warning", "error"], subject: str, what: str, remedy: str) -> Finding:
    return Finding(code=code, severity=severity, message=f"{subject}: {what}", remedy=remedy, subject=subject)
