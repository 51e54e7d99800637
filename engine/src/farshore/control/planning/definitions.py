"""Plans as models, kept: a large plan takes longer to validate than a step of its run takes otherwise."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Final

from farshore.control.store.records import Plan, Run
from farshore.model.plan import Plan as Definition

#: Definitions that are kept; one of a thousand machines takes about 3 MiB.
MOST_KEPT: Final = 16

_lock = Lock()
_kept: OrderedDict[Hashable, Definition] = OrderedDict()


def of_plan(plan: Plan) -> Definition:
    """Return what a plan says now. Not for a revision that may still be rolled back."""
    return _get((plan.name, plan.created_at, plan.revision), lambda: plan.definition)


def of_run(run: Run) -> Definition:
    """Return what the plan said when a run of it was ordered."""
    return _get((run.run_id, run.created_at), lambda: run.facts["definition"])


def _get(key: Hashable, load: Callable[[], dict[str, Any]]) -> Definition:
    with _lock:
        found = _kept.get(key)
        if found is not None:
            _kept.move_to_end(key)
            return found
    found = Definition.model_validate(load())
    with _lock:
        _kept[key] = found
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    return found
