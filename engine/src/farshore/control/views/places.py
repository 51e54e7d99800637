"""Sites and nodes."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farshore.control.clock import iso
from farshore.control.nearby import unknown
from farshore.control.store.records import Machine, Node, Share, Site, SiteLink
from farshore.control.tasks import SILENT_AFTER_S
from farshore.errors import NotFound
from farshore.model.link import SiteLink as Link
from farshore.model.link import link_limit


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


def link(session: Session, source_site: str, target_site: str) -> Link:
    """Return how data goes from one site to another: as described, else as the source site says, without limit.

    The way back is not limited by what was said of the way there, but the same side listens: who can reach whom.
    """
    row = session.get(SiteLink, (source_site, target_site))
    if row is not None:
        return Link.model_validate({"data_listen": row.data_listen, "bandwidth": row.bandwidth})
    back = session.get(SiteLink, (target_site, source_site))
    if back is not None:
        return Link.model_validate({"data_listen": "target" if back.data_listen == "source" else "source"})
    source = session.get(Site, source_site)
    return Link.model_validate({"data_listen": source.data_listen if source else "source"})


def site_links(session: Session) -> list[dict[str, Any]]:
    """Return all links that were described, by the names of their sites."""
    order = (SiteLink.source_site, SiteLink.target_site)
    return [_site_link(session, row) for row in session.scalars(select(SiteLink).order_by(*order))]


def site_link(session: Session, source_site: str, target_site: str) -> dict[str, Any]:
    """Return one link.

    Raises:
        NotFound: it was not described.
    """
    row = session.get(SiteLink, (source_site, target_site))
    if row is None:
        raise NotFound(
            f"the link from site {source_site!r} to {target_site!r} was not described",
            code="site-link-unknown",
            hint=f"Describe it: `farshore site-link add {source_site} {target_site}`.",
        )
    return _site_link(session, row)


def _site_link(session: Session, row: SiteLink) -> dict[str, Any]:
    bandwidth = link(session, row.source_site, row.target_site).bandwidth
    now = time.time()
    shares = session.scalars(
        select(Share).where(Share.resource == link_limit(row.source_site, row.target_site)).order_by(Share.node)
    )
    return {
        "source_site": row.source_site,
        "target_site": row.target_site,
        "data_listen": row.data_listen,
        "bandwidth": row.bandwidth,
        "limit_now": bandwidth.limit_at(now),
        "limit_until": iso(bandwidth.next_change(now)),
        "shares": [
            {"node": share.node, "bytes_per_s": share.rate, "until": iso(share.until)}
            for share in shares
            if share.until > now
        ],
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
