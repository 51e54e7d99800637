"""The target half on a node that is an EC2 instance: a draft is a volume at that instance, a point a snapshot of it.

Volumes are made of the base's snapshot, so only what is written makes a point larger. What a flush of the block device
covers is durable; a snapshot is taken of it, and the volume goes. Nobody else can write to a volume that is attached
here, and another node's draft is a volume of its own. See docs/internals/aws.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from farshore.errors import Conflict, FarshoreError, NotFound, Permanent, RestartFromCheckpoint, Retry
from farshore.platforms.aws import tags
from farshore.platforms.aws.ebs import SnapshotState, gib_of
from farshore.platforms.aws.journal import DraftFacts, Lock
from farshore.platforms.aws.points import Points, is_young, mismatch
from farshore.platforms.contract import Caps
from farshore.units import KIB, MIB

log = logging.getLogger(__name__)

_ZEROS = bytes(MIB)


class AttachedTarget(Points):
    """Writes drafts to volumes of this node's machine."""

    caps = Caps(
        # A page: less would be read before it is written, from a volume that loads its blocks as they are read.
        granularity_bytes=4 * KIB,
        max_io_bytes=MIB,
        max_parallel=16,
        zero_is_hole=False,  # EBS does not discard
        fences_by="none",  # another node cannot get at a volume that is attached here, and makes one of its own
    )

    def open(self, disk_key: str, size_bytes: int, base: str | None, key: str) -> AttachedDraft:
        """Open or begin the draft ``key``; see the contract."""
        gib = gib_of(size_bytes)
        facts = self._known(disk_key, size_bytes, base, key)
        if facts is not None and facts.sealed:
            return AttachedDraft(self, facts, None, None)
        if facts is not None and facts.snapshot_id:
            raise mismatch(key)  # it was begun in the other way, before the settings changed
        lock = self._journals.lock(key)
        try:
            facts = self._found_again(facts) if facts is not None else None
            if facts is not None and facts.sealed:
                lock.release()
                return AttachedDraft(self, facts, None, None)
            if facts is None:
                self._check_base(base)
                self.volumes.remove_left(disk_key, {one.key for one in self._journals.all()})
                facts = DraftFacts(key, disk_key, size_bytes, base, uuid4().hex, time.time())
                self._journals.write(facts)
            if not facts.volume_id:
                facts = self._begin(facts, gib)
            device = Device(self._attached(facts.volume_id), size_bytes)
        except BaseException:
            lock.release()
            if self._journals.read(key) is None:
                self._journals.remove(key)
            raise
        return AttachedDraft(self, facts, device, lock)

    def _found_again(self, facts: DraftFacts) -> DraftFacts | None:
        """Return what has become of a draft that was begun; None if it is lost, with its journal."""
        if facts.seal:
            point = self.captures.find(facts.key, facts.seal)
            if point is not None and point.state == "completed" and point.tags.get(tags.ROLE) == tags.DRAFT_ROLE:
                return self.sealed(facts, point.snapshot_id)
        if not facts.volume_id or is_young(facts) or self.volumes.there(facts.volume_id):
            return facts
        log.warning("volume %s of draft %s is gone; it begins again", facts.volume_id, facts.key)
        self._journals.forget(facts.key)
        return None

    def _begin(self, facts: DraftFacts, gib: int) -> DraftFacts:
        """Make the volume of a draft whose journal is there."""
        token = tags.token("draft", self._site, facts.key, facts.nonce)
        try:
            volume_id = self.volumes.make(gib, facts.base, token, self._tags(facts))
        except FarshoreError as error:
            if not isinstance(error, Retry):
                self._journals.forget(facts.key)
                self._check_base(facts.base)
            raise
        return self._note(facts, volume_id=volume_id)

    def _attached(self, volume_id: str) -> Path:
        try:
            return self.volumes.attached(volume_id)
        except NotFound as error:
            raise Retry(
                f"volume {volume_id} is not known everywhere yet, or gone",
                code="volume-unseen",
                hint="The next attempt finds out.",
                volume_id=volume_id,
            ) from error

    def _discard(self, key: str, facts: DraftFacts | None) -> None:
        super()._discard(key, facts)
        if facts is None or not facts.volume_id:
            self.volumes.remove_of(key)

    def points(self) -> list[str]:
        """Return all sealed points and the drafts of this node (as ``draft:<key>``)."""
        known = self.volumes.of_this_node()

        def is_there(facts: DraftFacts, _: dict[str, SnapshotState]) -> bool:
            return bool(facts.volume_id) and (facts.volume_id in known or is_young(facts))

        return self._named(is_there)

    # What a draft tells ---------------------------------------------------------------------------------------------

    def sealing(self, facts: DraftFacts) -> DraftFacts:
        """Keep that a seal has begun: its snapshot carries the attempt's name."""
        return facts if facts.seal else self._note(facts, completing=True, seal=uuid4().hex)

    def unsealing(self, facts: DraftFacts) -> DraftFacts:
        """Keep that a draft is written again after a seal that did not end; what that one took is of no use."""
        facts = self._note(facts, completing=False, seal="")
        self.captures.remove(facts.key)
        return facts

    def taken(self, facts: DraftFacts) -> str:
        """Return the point of a draft that is sealed now."""
        try:
            return self.captures.take(facts.volume_id, facts.key, facts.seal, self._tags(facts))
        except NotFound as error:
            raise RestartFromCheckpoint(
                f"volume {facts.volume_id}, a draft of {facts.disk_key}, is gone",
                code="draft-lost",
                hint="The next attempt copies the disk into a draft of its own.",
                volume_id=facts.volume_id,
            ) from error

    def sealed(self, facts: DraftFacts, point: str) -> DraftFacts:
        """Keep that a draft is a point now."""
        return self._note(facts, completing=True, sealed=True, snapshot_id=point)

    def end(self, facts: DraftFacts) -> None:
        """Remove the volume of a draft that is a point; what cannot go now goes when the draft is let go of."""
        try:
            self.volumes.remove_of(facts.key)
        except FarshoreError as error:
            log.warning("volume %s stays until draft %s is let go of: %s", facts.volume_id, facts.key, error)


class AttachedDraft:
    """A volume that is being written, or the point that it has become."""

    def __init__(self, target: AttachedTarget, facts: DraftFacts, device: Device | None, lock: Lock | None) -> None:
        self.draft_id = facts.key
        self._target = target
        self._facts = facts
        self._device = device
        self._held = lock
        self._lock = threading.Lock()

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write ``buffer`` at ``offset``."""
        self._writable().write(offset, buffer)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeros."""
        device = self._writable()
        for at in range(0, length, MIB):
            device.write(offset + at, memoryview(_ZEROS)[: min(MIB, length - at)])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read back, from the same device."""
        self._open().read_into(offset, buffer)

    def flush(self) -> None:
        """Make all finished writes durable."""
        self._open().flush()

    def seal(self) -> str:
        """Flush, take a snapshot, wait until it is whole, and return its id."""
        with self._lock:
            if not self._facts.sealed:
                self._open().flush()
                self._facts = self._target.sealing(self._facts)
                point = self._target.taken(self._facts)
                self._facts = self._target.sealed(self._facts, point)
                self._shut()
                self._target.end(self._facts)
        return self._facts.snapshot_id

    def abandon(self) -> None:
        """Remove the draft."""
        self.close()
        if not self._facts.sealed:
            self._target.abandon(self.draft_id)

    def close(self) -> None:
        """Let others have the draft; it stays, attached."""
        with self._lock:
            self._shut()

    def _shut(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            device.close()
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def _writable(self) -> Device:
        if self._facts.completing and not self._facts.sealed:
            with self._lock:
                if self._facts.completing and not self._facts.sealed:
                    self._facts = self._target.unsealing(self._facts)
        return self._open()

    def _open(self) -> Device:
        if self._facts.sealed:
            raise Conflict(f"draft {self.draft_id} is sealed", code="point-sealed", point=self._facts.snapshot_id)
        if self._device is None:
            raise Conflict(f"draft {self.draft_id} is closed", code="draft-closed", key=self.draft_id)
        return self._device


class Device:
    """A block device of ``size_bytes`` or more. Safe from several threads."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size = size_bytes
        with self._told():
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if os.lseek(self._fd, 0, os.SEEK_END) < size_bytes:
                os.close(self._fd)
                raise Permanent(f"{path} is smaller than {size_bytes} bytes", code="device-size", path=str(path))

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write all of ``buffer``."""
        self._check(offset, len(buffer))
        with self._told():
            at = 0
            while at < len(buffer):
                at += os.pwrite(self._fd, buffer[at:], offset + at)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``."""
        self._check(offset, len(buffer))
        with self._told():
            at = 0
            while at < len(buffer):
                count = os.preadv(self._fd, [buffer[at:]], offset + at)
                if count == 0:
                    raise Permanent(f"{self._path} ends at {offset + at}", code="device-size", path=str(self._path))
                at += count

    def flush(self) -> None:
        """Make durable what was written: the page cache, and the device's own."""
        with self._told():
            os.fsync(self._fd)

    def close(self) -> None:
        """Give it back. Nobody else uses it any more, or will."""
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self._size:
            raise Permanent("the access reaches over the end of the disk", code="disk-size", offset=offset)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            raise Permanent(
                f"{self._path} may not be written by this node",
                code="device-permission",
                hint="Let the node's user be in the group `disk`.",
                path=str(self._path),
            ) from error
        except OSError as error:
            # What a flush has covered is on the volume, which outlives its attachment.
            raise Retry(
                f"{self._path} failed: {error.strerror or error}",
                code="draft-lost",
                hint="It is attached again and gone on with from what was flushed.",
                path=str(self._path),
            ) from error
