"""Tasks: rows that nodes pull. At least once each, never by two nodes with the same term."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import ceil
from typing import Any, Final, TypedDict, Unpack

from pydantic import ValidationError
from sqlalchemy import bindparam, func, or_, select, update
from sqlalchemy.orm import Session, defer

from farshore.control import ids, inventory
from farshore.control.context import Context
from farshore.control.scheduling import quotas
from farshore.control.store import settings
from farshore.control.store.database import Transaction
from farshore.control.store.records import Fence, Node, Run, Site, Task
from farshore.errors import Conflict, FarshoreError, Fenced, Invalid, NotFound, Permanent
from farshore.model.base import Report
from farshore.model.machine import Inventory
from farshore.model.task import PARAMS, RESULTS, PollReply, PollRequest, Progress, Room, TaskReport
from farshore.model.task import Task as WireTask

#: A node that has not polled for this long is offline, and its tasks may go to another node of its site.
SILENT_AFTER_S: Final = 30.0
#: A long poll ends well before that, so that an idle node never looks silent.
LONGEST_POLL_S: Final = 15.0
assert LONGEST_POLL_S < SILENT_AFTER_S / 1.5  # noqa: S101
#: How exactly is known when a node was heard last: most polls of a busy node write nothing.
SEEN_EVERY_S: Final = 1.0
#: Tasks that one node holds at once; each node has its own, smaller limits per kind.
MOST_HELD: Final = 128

OPEN: Final = ("queued", "assigned")
ENDED: Final = ("succeeded", "failed", "cancelled")

#: Kinds that need a node with a certain role; the others suit every node of the site.
_ROLE: Final = {
    "point": "replication",
    "replicate": "replication",
    "release": "replication",
    "drop-checkpoint": "replication",
    "machine-untrack": "replication",
    "network-create": "recovery",
    "machine-create": "recovery",
    # Where points are taken, for it makes way for them.
    "machine-detach": "replication",
    "machine-retire": "replication",
    "machine-prepare": "recovery",
    "hook": "recovery",
    "dns-update": "recovery",
    "machine-power-on": "recovery",
    "machine-probe": "recovery",
    "machine-look": "recovery",
    "isolation": "recovery",
}


# Each report of a node asks these: they are put together once.
_ROLES_HELD: Final = select(Task.role).where(Task.node == bindparam("node"), Task.state == "assigned")
_UNTRIED: Final = select(Fence.task_id).where(
    Fence.site == bindparam("site"), Fence.done_at.is_(None), Fence.attempts == 0
)


class Belongs(TypedDict, total=False):
    """What a task belongs to.

    ``pinned_node``: the only node that may have it. ``term`` is where its terms begin: above those of an earlier task
    whose work it takes over.
    """

    plan: str | None
    run_id: str | None
    cycle_id: str | None
    step: str | None
    machine: str | None
    pinned_node: str | None
    term: int


def ensure(tx: Transaction, key: str, kind: str, site: str, params: Report, **of: Unpack[Belongs]) -> Task:
    """Return the task called ``key``, made now if there is none. ``params`` is of the model of its kind."""
    task = tx.scalars(select(Task).where(Task.key == key)).first()
    return task if task is not None else add(tx, key, kind, site, params, **of)


def add(tx: Transaction, key: str, kind: str, site: str, params: Report, **of: Unpack[Belongs]) -> Task:
    """Return a new task; there must be none that is called ``key``."""
    if not isinstance(params, PARAMS[kind]):
        raise TypeError(f"{kind} takes {PARAMS[kind].__name__}, not {type(params).__name__}")
    task = Task(
        task_id=ids.new("task"),
        key=key,
        kind=kind,
        site=site,
        role=_ROLE.get(kind),
        state="queued",
        cancel=False,
        not_before=0.0,
        params=params.model_dump(mode="json"),
        created_at=time.time(),
        **{"term": 1, **of},
    )
    tx.add(task)
    if task.role == quotas.ROLE:
        tx.offer(site)
    else:
        tx.wake(site)
    return task


def cancel(tx: Transaction, task: Task) -> None:
    """Stop a task: at once if no node has it, else when its node has stopped and said so."""
    if task.state in ENDED:
        return
    if task.state == "queued":
        _end(tx, task, "cancelled")
    else:
        task.cancel = True
        tx.wake(task.site)


def poll(tx: Transaction, ctx: Context, node: Node, request: PollRequest, *, first: bool) -> PollReply:
    """Record a node's sign of life and return what it has to begin and to stop, and what holds for it.

    ``first`` is False when the same poll asks again after a wake-up: then what it was given is not taken for lost.

    Raises:
        Fenced: the node has obeyed a newer catalogue generation than ours.
        Invalid: the node runs another platform than its site has.
    """
    from farshore.control.scheduling import dials, rates

    now = time.time()
    generation = settings.generation(tx)
    if request.generation > generation:
        raise Fenced(
            f"node {node.name!r} obeys catalogue generation {request.generation}; this control plane has {generation}",
            code="generation-fenced",
            hint="Another control plane took over. Stop this one.",
        )
    _check_platform(tx, node, request)
    if _differs(node, request) or node.last_seen is None or now - node.last_seen > SILENT_AFTER_S:
        tx.changed("node", node.name)
        tx.changed("site", node.site)
        node.last_seen = now
    elif now - node.last_seen > SEEN_EVERY_S:
        node.last_seen = now
    restarted = node.incarnation != request.incarnation
    node.incarnation, node.version, node.platform = request.incarnation, request.version, request.platform
    node.data_port, node.generation = request.data_port, request.generation

    running = set(request.running)
    _keep_drafts(tx, node.name, request)
    held = _held(tx, node.name)
    kit = request.kit.model_dump(mode="json") if request.kit is not None else None
    if node.kit != kit:
        node.kit = kit
    give: list[Task] = []
    wanted: set[str] = set()
    stop: set[str] = set()
    for task in held:
        if task.task_id in running:
            task.incarnation = request.incarnation
        elif task.incarnation != request.incarnation:
            if task.cancel:
                _end(tx, task, "cancelled")
                continue
            task.term += 1
            task.incarnation = request.incarnation
            give.append(task)
        elif first:
            give.append(task)  # the answer that gave it was lost, or is on its way
        (stop if task.cancel else wanted).add(task.task_id)
    room = MOST_HELD - len(held)
    if room > 0:
        most = MOST_HELD if request.recoveries is None else request.recoveries
        recoveries = sum(task.role == quotas.ROLE for task in held)
        give.extend(quotas.choose(tx, node, min(room, most - recoveries), now))
        open_to_it = (
            Task.site == node.site,
            Task.state == "queued",
            Task.not_before <= now,
            or_(Task.pinned_node.is_(None), Task.pinned_node == node.name),
            or_(Task.role.is_(None), Task.role.in_([role for role in node.roles if role != quotas.ROLE])),
        )
        # Most polls find none.
        kinds = set(tx.scalars(select(Task.kind).where(*open_to_it).distinct()))
        queued = select(Task).where(*open_to_it).order_by(Task.created_at, Task.task_id)
        if "replicate" in kinds:
            copies = min(room, _part(tx, node, now) - sum(task.kind == "replicate" for task in held))
            give.extend(tx.scalars(queued.where(Task.kind == "replicate").limit(max(copies, 0))))
        if kinds - {"replicate"}:
            give.extend(tx.scalars(queued.where(Task.kind != "replicate").limit(room)))
    fencing = _fencing(tx, node.site)
    if fencing:
        give = [task for task in give if task.task_id in fencing]
    wire = []
    for task in give:
        delivered = _deliver(tx, ctx, task, node, now)
        if delivered is not None:
            wire.append(delivered)
    tx.flush()
    limits = rates.renew(tx, node, request, restarted=restarted, since=ctx.started.wall_s)
    links = dials.orders(tx, node)
    node.standing = rates.standing(limits, links)
    return PollReply(
        tasks=tuple(wire),
        cancel=tuple(sorted(stop | running - wanted)),
        generation=generation,
        grant_key=ctx.grant_key_pem,
        limits=limits,
        links=links,
        standing=node.standing,
    )


def more(tx: Transaction, ctx: Context, node: Node, room: Room) -> tuple[WireTask, ...]:
    """Return the next tasks of recoveries for a node that has just reported, so that it need not ask for them.

    It is given only what a poll would give it now. What is lost on its way is given again with the next poll.
    """
    if room.incarnation != node.incarnation or room.generation > settings.generation(tx) or _fencing(tx, node.site):
        return ()
    free = _free(tx, node.name, room.recoveries)
    now = time.time()
    given = (_deliver(tx, ctx, task, node, now) for task in quotas.choose(tx, node, free, now))
    return tuple(task for task in given if task is not None)


def _fencing(tx: Transaction, site: str) -> set[str | None]:
    """Return the tasks that fence old primaries at the site that nobody has tried to fence yet.

    Nothing else happens there before those attempts have ended.
    """
    return set(tx.scalars(_UNTRIED, {"site": site}))


def _free(session: Session, node: str, recoveries: int | None) -> int:
    """Return how many tasks of recoveries a node can take that works on ``recoveries`` at once (None: any number)."""
    held = list(session.scalars(_ROLES_HELD, {"node": node}))
    most = MOST_HELD if recoveries is None else recoveries
    return min(MOST_HELD - len(held), most - held.count(quotas.ROLE))


def _check_platform(tx: Transaction, node: Node, request: PollRequest) -> None:
    site = tx.get_one(Site, node.site)
    if request.platform != site.platform:
        raise Invalid(
            f"node {node.name!r} runs platform {request.platform!r}, but site {site.name!r} is of platform"
            f" {site.platform!r}",
            code="platform-mismatch",
            field="platform",
            hint="Correct platform.type in the node's file, or the site.",
        )


def has_room(session: Session, node: str, request: PollRequest) -> bool:
    """Say whether a node that polls could take another recovery task: most of a busy site have their hands full."""
    return _free(session, node, request.recoveries) > 0


def _part(tx: Transaction, node: Node, now: float) -> int:
    """Return how many of its site's replications a node may have: as many as each other that is online."""
    others = tx.scalars(select(Node).where(Node.site == node.site, Node.last_seen >= now - SILENT_AFTER_S))
    sharing = {node.name, *(other.name for other in others if _ROLE["replicate"] in other.roles)}
    if len(sharing) == 1:
        return MOST_HELD
    total = select(func.count()).where(
        Task.site == node.site, Task.kind == "replicate", Task.state.in_(OPEN), Task.not_before <= now
    )
    return ceil((tx.scalar(total) or 0) / len(sharing))


def _held(tx: Transaction, node: str) -> list[Task]:
    """Return what a node has at work. What is large of it is read where it is given again: each poll asks."""
    large = (Task.params, Task.result, Task.error, Task.stats, Task.progress)
    query = select(Task).where(Task.node == node, Task.state == "assigned")
    return list(tx.scalars(query.options(*(defer(column) for column in large))))


def _keep_drafts(tx: Transaction, node: str, request: PollRequest) -> None:
    """Keep what a node tells of the drafts of its tasks, for whoever has to take them over."""
    for cover in request.drafts:
        task = tx.get(Task, cover.task_id)
        if task is not None and task.node == node and task.state == "assigned":
            told = {"draft_key": cover.draft_key, "ranges": [list(pair) for pair in cover.ranges]}
            task.drafts = {**(task.drafts or {}), cover.disk_key: told}


def _differs(node: Node, request: PollRequest) -> bool:
    return (node.incarnation, node.version, node.platform) != (request.incarnation, request.version, request.platform)


def _deliver(tx: Transaction, ctx: Context, task: Task, node: Node, now: float) -> WireTask | None:
    """Give ``task`` to ``node``; None if it cannot begin yet."""
    params = task.params
    if task.kind == "replicate":
        from farshore.control.scheduling import sessions

        composed = sessions.compose(tx, ctx, task, node)
        if composed is None:
            return None
        params = composed
    if task.state == "queued":
        task.state, task.assigned_at = "assigned", now
        if task.run_id:
            tx.changed("run", task.run_id)
    task.node, task.incarnation = node.name, node.incarnation
    return WireTask(
        task_id=task.task_id,
        kind=task.kind,
        key=task.key,
        site=task.site,
        term=task.term,
        params=params,
    )


def progress(tx: Transaction, task_id: str, node: str, term: int, value: Progress) -> None:
    """Record how far a task is.

    Raises:
        NotFound, Fenced: as :func:`report`.
    """
    task = _owned(tx, task_id, node, term)
    if task.state == "assigned":
        task.progress = value.model_dump(mode="json")
        if task.run_id:
            tx.changed("run", task.run_id)
        elif task.plan:
            tx.changed("plan", task.plan)


def report(tx: Transaction, task_id: str, node: str, value: TaskReport, *, refills: bool = False) -> None:
    """Record a task's end. Again with the same term: nothing.

    ``refills``: the node takes :func:`more` in its place, so that there is no room for others' hands.

    Raises:
        NotFound: no such task.
        Fenced: somebody with a higher term has the task.
    """
    task = _owned(tx, task_id, node, value.term)
    if task.state in ENDED:
        return
    task.stats = value.stats.model_dump(mode="json") if value.stats else None
    if value.state == "failed":
        task.error = value.error or Permanent("the node gave no reason", code="node-failed").to_dict()
        _end(tx, task, "cancelled" if task.cancel else "failed", refills=refills)
        return
    try:
        task.result = RESULTS[task.kind].model_validate(value.result or {}).model_dump(mode="json")
    except ValidationError as error:
        task.error = Permanent(
            f"node {node!r} answered {task.kind} in a form that this version does not know",
            code="node-result-invalid",
            hint="Bring node and control plane to the same version.",
            problems=[f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5]],
        ).to_dict()
        _end(tx, task, "failed", refills=refills)
        return
    if task.kind == "inventory":
        inventory.apply(tx, task.site, Inventory.model_validate(task.result))
        task.result = None  # it is in the records of the site now
    if task.kind == "machine-untrack":
        from farshore.control.scheduling import untracks

        untracks.tell(tx, task, node)
    if task.kind == "catalog-scan":
        from farshore.control import catalog

        catalog.reconcile(tx, task.site, task.result or {})
        task.result = None
    _end(tx, task, "succeeded", refills=refills)


def _owned(tx: Transaction, task_id: str, node: str, term: int) -> Task:
    task = tx.get(Task, task_id)
    if task is None:
        raise NotFound(f"there is no task {task_id!r}", code="task-unknown", field="task_id")
    if term != task.term or task.node != node:
        raise Fenced(
            f"task {task_id} has term {task.term} and belongs to node {task.node!r}; term {term} of {node!r} is over",
            term=task.term,
        )
    return task


def _end(tx: Transaction, task: Task, state: str, *, refills: bool = False) -> None:
    task.state, task.ended_at = state, time.time()
    if task.run_id:
        # Without loading it: what a run knows of a large plan is large.
        tx.execute(update(Run).where(Run.run_id == task.run_id).values(pokes=Run.pokes + 1))
        tx.changed("run", task.run_id)
    # Room at the provider is for all nodes, that at the node for itself where it takes more.
    frees = task.role == quotas.ROLE and (not refills or task.kind in quotas.LIMITED)
    if frees and quotas.waits(tx, task.site, task.ended_at):
        tx.offer(task.site)
    tx.changed("task", task.task_id)  # wakes the scheduler


def take_back(tx: Transaction, since: float) -> None:
    """Give tasks of silent nodes to the other nodes of their sites, with a higher term.

    ``since`` is when this process began: silence while nobody listened proves nothing. A task stays where it is while
    no other node could take it: its node may still be at work and only cut off.
    """
    now = time.time()
    if now - since < SILENT_AFTER_S:
        return
    nodes = tx.scalars(select(Node)).all()
    alive = {node.name for node in nodes if node.last_seen is not None and now - node.last_seen <= SILENT_AFTER_S}
    for task in tx.scalars(select(Task).where(Task.state == "assigned", Task.node.not_in(alive))):
        if task.cancel:
            _end(tx, task, "cancelled")
            continue
        if any(
            node.name in alive
            and node.site == task.site
            and (task.role is None or task.role in node.roles)
            and task.pinned_node in {None, node.name}
            for node in nodes
        ):
            task.term += 1
            task.state, task.node, task.incarnation = "queued", None, None
            tx.wake(task.site)


def failure(task: Task) -> FarshoreError:
    """Return the error of a task that failed or was cancelled."""
    from farshore import errors

    if task.error:
        return errors.from_dict(task.error)
    return Conflict(f"{task.kind} was cancelled", code="cancelled")


def of_run(session: Session, run_id: str, step: str) -> Sequence[Task]:
    """Return the tasks of one step of a run."""
    return session.scalars(select(Task).where(Task.run_id == run_id, Task.step == step)).all()


def result_of(task: Task) -> Any:
    """Return a succeeded task's result as the model of its kind."""
    return RESULTS[task.kind].model_validate(task.result or {})
