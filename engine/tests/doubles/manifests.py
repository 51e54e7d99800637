"""A manifest for tests that are about a field or two of it."""

from __future__ import annotations

from typing import Any

from farshore.model.checkpoint import Manifest


def a_manifest(**given: Any) -> Manifest:
    """Return the manifest of a plain cycle, with what is ``given`` in place of what it has."""
    sequence = given.get("sequence", 1)
    plain: dict[str, Any] = {
        "checkpoint_id": f"cp-{sequence}",
        "group_id": "grp",
        "plan": "shop",
        "plan_revision": 1,
        "catalog_id": "c",
        "generation": 1,
        "epoch": 1,
        "term": 1,
        "sequence": sequence,
        "source_site": "alpha",
        "target_site": "beta",
        "level": "machine",
        "ordered_at": float(sequence),
        "taken_at": float(sequence),
        "machines": (),
        "disks": (),
    }
    return Manifest(**(plain | given))
