"""All stories by name."""

from __future__ import annotations

from typing import Final

from farshore.control.runs import drill, failover, scrub
from farshore.control.runs.story import Story
from farshore.control.store.records import Run

STORIES: Final[dict[str, Story]] = {
    "drill": drill.STORY,
    "cleanup": drill.CLEANUP,
    "planned": failover.PLANNED,
    "unplanned": failover.UNPLANNED,
    "scrub": scrub.STORY,
}


def begin(run: Run) -> tuple[str, str]:
    """Return the story of a run and the phase that it begins with, also when what told it so far was lost."""
    if run.kind == "failover":
        return str(run.params["mode"]), failover.first_phase(run)
    if run.kind == "drill":
        return run.kind, drill.first_phase(run)
    return run.kind, STORIES[run.kind][0].name
