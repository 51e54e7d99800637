"""Which checkpoints of a group go: whole ones only, never the newest, the newest sound, a pinned or a used one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import tasks
from farshore.control.direction import direction
from farshore.control.planning.protect import drop
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Lease, Plan, Task
from farshore.errors import Conflict, FarshoreError
from farshore.model.plan import Plan as Definition
from farshore.model.task import DropCheckpointParams

#: Tries of one removal before its group's cycles go on between two of them.
HOLDS_CYCLES_FOR: Final = 5
#: Pause before the second try; it doubles up to the longest.
PAUSE_S: Final = 10.0
LONGEST_PAUSE_S: Final = 900.0
#: ``Conflict`` codes of a node that has not begun to remove, because something at the site uses a point.
_NOT_BEGUN: Final = frozenset({"in-use", "leased", "image-in-use"})


@dataclass(frozen=True, slots=True)
class Kept:
    """What retention looks at of one checkpoint."""

    checkpoint_id: str
    pinned: bool = False
    in_use: bool = False
    suspect: bool = False


def surplus(points: Sequence[Kept], count: int) -> list[str]:
    """Return which of a group's ``points`` (oldest first) go so that ``count`` remain, oldest first.

    Pinned ones are kept beside the count. The point after one that goes takes over what it lacks of it, so a point
    goes only if its successor is not in use either. The newest that is not suspect stays: there may be none after it.
    """
    sound = next((point.checkpoint_id for point in reversed(points) if not point.suspect), None)
    counted = [point for point in points if not point.pinned]
    candidates = {point.checkpoint_id for point in counted[: max(0, len(counted) - count)]}
    gone = []
    for point, successor in pairwise(points):
        if point.checkpoint_id in candidates - {sound} and not point.in_use and not successor.in_use:
            gone.append(point.checkpoint_id)
    return gone


def thin(tx: Transaction, plan: Plan, group_id: str) -> None:
    """Order the removal of what is too much in a group. Called between two cycles of it."""
    if dropping(tx, group_id):
        return
    count = Definition.model_validate(plan.definition).retention.count
    rows = tx.scalars(
        select(Checkpoint)
        .where(
            Checkpoint.group_id == group_id,
            Checkpoint.target_site == direction(plan).target,
            Checkpoint.state == "published",
        )
        .order_by(Checkpoint.epoch, Checkpoint.sequence)
    ).all()
    leased = set(tx.scalars(select(Lease.checkpoint_id)))
    points = [
        Kept(row.checkpoint_id, row.pinned, row.checkpoint_id in leased, row.integrity == "suspect") for row in rows
    ]
    for checkpoint_id in surplus(points, count):
        drop(tx, tx.get_one(Checkpoint, checkpoint_id))


def dropping(session: Session, group_id: str) -> bool:
    """Say whether a point of the group is being removed; no cycle grows on its chain meanwhile.

    A removal that keeps failing holds the group's cycles only while it is tried.
    """
    rows = session.scalars(select(Checkpoint).where(Checkpoint.group_id == group_id, Checkpoint.state == "dropping"))
    return any(_holds_cycles(session, row) for row in rows)


def _holds_cycles(session: Session, row: Checkpoint) -> bool:
    orders = _orders(session, row)
    return len(orders) < HOLDS_CYCLES_FOR or any(order.state not in tasks.ENDED for order in orders)


def _orders(session: Session, row: Checkpoint) -> Sequence[Task]:
    """Return the orders of the newest decision to drop a checkpoint, oldest first."""
    begin = f"drop/{row.checkpoint_id}/{row.drops}."
    return session.scalars(select(Task).where(Task.key.startswith(begin)).order_by(Task.created_at)).all()


def remove(tx: Transaction) -> None:
    """Order the removal of dropped checkpoints between two cycles of their groups, and take over how it ended.

    A node tombstones the manifest first, then drops the points; it can be asked again. Only where it says that it has
    not begun, because something at the site uses a point, is the checkpoint offered again. After any other failure
    nobody knows whether it is whole: it stays out of what is offered until a try succeeds.
    """
    now = time.time()
    for row in tx.scalars(select(Checkpoint).where(Checkpoint.state == "dropping").order_by(Checkpoint.sequence)):
        orders = _orders(tx, row)
        last = orders[-1] if orders else None
        if last is not None and last.state not in tasks.ENDED:
            continue
        if last is not None and last.state == "succeeded":
            row.state = "tombstoned"
        elif last is not None and _not_begun(tasks.failure(last)):
            row.state = "published"
        else:
            at_work = select(Cycle.cycle_id).where(
                Cycle.group_id == row.group_id, Cycle.ended_at.is_(None), Cycle.state != "waiting"
            )
            pause_s = min(PAUSE_S * 2.0 ** (len(orders) - 1), LONGEST_PAUSE_S) if last is not None else 0.0
            if tx.scalars(at_work).first() is not None or (last and now < (last.ended_at or now) + pause_s):
                continue
            tasks.ensure(
                tx,
                f"drop/{row.checkpoint_id}/{row.drops}.{len(orders)}",
                "drop-checkpoint",
                row.target_site,
                DropCheckpointParams(group_id=row.group_id, checkpoint_id=row.checkpoint_id),
                plan=row.plan,
            )
            continue
        tx.changed("checkpoint", row.checkpoint_id)
        tx.changed("plan", row.plan)


def _not_begun(error: FarshoreError) -> bool:
    return isinstance(error, Conflict) and error.code in _NOT_BEGUN
