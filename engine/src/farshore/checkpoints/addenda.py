"""Addenda: what was found out about published checkpoints, as objects beside their manifests.

    addenda/<group>/<sequence:010>-<checkpoint>.<by>-<digest>.json

Each is created once and never changed; the digest is of what found it, so that finding it again creates nothing. They
go with their checkpoint.
"""

from __future__ import annotations

import json
import logging
from hashlib import sha256
from typing import Final

from pydantic import ValidationError

from farshore.errors import NotFound
from farshore.model.checkpoint import Manifest
from farshore.model.integrity import Addendum
from farshore.platforms.contract import ManifestStore

log = logging.getLogger(__name__)

PREFIX: Final = "addenda/"


def keep(store: ManifestStore, addendum: Addendum, part: str = "") -> Addendum:
    """Keep an addendum, durable on return; return what the same origin said about this ``part`` first."""
    digest = sha256(f"{addendum.origin}\n{part}".encode()).hexdigest()[:16]
    start = f"{PREFIX}{addendum.group_id}/{addendum.sequence:010d}-{addendum.checkpoint_id}."
    key = f"{start}{addendum.by}-{digest}.json"
    if store.put_if_absent(key, json.dumps(addendum.model_dump(mode="json"), sort_keys=True).encode()):
        if addendum.verdict == "suspect":
            log.error("checkpoint %s is suspect: %s", addendum.checkpoint_id, addendum.reason)
        return addendum
    try:
        return Addendum.model_validate_json(store.get(key))
    except (NotFound, ValidationError):
        return addendum  # withdrawn with its checkpoint, or damaged: ours is what there is to say


def load(store: ManifestStore, group_id: str | None = None) -> list[Addendum]:
    """Return the addenda of a group, or of all; one that is damaged is logged and passed over."""
    found = []
    for key in store.list(PREFIX if group_id is None else f"{PREFIX}{group_id}/"):
        try:
            found.append(Addendum.model_validate_json(store.get(key)))
        except NotFound:
            continue  # withdrawn between the two calls
        except ValidationError:
            log.exception("object %s is no addendum", key)
    return found


def of(found: list[Addendum], checkpoint_id: str) -> tuple[Addendum, ...]:
    """Return those of one checkpoint."""
    return tuple(one for one in found if one.checkpoint_id == checkpoint_id)


def withdraw(store: ManifestStore, manifest: Manifest) -> None:
    """Take away what was said about a checkpoint."""
    start = f"{PREFIX}{manifest.group_id}/{manifest.sequence:010d}-{manifest.checkpoint_id}."
    for key in store.list(start):
        if key.removeprefix(start).count(".") == 1:  # else of another checkpoint, whose name begins with this one's
            store.tombstone(key)
