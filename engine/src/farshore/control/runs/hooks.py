"""Hooks of a run: what the plan has done before and after a verb, at the level of plan, boot group and machine.

A hook is a step of the run like any other: a task for a recovery node, ordered once, its output kept in the step's
record. A gate is a step that pauses the run; whoever resumes it opens the gate. What the plan does not name costs
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from farshore.control import tasks
from farshore.control.clock import iso
from farshore.control.runs import gates, ledger, story
from farshore.control.runs.story import Scene
from farshore.control.store.records import RunStep
from farshore.errors import FarshoreError, Permanent
from farshore.model.hooks import Hook, Hooks, Level, Moment, Verb
from farshore.model.plan import Purpose
from farshore.model.probe import AnsibleProbe
from farshore.model.task import HookParams, HookResult
from farshore.recovery import preview

#: Purposes of addresses by verb.
_PURPOSE: Final[dict[Verb, Purpose]] = {
    "drill": "drill",
    "failover": "failover",
    "failback": "failback",
    "migrate": "migration",
}


def order(scene: Scene, verb: Verb, moment: Moment, level: Level, name: str = "") -> bool:
    """Have a hook run, once; say whether it is through. True at once where the plan names none.

    ``name`` is that of the boot group or the machine; for the plan it counts for nothing. Call it again until it is
    True, as any phase.

    Raises:
        FarshoreError: the hook failed, and the plan says that what it belongs to fails with it: the run, the group's
            machines, or the machine.
    """
    hook = _hooks(scene, level, name).get(f"{moment}_{verb}")  # type: ignore[call-overload]
    if hook is None:
        return True
    step, machine = f"hook {moment}_{verb}", ""
    if level == "group":
        step = f"{step} of group {name}"
    elif level == "machine":
        machine = name
    if hook.hook == "gate":
        return _gate(scene, hook, step, machine)
    if hook.at == "source" and is_source_lost(scene):
        if ledger.step(scene.tx, scene.run.run_id, step, machine) is None:
            ledger.done(scene.tx, scene.run.run_id, step, "not called: the source site is given up", machine)
        return True
    return _tasks(scene, hook, step, machine, partial(context, scene, verb, moment, level, name))


def is_source_lost(scene: Scene) -> bool:
    """Say whether the run speaks no word to the site that it leaves."""
    return scene.run.params.get("mode") == "unplanned" or bool(scene.run.facts.get("forced"))


def _hooks(scene: Scene, level: Level, name: str) -> Hooks:
    definition = scene.definition
    if level == "machine":
        return definition.machine(name).hooks
    if level == "group":
        return next((group.hooks for group in definition.groups() if group.name == name), {})
    return definition.hooks


def _gate(scene: Scene, hook: Hook, step: str, machine: str) -> bool:
    tx, run = scene.tx, scene.run
    row = ledger.step(tx, run.run_id, step, machine)
    if row is None:
        gates.close(tx, run, step, machine, hook.timeout)
        return False
    if row.ended_at is not None:
        return row.state == "succeeded" or hook.on_failure == "continue"
    if run.pause:
        return False
    error = gates.leave(tx, run, row, hook.timeout)
    if error is not None and hook.on_failure == "stop":
        raise error
    return True


def _tasks(scene: Scene, hook: Hook, step: str, machine: str, variables: Callable[[], dict[str, Any]]) -> bool:
    bundle = scene.definition.bundle
    if hook.file is None or bundle is None:
        raise Permanent(
            f"{step}: the plan's hooks have no files",
            code="hook-bundle-missing",
            hint="Apply the plan again: `farshore plan apply FILE`.",
        )
    file = hook.file

    def params() -> HookParams:
        return HookParams(
            bundle=bundle,
            file=file,
            timeout_s=hook.timeout,
            secrets=hook.secrets,
            vars=hook.vars,
            context=variables(),
        )

    task = story.order(scene, step, "hook", scene.site(hook.at), params, machine=machine)
    if task is None:
        return False
    row = ledger.begin(scene.tx, scene.run.run_id, step, machine)
    if task.state == "succeeded":
        result = HookResult.model_validate(task.result)
        row.evidence = result.model_dump(mode="json")
        row.detail = result.summary
        error: FarshoreError | None = None if result.ok else _failed(step, machine, result)
    else:
        error = tasks.failure(task)
    if error is None:
        return True
    _fail(row, error, goes_on=hook.on_failure == "continue")
    if hook.on_failure == "continue" and error.code != "cancelled":
        return True
    raise error


def _failed(step: str, machine: str, result: HookResult) -> Permanent:
    of = f" of machine {machine!r}" if machine else ""
    return Permanent(
        f"{step}{of}: {result.summary}",
        code="hook-timeout" if result.killed == "timeout" else "hook-failed",
        hint="Its output is in the step's record and in the run's evidence.",
        output=result.output[-2000:],
    )


def _fail(row: RunStep, error: FarshoreError, *, goes_on: bool) -> None:
    row.state, row.error = "failed", error.to_dict()
    row.detail = error.message + ("; the run goes on, as the plan says" if goes_on else "")


def for_probes(scene: Scene, verb: Verb, name: str) -> dict[str, Any]:
    """Return what the probes of a machine need that are files of tasks; nothing where it has none."""
    if not any(isinstance(probe, AnsibleProbe) for probe in scene.definition.machine(name).probes):
        return {}
    return {"bundle": scene.definition.bundle, "context": context(scene, verb, "post", "machine", name)}


def context(scene: Scene, verb: Verb, moment: Moment, level: Level, name: str) -> dict[str, Any]:
    """Return what the tasks of a hook find in the variable ``farshore``."""
    run, plan = scene.run, scene.plan
    purpose = _PURPOSE.get(verb)
    group_of = {member: group.name for group in scene.definition.groups() for member in group.machines}
    # What a hook belongs to, and no more: a plan may have a thousand machines with a hook each.
    if level == "machine":
        shown = [ledger.machine(scene.tx, run.run_id, name)]
    else:
        shown = [
            machine
            for machine in ledger.machines(scene.tx, run.run_id)
            if level == "plan" or group_of.get(machine.name) == name
        ]
    machines = {
        machine.name: {
            "name": machine.name,
            "group": group_of.get(machine.name, ""),
            "state": machine.state,
            "address": machine.address
            or (preview.address(scene.definition, machine.name, purpose) if purpose is not None else None),
            "target_name": machine.target_name,
            "target_machine_id": machine.target_machine_id,
            "checkpoint": machine.checkpoint_id,
        }
        for machine in shown
    }
    told = {"outcome": story.outcome(scene), "error": run.facts.get("error")} if moment == "always" else {}
    return {
        **told,
        "run_id": run.run_id,
        "verb": verb,
        "moment": moment,
        "level": level,
        "purpose": purpose or "",
        "mode": str(run.params.get("mode", "")),
        "actor": run.actor,
        "ordered_at": iso(run.created_at),
        "plan": plan.name,
        "plan_revision": run.plan_revision,
        "epoch": plan.epoch,
        "source_site": scene.site("source"),
        "target_site": scene.site("target"),
        "group": name if level == "group" else group_of.get(name, "") if level == "machine" else "",
        "machine": machines.get(name) if level == "machine" else None,
        "machines": machines,
    }
