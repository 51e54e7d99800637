"""A retirement: old primaries are deleted with their disks, once nobody can want them back.

By the order of a person, or by itself where the plan says ``retire: {old_primaries: delete}``. Only after the change of
sites was committed, never a machine that a first copy begins with, and never by itself one that may hold what nobody
else has. The node looks again: what is not off, or fenced in a later epoch, stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import audit, tasks
from farshore.control.nearby import suggestion
from farshore.control.planning import definitions
from farshore.control.runs import ledger, story
from farshore.control.runs.story import Phase, Scene, Story
from farshore.control.store.database import Transaction
from farshore.control.store.records import Fence, Machine, OldPrimary, Plan, PlanMachine, Run, Task
from farshore.control.views.places import site_state
from farshore.control.views.protection import members, record
from farshore.errors import Conflict, FarshoreError, Invalid, NotFound, Permanent, Unavailable
from farshore.model.base import Model, Name
from farshore.model.task import Empty, MachineParams, RetireResult
from farshore.units import format_duration, format_size

KIND: Final = "retire"
#: Who ordered what nobody did: the plan says it.
ACTOR: Final = "control plane"
#: How long after one that failed the next one by itself may follow.
REST_S: Final = 3600.0
_COPYING: Final = frozenset({"seeding", "reprotecting"})


class RetireWish(Model):
    """Delete the plan's old primaries. ``machines``, ``site``: only those of these machines, or that rest there.

    ``accept_divergence``: also those that may hold what was written after a failover was forced, or before one was
    rolled back, and is nowhere else.
    """

    machines: tuple[Name, ...] | None = None
    site: Name | None = None
    accept_divergence: bool = False


@dataclass(frozen=True, slots=True)
class _Old:
    """One old primary, and why it has to stay, if it has."""

    row: OldPrimary
    known: Machine | None
    why: FarshoreError | None

    def told(self) -> dict[str, Any]:
        facts = self.known.facts if self.known is not None else {}
        return {
            "machine": self.row.machine,
            "site": self.row.site,
            "machine_id": self.row.machine_id,
            "name": facts.get("name", self.row.machine),
            "until_epoch": self.row.epoch,
            "divergent": self.row.divergent,
            "disk_bytes": sum(disk["size_bytes"] for disk in facts.get("disks", ())),
        }


def preview_of(session: Session, name: str, wish: RetireWish) -> dict[str, Any]:
    """Return what a retirement would delete. Errors: as :func:`request`."""
    plan = record(session, name)
    going = _admit(session, plan, wish)
    stay = [one.told() for one in _all(session, plan) if one.row not in [old.row for old in going]]
    told = [one.told() for one in going]
    return {
        "changed": bool(going),
        "before": {"old_primaries": [*told, *stay]},
        "after": {"old_primaries": stay},
        "warnings": [
            f"machine {one['name']!r} at site {one['site']!r} is deleted for good,"
            f" with {format_size(one['disk_bytes'])} of disks"
            + (" that may hold what is nowhere else" if one["divergent"] else "")
            for one in told
        ],
    }


def request(tx: Transaction, name: str, wish: RetireWish, actor: str) -> Run | None:
    """Insert a retirement; None if there is no old primary to delete.

    Raises:
        NotFound, Invalid, Conflict, Unavailable: why it cannot run; nothing is changed then.
    """
    plan = record(tx, name)
    going = _admit(tx, plan, wish)
    return _insert(tx, plan, going, actor, wish.model_dump(mode="json")) if going else None


def due(tx: Transaction, plan: Plan) -> Run | None:
    """Insert a retirement of what the plan wants deleted by now; None where nothing is."""
    policy = definitions.of_plan(plan).retire
    if policy.old_primaries != "delete" or ledger.open_run(tx, plan.name, (*ledger.RECOVERIES, KIND)):
        return None
    now = time.time()
    last = tx.scalars(
        select(Run).where(Run.plan == plan.name, Run.kind == KIND).order_by(Run.created_at.desc()).limit(1)
    ).first()
    if last is not None and last.state != "succeeded" and now - (last.ended_at or now) < REST_S:
        return None
    going = [
        one
        for one in _all(tx, plan)
        if one.why is None
        and not one.row.divergent
        and one.row.committed_at is not None
        and now - one.row.committed_at >= policy.after
        and site_state(tx, one.row.site) == "online"
    ]
    return _insert(tx, plan, going, ACTOR, RetireWish().model_dump(mode="json")) if going else None


def _insert(tx: Transaction, plan: Plan, going: list[_Old], actor: str, params: dict[str, Any]) -> Run:
    run = ledger.create(tx, KIND, plan, actor, params, workflow=True)
    ledger.note(tx, run, definition=plan.definition, old_primaries=[one.told() for one in going])
    ledger.add_machines(tx, run, dict.fromkeys(one.row.machine for one in going))
    return run


def _admit(session: Session, plan: Plan, wish: RetireWish) -> list[_Old]:
    """Return the old primaries that a wish is about, if all of them may go."""
    running = ledger.open_run(session, plan.name, (*ledger.RECOVERIES, KIND))
    if running is not None:
        raise Conflict(
            f"{running.kind} {running.run_id} of plan {plan.name!r} has not ended",
            code=f"{running.kind}-running",
            hint=f"Watch it: `farshore run watch {running.run_id}`.",
            run=running.run_id,
        )
    names = [row.name for row in members(session, plan.name)]
    for machine in wish.machines or ():
        if machine not in names:
            raise Invalid(
                f"plan {plan.name!r} has no machine {machine!r}",
                code="machine-unknown",
                field="machines",
                hint=suggestion(machine, names, " in the plan"),
            )
    going = [
        one
        for one in _all(session, plan)
        if (wish.machines is None or one.row.machine in wish.machines) and wish.site in {None, one.row.site}
    ]
    for one in going:
        if one.why is not None:
            raise one.why
        if one.row.divergent and not wish.accept_divergence:
            raise Conflict(
                f"old primary {one.told()['name']!r} at site {one.row.site!r} may hold what is nowhere else",
                code="divergent",
                field="accept_divergence",
                hint="Look into it first. If nothing of it is wanted, say so:"
                f" `farshore retire {plan.name} --accept-divergence`.",
                machine=one.row.machine,
            )
    for site in sorted({one.row.site for one in going}):
        state = site_state(session, site)
        if state != "online":
            raise Unavailable(
                f"no node of site {site!r} answers",
                code=f"site-{state}",
                field="site",
                hint="Start it: `farshore node start --config FILE`.",
                site=site,
            )
    return going


def _all(session: Session, plan: Plan) -> list[_Old]:
    """Return the old primaries of a plan that are still there, as far as is known."""
    found: dict[tuple[str, str], _Old] = {}
    rows = {row.name: row for row in members(session, plan.name)}
    for old in session.scalars(
        select(OldPrimary).where(OldPrimary.plan == plan.name).order_by(OldPrimary.machine, OldPrimary.epoch)
    ):
        known = session.get(Machine, (old.site, old.machine_id))
        if known is None or known.gone_at is None:
            why = _why_not(session, plan, old, known, rows.get(old.machine))
            found[old.site, old.machine_id] = _Old(old, known, why)
    return list(found.values())


def _why_not(
    session: Session, plan: Plan, old: OldPrimary, known: Machine | None, row: PlanMachine | None
) -> FarshoreError | None:
    """Return why an old primary has to stay for now, None where it may go."""
    name = str(known.facts["name"]) if known is not None else old.machine
    which = f"old primary {name!r} at site {old.site!r}"
    primary = select(PlanMachine.plan).where(
        ((PlanMachine.machine_id == old.machine_id) & (PlanMachine.site == old.site) & ~PlanMachine.raised)
        | ((PlanMachine.target_machine_id == old.machine_id) & (PlanMachine.site != old.site))  # ids are a site's own
    )
    holder = session.scalars(primary.limit(1)).first()
    if holder is not None:
        return Conflict(f"{which} is a machine of plan {holder!r} now", code="machine-in-use", plan=holder)
    if row is not None and not row.committed:
        return Conflict(
            f"{which} is what a rollback of plan {plan.name!r} leads back to",
            code="not-committed",
            hint=f"Decide first: `farshore commit {plan.name}` or `farshore rollback {plan.name}`.",
        )
    if row is not None and _rests_for(row, old) and row.state in _COPYING:
        return Conflict(
            f"the first copy to site {old.site!r} begins with the disks of {which}",
            code="seed-in-use",
            hint=f"Wait until plan {plan.name!r} is protected.",
        )
    fence = session.get(Fence, (old.site, old.machine_id))
    stale = (
        row is not None and (row.site, row.machine_id) == (old.site, old.machine_id) and row.source_state != "fenced"
    )
    if stale or (fence is not None and fence.done_at is None):
        return Conflict(
            f"{which} was not seen fenced and off yet",
            code="old-primary-not-fenced",
            hint="It is fenced at first contact. Wait for that, or look at its site.",
        )
    return None


def _rests_for(row: PlanMachine, old: OldPrimary) -> bool:
    """Say whether a machine is copied to where this old primary of it rests."""
    return row.old_machine_id == old.machine_id and row.site != old.site


def _delete(scene: Scene) -> bool:
    tx, run, plan = scene.tx, scene.run, scene.plan
    through, failed = True, []
    for told in run.facts["old_primaries"]:
        step, machine = f"delete (until epoch {told['until_epoch']})", told["machine"]
        old = tx.get(OldPrimary, (plan.name, machine, told["until_epoch"]))
        known = ledger.step(tx, run.run_id, step, machine)
        if old is None:
            continue  # done
        if known is None:
            why = _why_not(
                tx, plan, old, tx.get(Machine, (old.site, old.machine_id)), tx.get(PlanMachine, (plan.name, machine))
            )
            if why is not None:  # something has begun since the order
                ledger.end(tx, ledger.begin(tx, run.run_id, step, machine), "failed", error=why)
                failed.append(machine)
                continue
        if known is not None and known.state == "failed":
            failed.append(machine)
            continue
        params = MachineParams(machine_id=old.machine_id, epoch=plan.epoch)
        task = story.order(scene, step, "machine-retire", old.site, params, machine=machine)
        if task is None:
            through = False
        elif not _deleted(scene, task, old, step):
            failed.append(machine)
    if through:
        for one in ledger.machines(tx, run.run_id):
            one.state = "failed" if one.name in failed else "succeeded"
        if failed:
            raise Permanent(
                f"an old primary of {', '.join(dict.fromkeys(failed))} was not deleted",
                code="not-retired",
                hint="The steps say why.",
            )
    return through


def _deleted(scene: Scene, task: Task, old: OldPrimary, step: str) -> bool:
    """Take over what a node has deleted."""
    tx, run, plan = scene.tx, scene.run, scene.plan
    result = RetireResult(machine_id=old.machine_id)
    row = ledger.begin(tx, run.run_id, step, old.machine)
    if task.state == "succeeded":
        result = RetireResult.model_validate(task.result)
        row.detail = "; ".join(("removed " + ", ".join(result.removed), *(f"kept {one}" for one in result.kept)))
        row.evidence = result.model_dump(mode="json")
    elif isinstance(tasks.failure(task), NotFound):
        ledger.end(tx, row, "succeeded", "it is not there any more")
    else:
        return False
    member = tx.get(PlanMachine, (plan.name, old.machine))
    if member is not None and _rests_for(member, old):
        member.old_machine_id = None
    audit.record(
        tx,
        run.actor,
        "delete-old-primary",
        plan.name,
        run=run.run_id,
        machine=old.machine,
        site=old.site,
        machine_id=old.machine_id,
        divergent=old.divergent,
        removed=list(result.removed),
        kept=list(result.kept),
    )
    for other in tx.scalars(select(OldPrimary).where(OldPrimary.plan == plan.name, OldPrimary.site == old.site)):
        if other.machine_id == old.machine_id:
            tx.delete(other)
    tx.flush()
    tx.changed("plan", plan.name)
    return True


def _finish(scene: Scene) -> bool:
    if not story.quiet(scene):
        return False
    story.conclude(scene)
    for site in {told["site"] for told in scene.run.facts["old_primaries"]}:
        tasks.ensure(scene.tx, f"inventory/{site}/{scene.run.run_id}", "inventory", site, Empty())
    return True


STORY: Final[Story] = (
    Phase("delete", _delete, "finish", cancellable=True),
    Phase("finish", _finish),
)


def outlook(plan: Plan, names: Iterable[str]) -> list[str]:
    """Return what a plan says about the machines that a change of sites leaves behind."""
    policy = definitions.of_plan(plan).retire
    if policy.old_primaries == "keep":
        return []
    listed = ", ".join(names)
    return [f"what {listed} leaves behind is deleted {format_duration(policy.after)} after the commit"]
