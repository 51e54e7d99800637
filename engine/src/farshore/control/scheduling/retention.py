"""Takes away the checkpoints that no rule keeps: whole ones only. The rules: ``farshore.checkpoints.retention``."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import keeping, tasks
from farshore.control.planning.protect import drop
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Cycle, Group, Plan, Task
from farshore.errors import Conflict, FarshoreError
from farshore.model.task import DropCheckpointParams

log = logging.getLogger(__name__)

#: Tries of one removal before its group's cycles go on between two of them.
HOLDS_CYCLES_FOR: Final = 5
#: Pause before the second try; it doubles up to the longest.
PAUSE_S: Final = 10.0
LONGEST_PAUSE_S: Final = 900.0
#: ``Conflict`` codes of a node that has not begun to remove, because something at the site uses a point.
_NOT_BEGUN: Final = frozenset({"in-use", "leased", "image-in-use"})


def thin(tx: Transaction, plan: Plan, group_id: str) -> None:
    """Order the removal of what no rule keeps in a group. Called between two cycles of it."""
    if dropping(tx, group_id):
        return
    found = keeping.decision(tx, plan, group_id)
    left = [keeping.decision(tx, plan, group_id, site=site) for site in keeping.sites_left(tx, plan, group_id)]
    for verdict in (verdict for one in (found, *left) for verdict in one.verdicts):
        if not verdict.stays:
            log.info("checkpoint %s of %s goes: %s", verdict.checkpoint_id, group_id, "; ".join(verdict.reasons))
            drop(tx, tx.get_one(Checkpoint, verdict.checkpoint_id))
    group = tx.get(Group, group_id)
    if group is not None and group.crowded != found.crowded:
        group.crowded = found.crowded
        tx.changed("plan", plan.name)
    if found.crowded:
        log.warning("group %s of plan %s has reached max_chain; nothing of it may go", group_id, plan.name)


def thin_all(tx: Transaction) -> None:
    """Thin the groups whose points grow old without a cycle that would end; called now and then."""
    for plan in tx.scalars(select(Plan)):
        if keeping.rules_of(plan).max_age is None:
            continue
        for group_id in keeping.groups_of(tx, plan.name):
            thin(tx, plan, group_id)


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
