"""Seals the evidence of finished runs, each tied to the one before."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import select

from farshore import __version__, durable
from farshore.control import views
from farshore.control.context import Context
from farshore.control.store import settings
from farshore.control.store.database import Transaction
from farshore.control.store.records import Checkpoint, PlanRevision, Report, Run, RunMachine, RunSight
from farshore.model.plan import Plan as Definition
from farshore.recovery import evidence
from farshore.recovery.pages import Sight


def seal(tx: Transaction, ctx: Context, run: Run) -> None:
    """Record the evidence of a run that has just ended, and put copies into the home's ``reports``. Again: nothing."""
    tx.flush()
    if tx.get(Report, run.run_id) is not None:
        return
    last = tx.scalars(select(Report).order_by(Report.position.desc()).limit(1)).first()
    # The first one here may follow one of the control plane before this one.
    head = settings.head(tx, "evidence") or {"number": 0, "digest": evidence.ORIGIN}
    body = _body(tx, run)
    position = last.position + 1 if last else int(head["number"]) + 1
    previous = last.digest if last else str(head["digest"])
    rows = tx.scalars(select(RunSight).where(RunSight.run_id == run.run_id).order_by(RunSight.machine))
    texts = evidence.render(
        body, position, previous, {row.machine: Sight(row.screen or b"", row.console) for row in rows}
    )
    document = evidence.seal(body, position=position, previous=previous, key=ctx.evidence_key, renderings=texts)
    tx.add(
        Report(
            run_id=run.run_id,
            position=position,
            document=document,
            digest=document["digest"],
            html=texts["html"],
            junit=texts["junit"],
        )
    )
    tx.flush()

    def export() -> None:
        folder = ctx.home.reports
        durable.write(folder / f"{run.run_id}.json", evidence.encode(document), 0o640)
        durable.write(folder / f"{run.run_id}.html", texts["html"].encode(), 0o640)
        durable.write(folder / f"{run.run_id}.xml", texts["junit"].encode(), 0o640)

    tx.after(export)


def _body(tx: Transaction, run: Run) -> dict[str, Any]:
    shown = views.run(tx, run.run_id)
    facts = dict(shown.pop("facts"))
    definition = facts.pop("definition", None)
    if not definition:
        revision = tx.get(PlanRevision, (run.plan, run.plan_revision))
        definition = revision.definition if revision is not None else {}
    for internal in ("failures", "halted"):
        facts.pop(internal, None)
    points = {
        machine.checkpoint_id: tx.get(Checkpoint, machine.checkpoint_id)
        for machine in tx.scalars(select(RunMachine).where(RunMachine.run_id == run.run_id))
        if machine.checkpoint_id
    }
    plan = Definition.model_validate(definition) if definition else None
    body = {
        "version": __version__,
        "catalog_id": settings.catalog_id(tx),
        "generation": settings.generation(tx),
        "run": {**shown, "facts": facts},
        "plan": {
            "name": run.plan,
            "revision": run.plan_revision,
            "digest": hashlib.sha256(
                json.dumps(definition, sort_keys=True, separators=(",", ":")).encode()
            ).hexdigest(),
            "source_site": plan.source_site if plan else "",
            "target_site": plan.target_site if plan else "",
        },
        "objectives": _objectives(plan, shown["machines"]) if plan else None,
        "checkpoints": [
            {
                "checkpoint_id": point.checkpoint_id,
                "group_id": point.group_id,
                "level": point.level,
                "epoch": point.epoch,
                "sequence": point.sequence,
                "taken_at": point.taken_at,
                "disks": [
                    {"disk_key": disk["disk_key"], "tree_root": disk["tree_root"], "size_bytes": disk["size_bytes"]}
                    for disk in point.manifest["disks"]
                ],
            }
            for point in points.values()
            if point is not None
        ],
    }
    # As it will be read back: tuples and numbers in the form that JSON gives them.
    return dict(json.loads(json.dumps(body)))


def _objectives(plan: Definition, machines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the plan wants, and which machine kept to it; None where nothing was measured or wanted."""
    wanted = {"rpo": plan.rpo, "rto": plan.rto}

    def kept(machine: dict[str, Any], name: str) -> bool | None:
        limit, measured = wanted[name], machine[f"{name}_s"]
        return measured <= limit if limit is not None and measured is not None else None

    return {
        "rpo_s": plan.rpo,
        "rto_s": plan.rto,
        "machines": {machine["name"]: {name: kept(machine, name) for name in wanted} for machine in machines},
    }
