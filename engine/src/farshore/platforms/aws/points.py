"""What a site keeps: points are completed snapshots of ours, whichever way their drafts were written.

The two ways are :mod:`farshore.platforms.aws.target` (block by block) and :mod:`farshore.platforms.aws.attached`
(volumes of this node's machine).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from farshore.errors import Conflict, NotFound
from farshore.model.machine import PoolFacts
from farshore.platforms.aws import tags
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.captures import Captures
from farshore.platforms.aws.ebs import LARGEST_BYTES, UNSEEN_S, Ebs, SnapshotState
from farshore.platforms.aws.journal import DraftFacts, Journals
from farshore.platforms.aws.reading import SnapshotReader, Tokens
from farshore.platforms.aws.volumes import Volumes

log = logging.getLogger(__name__)

#: Points that are read at once keep their tokens; others are listed again.
_READERS_MAX: Final = 8
#: Storage has no end here; this is what can be told without asking: 64 volumes of the largest size.
_CAPACITY: Final = 64 * LARGEST_BYTES


class Points:
    """The points of a site, and what this node knows of drafts."""

    def __init__(self, account: Account) -> None:
        settings = account.settings
        self._account = account
        self._ebs = Ebs(account)
        self._journals = Journals(settings.folder / "drafts")
        self._site = tags.site_of(settings.bucket, settings.prefix)
        self.captures = Captures(account, self._ebs, self._site)
        self.volumes = Volumes(account, self._site)
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, SnapshotReader] = OrderedDict()

    # Points ---------------------------------------------------------------------------------------------------------

    def has(self, point: str) -> bool:
        """Say whether the point exists and is whole."""
        found = self._ebs.state(point)
        return found is not None and found.state == "completed"

    def read_into(self, point: str, offset: int, buffer: memoryview) -> None:
        """Read a sealed point."""
        self.reader(point).read_into(offset, buffer)

    def reader(self, point: str) -> SnapshotReader:
        """Return the reader of a point."""
        with self._lock:
            found = self._readers.get(point)
            if found is None:
                found = self._readers[point] = SnapshotReader(
                    self._ebs, point, Tokens(self._ebs, point), partial(gone, point)
                )
            self._readers.move_to_end(point)
            while len(self._readers) > _READERS_MAX:
                self._readers.popitem(last=False)
        return found

    def lease(self, point: str, tag: str) -> None:
        """Pin the point for ``tag``: the snapshot carries the lease, so every node sees it."""
        if not self.has(point):
            raise gone(point)
        self._ebs.tag(point, {tags.lease(tag): "1"})

    def release(self, tag: str) -> None:
        """Drop all leases of ``tag``."""
        key = tags.lease(tag)
        named = [{"Name": "tag-key", "Values": [key]}, *tags.filters(SITE=self._site)]
        for found in list(self._ebs.find(named)):
            self._ebs.untag(found.snapshot_id, key)

    def check_drop(self, point: str) -> None:
        """Refuse a point that is leased."""
        found = self._ebs.state(point)
        leases = sorted(key for key in found.tags if key.startswith(tags.LEASE)) if found is not None else []
        if leases:
            raise Conflict(
                f"point {point} is in use",
                code="point-leased",
                hint="Wait for the run that uses it, or end that run.",
                tags=[key.removeprefix(tags.LEASE) for key in leases],
            )

    def drop(self, point: str) -> None:
        """Remove a point whole. The service keeps the blocks that later snapshots need."""
        self.check_drop(point)
        with self._lock:
            self._readers.pop(point, None)
        self._ebs.delete(point)

    def usage(self) -> PoolFacts:
        """Return that there is room; the service has no limit but the account's quotas."""
        return PoolFacts(path=f"ebs:{self._site}", capacity_bytes=_CAPACITY, free_bytes=_CAPACITY)

    def adopt(self, volume_id: str, disk_key: str, size_bytes: int, key: str) -> str:
        """Make a point of what a volume holds, which nobody writes; the same key finds the same point."""
        for found in self._of_draft(key):
            if _is_point(found):
                return found.snapshot_id
        return self.captures.take(volume_id, key, volume_id, tags.of_draft(self._site, key, disk_key, size_bytes, None))

    # What drafts have become ----------------------------------------------------------------------------------------

    def abandon(self, key: str) -> None:
        """Remove the draft named ``key`` if it exists."""
        facts = self._journals.read(key)
        if facts is None:
            self._discard(key, None)
            return
        with self._journals.held(key):
            self._discard(key, facts)
            self._journals.remove(key)

    def _discard(self, key: str, facts: DraftFacts | None) -> None:
        """Remove what is there of a draft, but for the point that it has become; the journal is the caller's."""
        if facts is None or not facts.snapshot_id:
            # It may have been begun, and whoever did so died before the reply.
            for left in self._of_draft(key):
                if not _is_point(left):
                    self._ebs.delete(left.snapshot_id)
        elif not facts.sealed:
            found = self._ebs.state(facts.snapshot_id)
            if found is None or found.state != "completed":  # else it was sealed, and only the reply was lost
                self._ebs.delete(facts.snapshot_id)
        if facts is not None and facts.volume_id:
            self.volumes.remove_of(key)

    def _find_sealed(self, key: str) -> DraftFacts | None:
        """Return the point that a draft has become, by its tags; what is left of one without a journal is removed."""
        for found in self._of_draft(key):
            if _is_point(found):
                named = found.tags
                return DraftFacts(
                    key=key,
                    disk_key=named.get(tags.DISK, ""),
                    size_bytes=int(named.get(tags.SIZE, "0")),
                    base=named.get(tags.BASE) or None,
                    nonce="",
                    started_at=found.started_at,
                    snapshot_id=found.snapshot_id,
                    completing=True,
                    sealed=True,
                )
            log.info("snapshot %s of draft %s has no journal here and is removed", found.snapshot_id, key)
            self._ebs.delete(found.snapshot_id)
        return None

    def _of_draft(self, key: str) -> list[SnapshotState]:
        return list(self._ebs.find(tags.filters(SITE=self._site, DRAFT=key)))

    def _known(self, disk_key: str, size_bytes: int, base: str | None, key: str) -> DraftFacts | None:
        """Return what a draft is, as far as it was begun.

        Raises:
            Conflict: it is of something else.
        """
        facts = self._journals.read(key) or self._find_sealed(key)
        if facts is not None and (facts.disk_key, facts.size_bytes, facts.base) != (disk_key, size_bytes, base):
            raise mismatch(key)
        return facts

    def _note(self, facts: DraftFacts, **changes: str | bool) -> DraftFacts:
        """Keep what has changed of a draft, durable on return."""
        facts = replace(facts, **changes)  # type: ignore[arg-type]
        self._journals.write(facts)
        return facts

    def _check_base(self, base: str | None) -> None:
        if base is not None and not self.has(base):
            raise gone(base)

    def _tags(self, facts: DraftFacts) -> dict[str, str]:
        """Return the tags on all that is of a draft, but for its role."""
        return tags.of_draft(self._site, facts.key, facts.disk_key, facts.size_bytes, facts.base)

    def _named(self, is_there: Callable[[DraftFacts, dict[str, SnapshotState]], bool]) -> list[str]:
        """Return all points, and those drafts of this node that are there (as ``draft:<key>``)."""
        found = {one.snapshot_id: one for one in self._ebs.find(tags.filters(SITE=self._site, ROLE=tags.DRAFT_ROLE))}
        names = {one.snapshot_id for one in found.values() if one.state == "completed"}
        names |= {f"draft:{facts.key}" for facts in self._journals.all() if not facts.sealed and is_there(facts, found)}
        return sorted(names)


def _is_point(found: SnapshotState) -> bool:
    return found.state == "completed" and found.tags.get(tags.ROLE) == tags.DRAFT_ROLE


def is_young(facts: DraftFacts) -> bool:
    """Say whether what a draft is made of may be too new to be known everywhere."""
    return time.time() - facts.started_at < UNSEEN_S


def gone(point: str) -> NotFound:
    """Return the error of a point that does not exist."""
    return NotFound(f"point {point} does not exist", code="point-not-found", point=point)


def mismatch(key: str) -> Conflict:
    """Return the error of a draft that was begun as something else."""
    return Conflict(f"draft {key} is of something else", code="draft-mismatch", key=key)
