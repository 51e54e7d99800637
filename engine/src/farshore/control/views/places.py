"""Sites and nodes."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farshore.control.clock import iso
from farshore.control.nearby import unknown
from farshore.control.store.records import Machine, Node, Site
from farshore.control.tasks import SILENT_AFTER_S


def is_online(node: Node) -> bool:
    """Say whether a node has polled within the last 30 seconds."""
    return node.last_seen is not None and time.time() - node.last_seen <= SILENT_AFTER_S


def site_state(session: Session, name: str) -> str:
    """Return ``online``, ``offline`` or ``no-node``."""
    nodes = session.scalars(select(Node).where(Node.site == name)).all()
    if not nodes:
        return "no-node"
    return "online" if any(is_online(node) for node in nodes) else "offline"


def sites(session: Session) -> list[dict[str, Any]]:
    """Return all sites by name."""
    return [_site(session, row) for row in session.scalars(select(Site).order_by(Site.name))]


def site(session: Session, name: str) -> dict[str, Any]:
    """Return one site; ``NotFound`` with near matches."""
    row = session.get(Site, name)
    if row is None:
        raise unknown("site", name, session.scalars(select(Site.name)), field="name")
    return _site(session, row)


def _site(session: Session, row: Site) -> dict[str, Any]:
    found = row.inventory or {}
    count = session.scalar(
        select(func.count()).select_from(Machine).where(Machine.site == row.name, Machine.gone_at.is_(None))
    )
    return {
        "name": row.name,
        "platform": row.platform,
        "description": row.description,
        "data_listen": row.data_listen,
        "state": site_state(session, row.name),
        "nodes": list(session.scalars(select(Node.name).where(Node.site == row.name).order_by(Node.name))),
        "networks": found.get("networks", []),
        "pool": found.get("pool"),
        "accelerator": found.get("accelerator", ""),
        "findings": found.get("findings", []),
        "inventory_at": iso(row.inventory_at),
        "machine_count": count or 0,
    }


def nodes(session: Session) -> list[dict[str, Any]]:
    """Return all nodes by name."""
    return [_node(row) for row in session.scalars(select(Node).order_by(Node.name))]


def node(session: Session, name: str) -> dict[str, Any]:
    """Return one node; ``NotFound`` with near matches."""
    row = session.get(Node, name)
    if row is None:
        raise unknown("node", name, session.scalars(select(Node.name)), field="name")
    return _node(row)


def _node(row: Node) -> dict[str, Any]:
    if row.thumbprint is None:
        state = "new"
    elif row.last_seen is None:
        state = "enrolled"
    else:
        state = "online" if is_online(row) else "offline"
    return {
        "name": row.name,
        "site": row.site,
        "roles": list(row.roles),
        "data_address": row.data_address,
        "state": state,
        "last_seen": iso(row.last_seen),
        "version": row.version,
        "platform": row.platform,
        "certificate_not_after": iso(row.not_after),
        "certificate_thumbprint": row.thumbprint,
    }
