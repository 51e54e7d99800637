"""Which connections a source node keeps open to target nodes that listen."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, defer

from farshore.control.direction import turned
from farshore.control.planning import definitions
from farshore.control.store.records import Node, Plan, Task
from farshore.control.views.places import is_online, link
from farshore.control.views.protection import is_turned
from farshore.model.task import DialOrder


def orders(session: Session, node: Node) -> tuple[DialOrder, ...]:
    """Return whom ``node`` has to dial: for cycles that run, and for those that will, so that they need not wait."""
    if "replication" not in node.roles:
        return ()
    found: dict[tuple[str, str], DialOrder] = {}

    def add(order: DialOrder) -> None:
        found.setdefault((order.address, order.thumbprint), order)

    copies = select(Task.node, Task.session).where(Task.kind == "replicate", Task.state == "assigned")
    for puller, opened in session.execute(copies):
        known: dict[str, Any] = opened or {}
        if known.get("listens") == "target" and known["source_node"] == node.name and puller is not None:
            add(
                DialOrder(
                    site=known["target_site"],
                    node=puller,
                    thumbprint=known["target_thumbprint"],
                    address=known["target_address"],
                    connections=known["connections"],
                )
            )
    active = select(Plan).where(Plan.activity == "active", Plan.active_site == node.site)
    # Without what is large: each poll asks.
    for plan in session.scalars(active.options(defer(Plan.definition), defer(Plan.source))):
        definition = definitions.of_plan(plan)
        source, target = turned(definition.source_site, definition.target_site, plan.active_site)
        if source != node.site or link(session, source, target).data_listen != "target" or not is_turned(session, plan):
            continue
        for other in session.scalars(select(Node).where(Node.site == target).order_by(Node.name)):
            if other.thumbprint and "replication" in other.roles and is_online(other):
                add(
                    DialOrder(
                        site=target,
                        node=other.name,
                        thumbprint=other.thumbprint,
                        address=other.data_address,
                        connections=definition.transport.connections,
                    )
                )
    return tuple(sorted(found.values(), key=lambda order: (order.address, order.thumbprint)))
