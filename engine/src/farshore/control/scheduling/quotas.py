"""Which recovery tasks a node gets: what the provider takes at once, what the node can hold, each run in turn.

A provider's limits belong to its account, so they count over all runs and nodes of a site. A task that a node holds
counts until its end was reported, whoever is silent meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Final, Literal

from sqlalchemy import Row, and_, bindparam, func, or_, select
from sqlalchemy.orm import Session

from farshore.control.store.records import Node, Site, Task
from farshore.model.machine import ComputeLimits

ROLE: Final = "recovery"
#: What the names of rates of a provider's operations begin with: ``writes:<account>:<operation>``.
OPERATIONS: Final = ("writes", "reads")
#: The kinds of tasks that a provider counts, and the limit that holds for them.
LIMITED: Final[dict[str, str]] = {
    "machine-create": "creates",
    "machine-power-on": "starts",
    "machine-start": "starts",
}


# Each report of a node asks these: they are put together once.
_SITE: Final = Task.site == bindparam("site")
_QUEUED: Final = and_(_SITE, Task.state == "queued", Task.role == ROLE, Task.not_before <= bindparam("now"))
_WAITS: Final = select(Task.task_id).where(_QUEUED).limit(1)
_AT_WORK: Final = (
    select(Task.kind, func.count()).where(_SITE, Task.state == "assigned", Task.kind.in_(LIMITED)).group_by(Task.kind)
)
_OLDEST: Final = (Task.created_at, Task.task_id)
#: Of each kind as many as there is room for: what may not begin yet keeps nothing from its turn.
_HEADS: Final = (
    select(Task.task_id, func.row_number().over(partition_by=(Task.run_id, Task.kind), order_by=_OLDEST).label("place"))
    .where(
        _QUEUED,
        or_(Task.pinned_node.is_(None), Task.pinned_node == bindparam("node")),
        Task.kind.not_in(bindparam("shut", expanding=True)),
    )
    .subquery()
)
_OPEN: Final = (
    select(Task.task_id, Task.run_id, Task.kind)
    .join(_HEADS, _HEADS.c.task_id == Task.task_id)
    .where(_HEADS.c.place <= bindparam("room"))
    .order_by(*_OLDEST)
)


def limits(session: Session, site: str) -> ComputeLimits:
    """Return what the site's provider takes at once, as the newest inventory says."""
    row = session.get(Site, site)
    found = (row.inventory or {}).get("limits") if row is not None else None
    return ComputeLimits.model_validate(found or {})


def rates_of(session: Session, site: str, use: Literal["writes", "reads"]) -> tuple[str, ...]:
    """Return the names of the rates of calls that copies to (or from) a site are under.

    They belong to the provider's account: sites with the same one share them.
    """
    found = limits(session, site)
    return tuple(f"{use}:{found.account or site}:{operation}" for operation in sorted(getattr(found, use)))


def sites_of(session: Session, account: str) -> list[str]:
    """Return the sites that an account belongs to; one whose provider names none stands for itself."""
    return [name for name in session.scalars(select(Site.name)) if (limits(session, name).account or name) == account]


def takes_drafts(session: Session, site: str, disks: Callable[[], int], at_work: Iterable[tuple[str, int]]) -> bool:
    """Say whether a site's provider lets so many disks more be written; ``at_work``: target sites and disks of copies.

    Neither they nor ``disks`` are looked at where the provider has no limit. A copy that is larger than the limit
    begins alone: what the provider says to it is told then.
    """
    found = limits(session, site)
    if found.drafts is None:
        return True
    near = set(sites_of(session, found.account or site))
    writing = sum(number for other, number in at_work if other in near)
    return writing == 0 or writing + disks() <= found.drafts


def left(session: Session, site: str) -> dict[str, int]:
    """Return how many tasks of each limited kind may begin at the site now; kinds without a limit are not in it."""
    allowed = limits(session, site)
    most = {kind: getattr(allowed, name) for kind, name in LIMITED.items()}
    if all(value is None for value in most.values()):
        return {}
    at_work: dict[str, int] = {}
    for kind, number in session.execute(_AT_WORK, {"site": site}):
        at_work[LIMITED[kind]] = at_work.get(LIMITED[kind], 0) + number
    return {kind: max(0, value - at_work.get(LIMITED[kind], 0)) for kind, value in most.items() if value is not None}


def choose(session: Session, node: Node, room: int, now: float) -> list[Task]:
    """Return up to ``room`` queued recovery tasks for ``node``, the oldest of each run in turn."""
    if room <= 0 or ROLE not in node.roles:
        return []
    allowed = left(session, node.site)
    shut = [kind for kind, number in allowed.items() if number == 0]
    given = {"site": node.site, "now": now, "node": node.name, "shut": shut, "room": room}
    queues: dict[str, list[Row[str, str | None, str]]] = {}
    for row in session.execute(_OPEN, given):
        queues.setdefault(row.run_id or "", []).append(row)
    chosen: list[str] = []
    taken: dict[str, int] = {}
    for task in (one for turn in zip_longest(*(queues[run] for run in sorted(queues))) for one in turn if one):
        limit = LIMITED.get(task.kind)
        if task.kind in allowed and limit is not None:
            if taken.get(limit, 0) >= allowed[task.kind]:
                continue
            taken[limit] = taken.get(limit, 0) + 1
        chosen.append(task.task_id)
        if len(chosen) == room:
            break
    if not chosen:
        return []
    found = {task.task_id: task for task in session.scalars(select(Task).where(Task.task_id.in_(chosen)))}
    return [found[task_id] for task_id in chosen]


def waits(session: Session, site: str, now: float) -> bool:
    """Say whether a recovery task waits at the site that could begin as soon as there is room."""
    return session.scalars(_WAITS, {"site": site, "now": now}).first() is not None
