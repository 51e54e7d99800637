"""Which checkpoints may go. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from farshore.model.checkpoint import Manifest


def to_drop(
    manifests: Iterable[Manifest], keep: int, pinned: Collection[str] = (), in_use: Collection[str] = ()
) -> list[Manifest]:
    """Return the checkpoints of one group to drop, oldest first, so that the newest ``keep`` stay.

    Pinned checkpoints and those in use (ids) are never returned and do not count: pinning one shortens no history. The
    newest is never returned, whatever ``keep`` says, for the next cycle grows on it.
    """
    ordered = sorted(manifests, key=lambda manifest: (manifest.epoch, manifest.sequence))
    free = [one for one in ordered[:-1] if one.checkpoint_id not in pinned and one.checkpoint_id not in in_use]
    newest_counts = bool(ordered) and ordered[-1].checkpoint_id not in pinned
    stay = max(keep, 1) - (1 if newest_counts else 0)
    return free[: max(len(free) - stay, 0)]
