"""A scrub: a checkpoint is read back at its site and compared with its manifest.

The checkpoint is leased meanwhile. What the node finds is kept beside the manifest and taken over here; a scrub that
has found damage has failed, and its evidence says where.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import integrity, tasks
from farshore.control.runs import ledger, story
from farshore.control.runs.story import Phase, Scene, Story
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, Run, Task
from farshore.control.views.places import site_state
from farshore.control.views.points import no_checkpoint
from farshore.control.views.protection import members, record
from farshore.errors import Conflict, Corruption, Unavailable
from farshore.model.task import ScrubParams, ScrubResult, SweepParams

#: Damages that the run shows; all are in the checkpoint's addendum.
_SHOWN: Final = 20
_STEP: Final = "read back"


def request(tx: Transaction, checkpoint_id: str, actor: str) -> tuple[Run, bool]:
    """Order a scrub; returns its run and whether it is a new one: one that has not ended is joined.

    Raises:
        NotFound: there is no such checkpoint.
        Conflict: it is being dropped.
        Unavailable: nobody is at its site.
    """
    row = tx.get(Checkpoint, checkpoint_id)
    if row is None:
        raise no_checkpoint(tx, checkpoint_id)
    if row.state != "published":
        raise Conflict(f"checkpoint {checkpoint_id} was dropped", code="checkpoint-dropped", field="checkpoint_id")
    running = _open(tx, checkpoint_id)
    if running is not None:
        return running, False
    state = site_state(tx, row.target_site)
    if state != "online":
        raise Unavailable(
            f"no node of site {row.target_site!r} answers",
            code=f"site-{state}",
            hint="Start it: `farshore node start --config FILE`.",
            site=row.target_site,
        )
    plan = record(tx, row.plan)
    run = ledger.create(tx, "scrub", plan, actor, {"checkpoint_id": checkpoint_id}, workflow=True)
    ledger.note(tx, run, definition=plan.definition, site=row.target_site)
    called = {member.machine_id: member.name for member in members(tx, plan.name)}
    names = [called.get(item["machine_id"], item["name"]) for item in row.manifest["machines"]]
    ledger.add_machines(tx, run, names)
    for machine in ledger.machines(tx, run.run_id):
        machine.checkpoint_id = checkpoint_id
    ledger.lease(tx, run.run_id, checkpoint_id)
    return run, True


def _open(session: Session, checkpoint_id: str) -> Run | None:
    runs = session.scalars(select(Run).where(Run.kind == "scrub", Run.state.in_(ledger.OPEN)))
    return next((run for run in runs if run.params["checkpoint_id"] == checkpoint_id), None)


def _read_back(scene: Scene) -> bool:
    tx, run = scene.tx, scene.run
    row = tx.get_one(Checkpoint, run.params["checkpoint_id"])
    params = ScrubParams(group_id=row.group_id, checkpoint_id=row.checkpoint_id, tag=run.run_id)
    task = story.order(scene, _STEP, "scrub", row.target_site, params)
    if task is None:
        return False
    if task.state != "succeeded":
        raise tasks.failure(task)
    found = ScrubResult.model_validate(task.result).addenda
    integrity.learn(tx, found)
    own = found[0]
    ledger.note(
        tx,
        run,
        verdict=own.verdict,
        reason=own.reason,
        read_bytes=own.read_bytes,
        damages=[damage.model_dump(mode="json") for damage in own.damages[:_SHOWN]],
        damages_more=own.more + max(0, len(own.damages) - _SHOWN),
        shared_with=[one.checkpoint_id for one in found if one is not own],
    )
    story.detail(scene, _STEP, f"{own.verdict}: {own.reason}")
    if own.verdict == "suspect":
        raise Corruption(
            f"checkpoint {row.checkpoint_id} is damaged: {own.reason}",
            code="checkpoint-suspect",
            hint="It is not offered any more. The next cycle repairs the copy if it grows on this checkpoint.",
            checkpoint=row.checkpoint_id,
        )
    return True


def _halt(scene: Scene) -> bool:
    return story.quiet(scene)


def _let_go(scene: Scene) -> bool:
    """Release the points, which a node that died in the middle has left leased."""
    params = SweepParams(tag=scene.run.run_id)
    task: Task | None = story.order(scene, "let go", "sweep", str(scene.run.facts["site"]), params, patient=True)
    if task is not None and task.state != "succeeded":
        raise tasks.failure(task)
    return task is not None


def _finish(scene: Scene) -> bool:
    tx, run = scene.tx, scene.run
    error = story.error_of(run)
    for machine in ledger.machines(tx, run.run_id):
        machine.state = "failed" if error else "succeeded"
    story.conclude(scene)
    return True


STORY: Final[Story] = (
    Phase("read", _read_back, "halt", cancellable=True),
    Phase("halt", _halt),
    Phase("let-go", _let_go),
    Phase("finish", _finish),
)
