"""Replication sessions: what a target node needs to pull from a source node, made when it takes the task."""

from __future__ import annotations

import time
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control.context import Context
from farshore.control.scheduling import placement, quotas
from farshore.control.store import settings
from farshore.control.store.database import Transaction
from farshore.control.store.records import Cycle, Node, Task
from farshore.control.views.places import is_online, link
from farshore.model.grant import Grant, GrantDisk, sign
from farshore.model.link import link_limit, plan_limit
from farshore.model.task import ReplicateDisk, ReplicateParams

#: A grant admits the opening of a session; an open session outlives it.
GRANT_VALID_S: Final = 600.0


def compose(tx: Transaction, ctx: Context, task: Task, target: Node) -> dict[str, Any] | None:
    """Return the parameters of a ``replicate`` task for the node that takes it; None if no source node can serve.

    The grant names both nodes' certificates and the task's term, so that what an earlier holder of the task was given
    opens nothing any more. What that holder told of its drafts goes along. ``task.session`` keeps who takes part.
    """
    cycle = tx.get_one(Cycle, task.cycle_id)
    params = ReplicateParams.model_validate(task.params)
    manifest = params.manifest.model_copy(update={"term": task.term})
    source = _source(tx, cycle, manifest.source_site)
    if source is None or source.thumbprint is None or target.thumbprint is None:
        return None
    now = time.time()
    bases = {disk["disk_key"]: disk.get("base") for disk in (cycle.point or {}).get("asked", [])}
    grant = Grant(
        grant_id=f"{task.task_id}.{task.term}",
        catalog_id=settings.catalog_id(tx),
        generation=settings.generation(tx),
        plan=cycle.plan,
        group_id=cycle.group_id,
        session_id=cycle.cycle_id,
        source_site=manifest.source_site,
        target_site=manifest.target_site,
        source_node=source.name,
        target_node=target.name,
        source_thumbprint=source.thumbprint,
        target_thumbprint=target.thumbprint,
        epoch=cycle.epoch,
        term=task.term,
        disks=tuple(
            GrantDisk(
                disk_key=disk.disk_key,
                size_bytes=disk.size_bytes,
                source_point=cycle.point_id or "",
                base=bases.get(disk.disk_key),
            )
            for disk in params.disks
        ),
        not_before=now - 5,
        not_after=now + GRANT_VALID_S,
    )
    listens = link(tx, manifest.source_site, manifest.target_site).data_listen
    limits = (
        link_limit(manifest.source_site, manifest.target_site),
        plan_limit(cycle.plan),
        *quotas.rates_of(tx, manifest.target_site, "writes"),
    )
    task.session = {
        "listens": listens,
        "limits": list(limits),
        "reads": list(quotas.rates_of(tx, manifest.source_site, "reads")),
        "source_node": source.name,
        "target_site": manifest.target_site,
        "target_thumbprint": target.thumbprint,
        "target_address": target.data_address,
        "connections": params.transport.connections,
    }
    if listens == "target":
        tx.wake(manifest.source_site)  # its node has to dial
    return params.model_copy(
        update={
            "grant": sign(grant, ctx.grant_key),
            "address": source.data_address if listens == "source" else "",
            "manifest": manifest,
            "disks": tuple(_taken_over(disk, task) for disk in params.disks),
            "limits": limits,
        }
    ).model_dump(mode="json")


def _taken_over(disk: ReplicateDisk, task: Task) -> ReplicateDisk:
    """Return ``disk`` with what an earlier holder of the task told of its draft."""
    draft = (task.drafts or {}).get(disk.disk_key)
    if draft is None:
        return disk
    return disk.model_copy(update={"draft_key": draft["draft_key"], "durable": tuple(map(tuple, draft["ranges"]))})


def _source(session: Session, cycle: Cycle, site: str) -> Node | None:
    """Return the node that took the point if it answers, else another of the site that does."""
    nodes = [node for node in session.scalars(select(Node).where(Node.site == site)) if is_online(node)]
    return placement.choose(nodes, "replication", prefer=cycle.source_node)
