"""Which checkpoints of a group go: whole ones only, never the newest, a pinned one or one in use."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import tasks
from farshore.control.planning.protect import drop
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Lease, Plan, Task
from farshore.errors import Conflict
from farshore.model.plan import Plan as Definition
from farshore.model.task import DropCheckpointParams

#: Tries of one removal, and what the pause between two of them grows by.
MOST_TRIES: Final = 5
PAUSE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Kept:
    """What retention looks at of one checkpoint."""

    checkpoint_id: str
    pinned: bool = False
    in_use: bool = False


def surplus(points: Sequence[Kept], count: int) -> list[str]:
    """Return which of a group's ``points`` (oldest first) go so that ``count`` remain, oldest first.

    Pinned ones are kept beside the count. The point after one that goes takes over what it lacks of it, so a point
    goes only if its successor is not in use either.
    """
    counted = [point for point in points if not point.pinned]
    candidates = {point.checkpoint_id for point in counted[: max(0, len(counted) - count)]}
    gone = []
    for point, successor in pairwise(points):
        if point.checkpoint_id in candidates and not point.in_use and not successor.in_use:
            gone.append(point.checkpoint_id)
    return gone


def thin(tx: Transaction, plan: Plan, group_id: str) -> None:
    """Order the removal of what is too much in a group. Called between two cycles of it."""
    if dropping(tx, group_id):
        return
    count = Definition.model_validate(plan.definition).retention.count
    rows = tx.scalars(
        select(Checkpoint)
        .where(Checkpoint.group_id == group_id, Checkpoint.state == "published")
        .order_by(Checkpoint.epoch, Checkpoint.sequence)
    ).all()
    leased = set(tx.scalars(select(Lease.checkpoint_id)))
    points = [Kept(row.checkpoint_id, row.pinned, row.checkpoint_id in leased) for row in rows]
    for checkpoint_id in surplus(points, count):
        drop(tx, tx.get_one(Checkpoint, checkpoint_id))


def dropping(session: Session, group_id: str) -> bool:
    """Say whether a point of the group is being removed; no cycle grows on its chain meanwhile."""
    return (
        session.scalars(
            select(Checkpoint.checkpoint_id).where(Checkpoint.group_id == group_id, Checkpoint.state == "dropping")
        ).first()
        is not None
    )


def remove(tx: Transaction) -> None:
    """Order the removal of dropped checkpoints between two cycles of their groups, and take over how it ended.

    A node tombstones the manifest first, then drops the points; it can be asked again. ``Conflict`` means that it has
    not begun, because something at the site uses a point: then the checkpoint is offered again.
    """
    for row in tx.scalars(select(Checkpoint).where(Checkpoint.state == "dropping").order_by(Checkpoint.sequence)):
        orders = tx.scalars(select(Task).where(Task.key.startswith(f"drop/{row.checkpoint_id}/"))).all()
        last = max(orders, key=lambda task: task.created_at, default=None)
        if last is not None and last.state not in tasks.ENDED:
            continue
        if last is not None and last.state == "succeeded":
            row.state = "tombstoned"
        elif last is not None and (isinstance(tasks.failure(last), Conflict) or len(orders) >= MOST_TRIES):
            row.state = "published"
        else:
            at_work = select(Cycle.cycle_id).where(
                Cycle.group_id == row.group_id, Cycle.ended_at.is_(None), Cycle.state != "waiting"
            )
            if tx.scalars(at_work).first() is not None:
                continue
            task = tasks.ensure(
                tx,
                f"drop/{row.checkpoint_id}/{len(orders)}",
                "drop-checkpoint",
                row.target_site,
                DropCheckpointParams(group_id=row.group_id, checkpoint_id=row.checkpoint_id),
                plan=row.plan,
            )
            if orders:
                task.not_before = time.time() + PAUSE_S * len(orders)
            continue
        tx.changed("checkpoint", row.checkpoint_id)
        tx.changed("plan", row.plan)
