"""All stories by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, cast, get_args

from farshore.control.runs import (
    approving,
    detach,
    drill,
    failover,
    hooks,
    ledger,
    migrate,
    reprotect,
    retire,
    rollback,
    scrub,
)
from farshore.control.runs.story import Phase, Scene, Story
from farshore.control.store.records import Run
from farshore.errors import FarshoreError
from farshore.model.hooks import Verb

#: The phase before the first one of a verb.
BEFORE: Final = "before"
#: What the names of phases before the last one begin with.
ALWAYS: Final = "always, then"
#: Kinds of runs that change where a plan's machines run.
FAILOVERS: Final = ("failover", "migrate")


def verb(run: Run) -> Verb | None:
    """Return what plans call the run's verb, None for one that they say nothing about."""
    found = str(run.facts.get("verb") or run.kind)
    return cast("Verb", found) if found in get_args(Verb) else None


def _before(scene: Scene) -> bool:
    found = verb(scene.run)
    return found is None or hooks.order(scene, found, "pre", "plan")


def _always(scene: Scene) -> bool:
    """Have done what the plan wants after the verb, however it went; a failure of it makes the run partial."""
    found = verb(scene.run)
    try:
        return found is None or hooks.order(scene, found, "always", "plan")
    except FarshoreError as error:
        failures = {**scene.run.facts.get("failures", {}), f"hook always_{found}": error.to_dict()}
        ledger.note(scene.tx, scene.run, failures=failures)
        return True


def _hooked(story: Story) -> Story:
    """Return ``story`` with what the plan wants before its verb, and, whichever way it ends, after it."""
    named = {name: f"{ALWAYS} {name}" for name in ("finish", "end")}
    phases = [Phase(BEFORE, _before, story[0].on_failure, cancellable=True)]
    for phase in story:
        if phase.name in named:
            phases.append(Phase(named[phase.name], _always))
        phases.append(phase)
    return tuple(replace(phase, on_failure=named.get(phase.on_failure or "", phase.on_failure)) for phase in phases)


STORIES: Final[dict[str, Story]] = {
    "drill": _hooked(drill.STORY),
    "cleanup": drill.CLEANUP,
    "planned": _hooked(failover.PLANNED),
    "unplanned": _hooked(failover.UNPLANNED),
    "reprotect": _hooked(reprotect.STORY),
    "migrate": _hooked(migrate.STORY),
    "rollback": _hooked(rollback.STORY),
    approving.KIND: approving.STORY,
    "scrub": scrub.STORY,
    detach.KIND: detach.STORY,
    retire.KIND: retire.STORY,
}


def name(run: Run) -> str:
    """Return which story a run's is."""
    if run.kind == "migrate":
        return run.kind
    return str(run.params["mode"]) if run.kind in FAILOVERS else run.kind


def begin(run: Run) -> tuple[str, str]:
    """Return the story of a run and the phase that it begins with, also when what told it so far was lost."""
    story = STORIES[name(run)]
    if run.kind in FAILOVERS:
        phase = failover.first_phase(run)
    elif run.kind == "drill":
        phase = drill.first_phase(run)
    elif run.kind == "reprotect":
        phase = reprotect.first_phase(run)
    elif run.kind == "rollback":
        phase = rollback.first_phase(run)
    else:
        phase = story[0].name
    if story[0].name == BEFORE and phase == story[1].name:
        phase = BEFORE
    if any(one.name == f"{ALWAYS} {phase}" for one in story):
        phase = f"{ALWAYS} {phase}"
    return name(run), phase


def pausable(run: Run) -> bool:
    """Say whether a run is where it can be paused: on its way back or at its end it is not."""
    if not run.workflow or "error" in run.facts:
        return False
    phases = {phase.name: phase for phase in STORIES[name(run)]}
    here = phases.get(run.phase)
    return here is None or here.pausable
