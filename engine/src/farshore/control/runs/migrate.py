"""A migration: a planned failover for good. The source is retired, and nothing is replicated back.

What is retired stays where it is: fenced, its disks as they were, without a trace of our tracking.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.orm import Session

from farshore.control import audit
from farshore.control.planning import protect
from farshore.control.planning.apply import untrack
from farshore.control.runs import boot, epoch, failover, ledger, story, subset
from farshore.control.runs.failover import FailoverWish
from farshore.control.runs.story import Phase, Scene, Story
from farshore.control.store.database import Transaction
from farshore.control.store.records import Run
from farshore.control.views.protection import members, record
from farshore.errors import Conflict
from farshore.model.base import Model, Name


class MigrateWish(Model):
    """Run at the plan's target site from now on. ``to_site``: to be sure that it is the one that is meant.

    ``groups``: only the machines of these boot groups; the others stay protected, to follow later; default: all.
    """

    to_site: Name | None = None
    groups: subset.Groups = None


def _as_failover(session: Session, name: str, wish: MigrateWish) -> FailoverWish:
    target = str(record(session, name).definition["target_site"])
    return FailoverWish(to_site=wish.to_site or target, commit="auto", groups=wish.groups)


def preview_of(session: Session, name: str, wish: MigrateWish) -> dict[str, Any]:
    """Return what a migration would do. Errors: as :func:`request`."""
    meant = _as_failover(session, name, wish)
    _refuse_else(session, name, meant)
    return failover.preview_of(session, name, meant, "migrate")


def request(tx: Transaction, name: str, wish: MigrateWish, actor: str) -> Run | None:
    """Insert a migration; None if the plan was migrated already.

    Raises:
        NotFound, Invalid, Conflict, Unavailable, Permanent: why it cannot run; nothing is changed then.
    """
    meant = _as_failover(tx, name, wish)
    _refuse_else(tx, name, meant)
    return failover.request(tx, name, meant, actor, "migrate")


def _refuse_else(session: Session, name: str, meant: FailoverWish) -> None:
    """Refuse what only looks like a migration that is done, or is none."""
    plan = record(session, name)
    if meant.to_site == plan.definition["source_site"]:
        raise Conflict(
            f"plan {name!r} migrates to {plan.definition['target_site']!r}; {meant.to_site!r} is where it comes from",
            code="not-a-migration",
            field="to_site",
            hint=f"To go back after a failover: `farshore failover {name} --to {meant.to_site}`.",
        )
    if plan.active_site == meant.to_site and plan.state not in {"migrated", "failing-over"}:
        raise Conflict(
            f"plan {name!r} runs at {meant.to_site!r} by a failover, from which there is a way back",
            code="plan-failed-over",
            hint=f"Fail back and migrate, or end its protection: `farshore plan unprotect {name}`.",
        )


def _retire(scene: Scene) -> bool:
    """Have every trace of ours taken from the machines at the source, which stay fenced; end their protection."""
    tx, plan = scene.tx, scene.plan
    for row in epoch.rows(tx, scene.run):
        if row.state == "failed-over":
            untrack(tx, plan, row)
            row.activity = "inactive"
    ledger.note(tx, scene.run, retired=True)
    return True


def _finish(scene: Scene) -> bool:
    failover.finish(scene)
    if scene.run.facts.get("retired") and story.error_of(scene.run) is None:
        run, plan = scene.run, scene.plan
        if all(row.activity == "inactive" for row in members(scene.tx, plan.name)):
            plan.state = "migrated"
        protect.settle(scene.tx, plan)
        ledger.done(scene.tx, run.run_id, "retire", f"fenced and kept at {run.from_site}, not tracked any more")
        audit.record(scene.tx, run.actor, "migrated", plan.name, run=run.run_id, to_site=scene.site())
    return True


def _bring_up(scene: Scene) -> bool:
    through = failover.bring_up(scene)
    if through and boot.end_state(scene) != "succeeded":
        raise Conflict(
            "not all machines came up at the target: the source is not retired",
            code="migration-partial",
            hint=f"Go on with it: `farshore run retry {scene.run.run_id}`.",
        )
    return through


STORY: Final[Story] = (
    *failover.BEFORE_EPOCH,
    Phase("create", failover.create, "finish"),
    Phase("boot", _bring_up, "finish"),
    Phase("retire", _retire, "finish", atomic=True),
    Phase("finish", _finish),
    *failover.WAY_BACK,
)
