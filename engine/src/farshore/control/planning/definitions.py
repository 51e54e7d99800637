"""Plans and manifests as models, kept: a large one takes longer to validate than a step of its run takes otherwise."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from farshore.control.store.records import Checkpoint, Plan, Run
from farshore.model.checkpoint import Manifest
from farshore.model.plan import Plan as Definition

#: Definitions that are kept; one of a thousand machines takes about 3 MiB.
MOST_KEPT: Final = 16

_Model = TypeVar("_Model", bound=BaseModel)


class _Kept:
    """The models that were asked for last."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._models: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, model: type[_Model], load: Callable[[], dict[str, Any]]) -> _Model:
        """Return the model that was kept under ``key``, else that of what ``load`` returns."""
        with self._lock:
            found: _Model | None = self._models.get(key)
            if found is not None:
                self._models.move_to_end(key)
                return found
        found = model.model_validate(load())
        with self._lock:
            self._models[key] = found
            while len(self._models) > MOST_KEPT:
                self._models.popitem(last=False)
        return found


_definitions: Final = _Kept()
_manifests: Final = _Kept()


def of_plan(plan: Plan) -> Definition:
    """Return what a plan says now. Not for a revision that may still be rolled back."""
    return _definitions.get((plan.name, plan.created_at, plan.revision), Definition, lambda: plan.definition)


def of_run(run: Run) -> Definition:
    """Return what the plan said when a run of it was ordered."""
    return _definitions.get((run.run_id, run.created_at), Definition, lambda: run.facts["definition"])


def of_checkpoint(point: Checkpoint) -> Manifest:
    """Return the manifest of a checkpoint, which never changes; a group's is asked for by each of its machines."""
    return _manifests.get((point.checkpoint_id, point.published_at), Manifest, lambda: point.manifest)
