"""What the sites have: taken over from their nodes' reports."""

from __future__ import annotations

import time
from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control.store.database import Transaction
from farshore.control.store.records import Machine, PlanMachine, Site
from farshore.model.machine import Inventory, MachineFacts


def apply(tx: Transaction, site_name: str, found: Inventory) -> None:
    """Record what a node found at its site. Machines that are not there any more keep their row, with ``gone_at``."""
    site = tx.get(Site, site_name)
    if site is None:
        return
    now = time.time()
    summary = found.model_dump(mode="json", exclude={"machines"})
    first = site.inventory_at is None
    if site.inventory != summary:
        site.inventory = summary
        tx.changed("site", site_name)
    site.inventory_at = now
    if first:
        tx.changed("site", site_name)
    known = {row.machine_id: row for row in tx.scalars(select(Machine).where(Machine.site == site_name))}
    for facts in found.machines:
        dumped = facts.model_dump(mode="json")
        row = known.pop(facts.machine_id, None)
        if row is None:
            tx.add(Machine(site=site_name, machine_id=facts.machine_id, name=facts.name, facts=dumped, seen_at=now))
            tx.changed("machine", facts.machine_id)
            continue
        if row.facts != dumped or row.gone_at is not None:
            row.name, row.facts, row.gone_at = facts.name, dumped, None
            tx.changed("machine", facts.machine_id)
        row.seen_at = now
    for row in known.values():
        if row.gone_at is None:
            row.gone_at = now
            tx.changed("machine", row.machine_id)
    tx.flush()
    _resolve(tx, site_name)


def _resolve(tx: Transaction, site: str) -> None:
    """Give plan machines that were named before their site had an inventory the ids of what they name."""
    present = machines(tx, site)
    for member in tx.scalars(select(PlanMachine).where(PlanMachine.site == site, PlanMachine.machine_id.is_(None))):
        matching = find(present, member.name)
        if len(matching) == 1:
            member.machine_id = matching[0].machine_id
            tx.changed("plan", member.plan)


def machines(session: Session, site: str) -> list[MachineFacts]:
    """Return the machines that are at ``site`` now, in the order of their names."""
    rows = session.scalars(
        select(Machine)
        .where(Machine.site == site, Machine.gone_at.is_(None))
        .order_by(Machine.name, Machine.machine_id)
    )
    return [MachineFacts.model_validate(row.facts) for row in rows]


def find(present: Iterable[MachineFacts], name: str) -> list[MachineFacts]:
    """Return the machines whose id or name is ``name``; the id wins."""
    candidates = list(present)
    by_id = [facts for facts in candidates if facts.machine_id == name]
    return by_id or [facts for facts in candidates if facts.name == name]


def at(session: Session, site: str) -> Inventory | None:
    """Return the newest inventory of ``site`` with its machines; None before the first."""
    row = session.get(Site, site)
    if row is None or row.inventory is None:
        return None
    return Inventory.model_validate({**row.inventory, "machines": machines(session, site)})
