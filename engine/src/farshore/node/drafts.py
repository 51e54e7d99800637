"""What is durable of the drafts that this node writes: told with each poll, for whoever takes the task over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from farshore.journal.state import DraftState
from farshore.model.task import DraftCover, ReplicateParams
from farshore.node.worker import Call, Covers

#: Ranges in one poll, of all drafts together: some 300 KiB of JSON.
RANGES_MAX: Final = 16384
#: And of one draft.
DRAFT_RANGES_MAX: Final = 4096
DRAFT_RANGES_MIN: Final = 16
#: Drafts in one poll; others are told with the next.
DRAFTS_MAX: Final = 1024


def cover_of(task_id: str, params: ReplicateParams, drafts: Sequence[DraftState]) -> Covers:
    """Return what tells how far the drafts of a replication are."""
    pairs = [(disk.disk_key, draft) for disk, draft in zip(params.disks, drafts, strict=True)]

    def covers(max_ranges: int) -> Sequence[DraftCover]:
        return [
            DraftCover(
                task_id=task_id, disk_key=disk_key, draft_key=draft.draft_key, ranges=tuple(draft.cover(max_ranges))
            )
            for disk_key, draft in pairs
        ]

    return covers


class Drafts:
    """Remembers what the control plane was told, so that only news is sent. For one thread, which polls."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], DraftCover] = {}

    def grown(self, calls: Iterable[Call]) -> tuple[DraftCover, ...]:
        """Return the drafts of ``calls`` of which something else is durable than was told."""
        working = [call for call in calls if call.task.kind == "replicate"]
        disks = sum(len(call.task.params.get("disks", ())) for call in working)
        most = max(DRAFT_RANGES_MIN, min(DRAFT_RANGES_MAX, RANGES_MAX // max(disks, 1)))
        found = {(cover.task_id, cover.disk_key): cover for call in working for cover in call.covers(most)}
        self._told = {key: cover for key, cover in self._told.items() if key in found}
        news = (cover for key, cover in found.items() if self._is_news(key, cover))
        return tuple(islice(news, DRAFTS_MAX))

    def _is_news(self, key: tuple[str, str], cover: DraftCover) -> bool:
        before = self._told.get(key)
        return before != cover if before else bool(cover.ranges)

    def told(self, covers: Iterable[DraftCover]) -> None:
        """Note that the control plane has these."""
        self._told.update({(cover.task_id, cover.disk_key): cover for cover in covers})
