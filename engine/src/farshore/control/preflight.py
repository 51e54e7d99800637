"""Gathers what is known of a plan and its sites, for :mod:`farshore.recovery.readiness` to judge."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farshore.control import bundle, clock, inventory
from farshore.control.clock import iso
from farshore.control.direction import direction
from farshore.control.store.records import (
    Checkpoint,
    Fence,
    Node,
    Plan,
    PlanMachine,
    Run,
    Setting,
    SiteBundle,
)
from farshore.control.views.places import is_online
from farshore.control.views.points import newest
from farshore.control.views.protection import members, ordered, record, runs_at
from farshore.model.kit import Kit
from farshore.model.machine import ComputeLimits, MachineFacts
from farshore.model.plan import Plan as Definition
from farshore.model.plan import Purpose
from farshore.recovery import readiness
from farshore.recovery.readiness import Facts, MachineState, NodeState, Rehearsal, SiteState


def of(session: Session, name: str, *, key_is_here: bool = False) -> dict[str, Any]:
    """Return how ready a plan is for its recovery now; ``NotFound`` if there is no such plan."""
    found = readiness.evaluate(facts(session, name, key_is_here=key_is_here))
    return {
        "plan": name,
        "at": iso(time.time()),
        "ready": found.ready,
        "score": found.score,
        "findings": [finding.model_dump() for finding in found.findings],
    }


def facts(session: Session, name: str, *, key_is_here: bool = False) -> Facts:
    """Return what is known of a plan."""
    plan = record(session, name)
    definition = Definition.model_validate(plan.definition)
    source, target = direction(plan)
    purpose: Purpose = "failback" if target == definition.source_site else "failover"
    drills = select(Run).where(Run.plan == name, Run.kind == "drill", Run.ended_at.is_not(None))
    last = session.scalars(drills.order_by(Run.ended_at.desc()).limit(1)).first()
    good = session.scalar(
        select(func.max(Run.ended_at)).where(Run.plan == name, Run.kind == "drill", Run.state == "succeeded")
    )
    now = time.time()
    rows = members(session, name)
    ours = {str(row.machine_id) for row in rows} | {str(row.target_machine_id) for row in rows}
    return Facts(
        plan=definition,
        state=plan.state,
        purpose=purpose,
        source=_site(session, source, ours),
        target=_site(session, target, ours),
        # Of those that were moved alone nothing is to be said until the rest has followed.
        machines=tuple(_machine(session, plan, row) for row in rows if runs_at(plan, row) == plan.active_site),
        drill=Rehearsal(last.run_id, now - last.ended_at, last.state) if last and last.ended_at else None,
        drilled_s=now - good if good is not None else None,
        taken=_taken(session, plan, target),
        unfenced=tuple(session.scalars(select(Fence.machine).where(Fence.plan == name, Fence.done_at.is_(None)))),
        superseded=session.get(Setting, "superseded") is not None,
        recovery_key_is_here=key_is_here,
        control_host=clock.now().boot_id,
        control_machine=_around(session, source),
    )


def _around(session: Session, site: str) -> str:
    """Return the name of the machine at ``site`` that this control plane runs in, empty if it is none of them."""
    ours = _hardware_addresses()
    found = (
        machine.name for machine in inventory.machines(session, site) for nic in machine.nics if nic.mac.lower() in ours
    )
    return next(found, "")


def _hardware_addresses() -> frozenset[str]:
    """Return the addresses of this host's own interfaces, those of physical or virtual hardware alone."""
    cards = (card for card in Path("/sys/class/net").glob("*") if (card / "device").exists())
    return frozenset((card / "address").read_text(encoding="ascii").strip().lower() for card in cards)


def _site(session: Session, name: str, ours: set[str]) -> SiteState:
    found = inventory.at(session, name)
    now = time.time()
    nodes = session.scalars(select(Node).where(Node.site == name).order_by(Node.name)).all()
    return SiteState(
        name=name,
        nodes=tuple(
            NodeState(
                node.name,
                is_online(node),
                frozenset(node.roles),
                node.not_after - now if node.not_after is not None else None,
                Kit.model_validate(node.kit) if node.kit is not None else None,
            )
            for node in nodes
        ),
        networks=found.networks if found is not None else None,
        pool=found.pool if found is not None else None,
        findings=found.findings if found is not None else (),
        addresses={
            address: machine.name
            for machine in (found.machines if found is not None else ())
            if machine.machine_id not in ours and machine.power == "on"
            for nic in machine.nics
            for address in nic.addresses
        },
        bundle=_bundle(session, name),
        limits=found.limits if found is not None else ComputeLimits(),
        drill_probes=found.drill_probes if found is not None else None,
        quota=found.quota if found is not None else None,
    )


def _bundle(session: Session, site: str) -> Literal["current", "late", "missing"]:
    row = session.get(SiteBundle, site)
    if row is None or row.written_at is None:
        return "missing"
    # What was changed a moment ago is being written; what failed is told of.
    return (
        "late" if row.error is not None or (row.task_id is None and row.digest != bundle.digest(session)) else "current"
    )


def _machine(session: Session, plan: Plan, row: PlanMachine) -> MachineState:
    point = newest(session, plan, row.group_id)
    captured = _captured(point, row) if point is not None else None
    present = inventory.find(inventory.machines(session, row.site), row.machine_id or row.name)
    suspects = session.scalars(
        select(Checkpoint.checkpoint_id).where(
            Checkpoint.group_id == row.group_id, Checkpoint.state == "published", Checkpoint.integrity == "suspect"
        )
    ).all()
    return MachineState(
        name=row.name,
        active=row.activity != "inactive",
        rpo_s=round(clock.now().age_s(ordered(point)), 3) if point is not None and captured is not None else None,
        now=present[0] if present else None,
        captured=captured,
        copied=frozenset(
            str(disk["disk_key"]).rpartition("/")[2]
            for disk in (point.manifest["disks"] if point is not None else ())
            if str(disk["disk_key"]).startswith(f"{row.machine_id}/")
        ),
        seen=inventory.at(session, row.site) is not None,
        suspect_newest=point is not None and point.checkpoint_id in suspects,
        suspect_older=len([one for one in suspects if point is None or one != point.checkpoint_id]),
    )


def _captured(point: Checkpoint, row: PlanMachine) -> MachineFacts | None:
    for item in point.manifest["machines"]:
        if item["machine_id"] == row.machine_id:
            return MachineFacts.model_validate(item)
    return None


def _taken(session: Session, plan: Plan, target: str) -> dict[tuple[Purpose, str], str]:
    """Return the addresses that machines of other plans get at the same site."""
    found: dict[tuple[Purpose, str], str] = {}
    for other in session.scalars(select(Plan).where(Plan.name != plan.name)):
        if direction(other).target != target:
            continue
        for machine in Definition.model_validate(other.definition).machines:
            for _, purpose, address, _ in machine.recovery.chosen():
                if purpose != "drill":
                    found[purpose, str(address)] = f"{machine.name!r} of plan {other.name!r}"
    return found
