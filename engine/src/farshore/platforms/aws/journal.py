"""What a node knows of a draft that it writes: which snapshot it is, and the digest of each block that it holds.

    scratch/drafts/<digest of the key>/draft.json    what it is; written whole
    scratch/drafts/<digest of the key>/blocks        a slot per block: one byte of state, 32 of SHA-256; sparse
    scratch/drafts/<digest of the key>/.lock         held by the process that has the draft open

A slot says ``TOUCHED`` before its block is sent and ``WRITTEN`` with the digest after the reply. The service counts the
blocks that it was sent and digests them itself, so a journal that is wrong never becomes a point: it is not completed.
After a kill all is as it was left. After a loss of power slots may be missing behind the last flush; then the service
refuses the count and the draft is copied anew. Memory is flat: nothing is kept but the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from farshore import durable
from farshore.errors import Conflict, NoSpace, Permanent

_SLOT: Final = 33
_TOUCHED: Final = b"\1"
_WRITTEN: Final = b"\2"
_FACTS: Final = "draft.json"
#: Slots that are read at once: about 1 MiB.
_STEP: Final = 32768


@dataclass(frozen=True, slots=True)
class DraftFacts:
    """What a draft is. ``snapshot_id`` is empty until the service has told it.

    ``nonce``: makes the draft's ClientToken, so that the same attempt finds the same snapshot and a later one, after
    the snapshot was lost, does not. ``completing``: the seal has begun. ``sealed``: the snapshot is whole.

    ``volume_id``: the volume that is written, where a draft is one; ``seal`` then names the attempt to take a snapshot
    of it, empty once something was written since.
    """

    key: str
    disk_key: str
    size_bytes: int
    base: str | None
    nonce: str
    started_at: float
    snapshot_id: str = ""
    completing: bool = False
    sealed: bool = False
    volume_id: str = ""
    seal: str = ""


class Journals:
    """The drafts that this node knows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, key: str) -> DraftFacts | None:
        """Return what is known of the draft ``key``."""
        return _read(self._path(key))

    def all(self) -> list[DraftFacts]:
        """Return all drafts and those that were sealed and not settled yet."""
        if not self._folder.is_dir():
            return []
        return [facts for path in sorted(self._folder.iterdir()) if (facts := _read(path)) is not None]

    def write(self, facts: DraftFacts) -> None:
        """Keep what is known, durable on return."""
        path = self._path(facts.key)
        try:
            durable.make_dir(path)
            durable.write_json(path / _FACTS, asdict(facts))
        except OSError as error:
            raise _failed(error, path) from error

    def remove(self, key: str) -> None:
        """Forget a draft."""
        path = self._path(key)
        if path.is_dir():
            durable.remove(path / _FACTS)
            shutil.rmtree(path, ignore_errors=True)

    def forget(self, key: str) -> None:
        """Take away what a draft is, while its slots are open: it begins again."""
        durable.remove(self._path(key) / _FACTS)

    @contextlib.contextmanager
    def held(self, key: str) -> Iterator[None]:
        """Keep others from having the draft open meanwhile."""
        lock = self.lock(key)
        try:
            yield
        finally:
            lock.release()

    def lock(self, key: str) -> Lock:
        """Hold a draft.

        Raises:
            Conflict: somebody has it open.
        """
        return Lock(self._path(key), key)

    def open(self, key: str) -> Blocks:
        """Open the slots of a draft and hold it.

        Raises:
            Conflict: somebody has it open.
        """
        return Blocks(self._path(key), key)

    def _path(self, key: str) -> Path:
        return self._folder / sha256(key.encode()).hexdigest()[:32]


class Lock:
    """Keeps a draft to one process, and to one handle in it."""

    def __init__(self, path: Path, key: str) -> None:
        durable.make_dir(path)
        self._fd = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise Conflict(
                f"draft {key} is being written by another process",
                code="draft-busy",
                hint="Wait until it has ended.",
                key=key,
            ) from None

    def release(self) -> None:
        """Let others have it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Blocks:
    """The slots of a draft that is open. Safe from several threads, where no two are at one block."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._lock = Lock(path, key)
        try:
            self._fd = os.open(path / "blocks", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._lock.release()
            raise _failed(error, path) from error

    def touch(self, index: int) -> None:
        """Note that block ``index`` is about to be sent."""
        self._put(index, _TOUCHED)

    def written(self, index: int, digest: bytes) -> None:
        """Note that the service has block ``index``, with ``digest``."""
        self._put(index, _WRITTEN + digest)

    def is_touched(self, index: int) -> bool:
        """Say whether block ``index`` was ever about to be sent."""
        return os.pread(self._fd, 1, index * _SLOT) not in {b"", b"\0"}

    def digests(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield ``(index, digest)`` of what was sent, ascending; None where no reply has come."""
        size = os.fstat(self._fd).st_size
        at = 0
        while at < size:
            try:
                at = os.lseek(self._fd, at, os.SEEK_DATA) // _SLOT * _SLOT
            except OSError:  # nothing but a hole is left
                return
            data = os.pread(self._fd, _STEP * _SLOT, at)
            for place in range(0, len(data), _SLOT):
                state = data[place : place + 1]
                if state == _WRITTEN:
                    yield (at + place) // _SLOT, data[place + 1 : place + _SLOT]
                elif state == _TOUCHED:
                    yield (at + place) // _SLOT, None
            at += _STEP * _SLOT

    def clear(self) -> None:
        """Forget all blocks: the draft begins anew."""
        os.ftruncate(self._fd, 0)

    def flush(self) -> None:
        """Make durable what was noted."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise _failed(error, self._path) from error

    def close(self) -> None:
        """Give it back. May be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._lock.release()

    def _put(self, index: int, slot: bytes) -> None:
        try:
            os.pwrite(self._fd, slot, index * _SLOT)
        except OSError as error:
            raise _failed(error, self._path) from error


def _read(path: Path) -> DraftFacts | None:
    try:
        return DraftFacts(**json.loads((path / _FACTS).read_bytes()))
    except FileNotFoundError:
        return None


def _failed(error: OSError, path: Path) -> Permanent:
    message = f"the journal of a draft in {path} could not be written: {error.strerror or error}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpace(message, code="journal-full", hint="Free space in platform.scratch.")
    return Permanent(message, code="journal-io")
