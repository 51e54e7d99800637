"""Who may send how much now: the limits of links and plans, shared among the nodes that have cycles on them.

A limit is shared by nodes of one site only, that of the target, for these are the ones that pull.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from farshore.control.scheduling import quotas, shares
from farshore.control.store.database import Transaction
from farshore.control.store.records import Node, Plan, Share, Task
from farshore.control.tasks import SILENT_AFTER_S
from farshore.control.views.places import link
from farshore.model.link import Bandwidth
from farshore.model.task import DialOrder, PollRequest, RateShare

_LINK: Final = "link"
_PLAN: Final = "plan"
#: Calls of a site's provider, shared by its recovery nodes.
_CALLS: Final = "calls"
#: What of the rates of operations is handed out. The rest is what their holders save up while their threads wake up
#: late (3 % of a second, ``platforms/paced.py``): so no second has more calls than the account may make.
_API_SHARED: Final = 0.97
#: What of the calls is handed out; the rest is for inventories and for nodes that do not know their share yet.
_CALLS_SHARED: Final = 0.9
#: A lease is written again when so much of it is over: each poll renews it, and most change nothing else.
_RENEW_AFTER_S: Final = 5.0
#: Copies that nodes have at work.
_COPIES: Final = (Task.kind == "replicate", Task.state == "assigned")
#: Scrubs that nodes have at work: they read the points of their own site.
_SCRUBS: Final = (Task.kind == "scrub", Task.state == "assigned")


def limit_of(session: Session, resource: str, now: float) -> float | None:
    """Return what all on ``resource`` together may take, in bytes (or calls) per second; None: no limit."""
    kind, _, name = resource.partition(":")
    if kind == _CALLS:
        calls_per_s = quotas.limits(session, name).calls_per_s
        return calls_per_s * _CALLS_SHARED if calls_per_s is not None else None
    if kind in quotas.OPERATIONS:
        account, _, operation = name.rpartition(":")
        told = [quotas.limits(session, site) for site in quotas.sites_of(session, account)]
        rates = [{**one.writes, **one.reads}[operation] for one in told if operation in {**one.writes, **one.reads}]
        return min(rates) * _API_SHARED if rates else None
    if kind == _LINK:
        source, _, target = name.partition("/")
        return link(session, source, target).bandwidth.limit_at(now)
    plan = session.get(Plan, name) if kind == _PLAN else None
    bandwidth = plan.definition.get("transport", {}).get("bandwidth") if plan is not None else None
    return Bandwidth.model_validate(bandwidth).limit_at(now) if bandwidth else None


def renew(tx: Transaction, node: Node, request: PollRequest, *, restarted: bool, since: float) -> tuple[RateShare, ...]:
    """Return what ``node`` may take of each limit that its cycles are under, and keep that it was given.

    ``since`` is when this process began: that nobody was heard before proves nothing.
    """
    now = time.time()
    rows = {row.resource: row for row in tx.scalars(select(Share).where(Share.node == node.name))}
    using = _users(tx, node, request)
    near = _near(tx, node.site)
    callers = _callers(tx, node, near, now)
    if callers:
        using[f"{_CALLS}:{node.site}"] = callers
    for resource in [name for name in rows if restarted or node.name not in using.get(name, ())]:
        tx.delete(rows.pop(resource))  # the process that had it is gone, or has no use for it any more
        _wake(tx, node, resource)
    told = []
    for resource in sorted(name for name, nodes in using.items() if node.name in nodes):
        limit = limit_of(tx, resource, now)
        row = rows.get(resource)
        if limit is None:
            if row is not None:
                tx.delete(row)
            continue
        out = {
            other.node: shares.Share(other.rate, other.later, other.held, other.kept, max(other.until, since))
            for other in tx.scalars(select(Share).where(Share.resource == resource))
            if not (other.node == node.name and row is None)
        }
        if row is not None and request.standing == node.standing:
            out[node.name] = out[node.name].confirm()
        share = shares.lease(
            out,
            node.name,
            limit=float(limit),
            users=using[resource],
            members=_members(tx, near, resource),
            now=now,
        )
        if row is None:
            row = Share(resource=resource, node=node.name, rate=-1.0, held=-1.0)
            tx.add(row)
        changed = (row.rate, row.held) != (share.rate, share.held)
        row.rate, row.later, row.held, row.kept = share.rate, share.later, share.held, share.kept
        if tx.is_modified(row) or not 0.0 <= share.until - row.until <= _RENEW_AFTER_S:
            row.until = share.until
        if changed:
            _wake(tx, node, resource)  # the others may have more from now on, or have to do with less
        told.append(
            RateShare(
                resource=resource,
                bytes_per_s=share.rate,
                later_bytes_per_s=share.later,
                valid_s=row.until - now,
            )
        )
    tx.flush()
    return tuple(told)


def standing(limits: Sequence[RateShare], links: Sequence[DialOrder]) -> str:
    """Return a name for what a node is told, the same for the same."""
    if not limits and not links:
        return ""
    body = [[share.resource, share.bytes_per_s, share.later_bytes_per_s] for share in limits]
    text = json.dumps([body, [order.model_dump(mode="json") for order in links]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def watch(tx: Transaction, before: dict[str, float | None]) -> dict[str, float | None]:
    """Wake the nodes of sites where a limit has changed since ``before``; return the limits that hold now."""
    now = time.time()
    limits: dict[str, float | None] = {}
    for site, session in tx.execute(select(Task.site, Task.session).where(*_COPIES)):
        for resource in (session or {}).get("limits", ()):
            limits[resource] = limit_of(tx, resource, now)
            if limits[resource] != before.get(resource, limits[resource]):
                tx.wake(site)
    return limits


def _users(session: Session, node: Node, request: PollRequest) -> dict[str, set[str]]:
    """Return the nodes with cycles on each resource at the node's site, by resource."""
    found: dict[str, set[str]] = {}

    def note(used: dict[str, Any] | None, name: str) -> None:
        for resource in (used or {}).get("limits", ()):
            found.setdefault(resource, set()).add(name)

    # A cycle that was cancelled, or given to another node, runs until its node has stopped it.
    held = and_(Task.kind == "replicate", Task.task_id.in_(request.running))
    at_work = or_(and_(*_SCRUBS), and_(*_COPIES), held)
    columns = (Task.kind, Task.state, Task.task_id, Task.node, Task.site, Task.session)
    for kind, state, task_id, name, site, used in session.execute(select(*columns).where(at_work)):
        if kind == "scrub":
            note({"limits": quotas.rates_of(session, site, "reads")}, str(name))
            continue
        if task_id in request.running:
            note(used, node.name)
        if state != "assigned":
            continue
        if site == node.site:
            note(used, str(name))
        else:  # an account may have several sites
            note({"limits": [one for one in (used or {}).get("limits", ()) if _is_of_account(one)]}, str(name))
        note({"limits": (used or {}).get("reads", ())}, str((used or {}).get("source_node")))
    return found


class _Near(NamedTuple):
    """What is asked of a node that shares."""

    name: str
    roles: list[str]
    last_seen: float | None


def _near(session: Session, *sites: str) -> list[_Near]:
    query = select(Node.name, Node.roles, Node.last_seen).where(Node.site.in_(sites))
    return [_Near(*row) for row in session.execute(query)]


def _is_of_account(resource: str) -> bool:
    return resource.partition(":")[0] in quotas.OPERATIONS


def _sites(session: Session, resource: str) -> list[str]:
    return quotas.sites_of(session, resource.partition(":")[2].rpartition(":")[0])


def _wake(tx: Transaction, node: Node, resource: str) -> None:
    """Let the nodes that share a rate with ``node`` ask for theirs."""
    for site in {node.site, *(_sites(tx, resource) if _is_of_account(resource) else ())}:
        tx.wake(site)


def _members(session: Session, near: Iterable[_Near], resource: str) -> int:
    if _is_of_account(resource):
        near = _near(session, *_sites(session, resource))
    role = quotas.ROLE if resource.startswith(f"{_CALLS}:") else "replication"
    return sum(role in node.roles for node in near)


def _callers(session: Session, node: Node, near: Iterable[_Near], now: float) -> set[str]:
    """Return the recovery nodes of a node's site that answer, if it is one and its provider counts calls."""
    if quotas.ROLE not in node.roles or quotas.limits(session, node.site).calls_per_s is None:
        return set()
    return {
        other.name
        for other in near
        if quotas.ROLE in other.roles and other.last_seen is not None and now - other.last_seen <= SILENT_AFTER_S
    }
