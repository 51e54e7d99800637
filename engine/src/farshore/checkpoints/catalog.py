"""The catalog re-derived from the store: what is published, and whether it agrees with the points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farshore.checkpoints.manifest import GROUPS, decode, is_refusal, parse_key
from farshore.errors import Corruption, NotFound
from farshore.model.checkpoint import Manifest
from farshore.model.machine import Finding
from farshore.platforms.contract import ManifestStore


@dataclass(frozen=True, slots=True)
class Difference:
    """How manifests and native points disagree.

    Attributes:
        missing: ``(checkpoint id, point)`` that a manifest names and the platform does not have.
        orphans: sealed points that no manifest names: of a cycle that runs, or that died before its publication.
        drafts: keys of drafts.
    """

    missing: tuple[tuple[str, str], ...]
    orphans: tuple[str, ...]
    drafts: tuple[str, ...]


def scan(store: ManifestStore) -> tuple[list[Manifest], list[Finding]]:
    """Return every published manifest, oldest first within a group, and what could not be read.

    A damaged manifest hides no other.
    """
    found: list[Manifest] = []
    findings: list[Finding] = []
    for key in store.list(GROUPS):
        if parse_key(key) is None:
            continue
        try:
            data = store.get(key)
            if not is_refusal(data):
                found.append(decode(data, key))
        except NotFound:
            continue
        except Corruption as error:
            findings.append(
                Finding(
                    code=error.code,
                    severity="error",
                    message=error.message,
                    remedy="Restore the object from a backup of the store, or drop the checkpoint.",
                    subject=key,
                )
            )
    found.sort(key=lambda manifest: (manifest.group_id, manifest.epoch, manifest.sequence))
    return found, findings


def compare(manifests: Sequence[Manifest], points: Sequence[str]) -> Difference:
    """Return how published manifests and the target's ``points()`` disagree."""
    sealed = {point for point in points if not point.startswith("draft:")}
    named = {disk.point for manifest in manifests for disk in manifest.disks}
    return Difference(
        missing=tuple(
            (manifest.checkpoint_id, disk.point)
            for manifest in manifests
            for disk in manifest.disks
            if disk.point not in sealed
        ),
        orphans=tuple(sorted(sealed - named)),
        drafts=tuple(sorted(point.removeprefix("draft:") for point in points if point.startswith("draft:"))),
    )
