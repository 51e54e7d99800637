"""Who may write to a draft: one process at a time, by a lock (``flock``) on its image for as long as it is open.

The kernel gives the lock back when the last process that holds it has ended, so a process that is only stopped keeps
it: nobody takes its draft over. Within a process the lock is shared, by everybody who has the draft open.

On one host this excludes every other writer. On NFS 4 a client that was cut off for longer than its lease loses its
locks, and Linux refuses what is written by way of a lost one (``NFS_LOCK_LOST``, fs/nfs/nfs4state.c). It knows whose a
write is by the open file, so drafts are written through the very one that is locked; see docs/internals/journal.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from farshore.errors import Conflict

_GUARD: Final = threading.Lock()
_LOCKS: Final[dict[tuple[int, int], Lock]] = {}


class Lock:
    """The lock on one image, held by this process ``users`` times."""

    def __init__(self, fd: int, place: tuple[int, int], *, writable: bool) -> None:
        self._fd = fd
        self._place = place
        self._writable = writable
        self.users = 1

    def open(self, image: Path) -> int:
        """Return a descriptor of the open file that is locked, to read and write; close it before :meth:`release`.

        Raises:
            FileNotFoundError: ``image`` is not there any more, or was made anew since it was locked.
            Conflict: this process removes the draft.
        """
        facts = image.stat()
        if (facts.st_dev, facts.st_ino) != self._place:
            raise FileNotFoundError(image)
        if not self._writable:
            raise Conflict("the draft is being removed", code="draft-open", path=str(image))
        return os.dup(self._fd)

    def release(self) -> None:
        """Give one use back; the last one opens the lock."""
        with _GUARD:
            self.users -= 1
            if not self.users:
                del _LOCKS[self._place]
                os.close(self._fd)


def take(image: Path, key: str) -> Lock:
    """Lock the image of the draft ``key`` for this process.

    Raises:
        Conflict: another process has it open.
    """
    with _GUARD:
        # NFS gives the lock only to who has it open for writing; an image that was about to be sealed is not writable.
        mode = os.O_RDWR if os.access(image, os.W_OK) else os.O_RDONLY
        fd = os.open(image, mode | os.O_CLOEXEC)
        facts = os.fstat(fd)
        place = facts.st_dev, facts.st_ino
        lock = _LOCKS.get(place)
        if lock is not None:
            os.close(fd)
            lock.users += 1
            return lock
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise Conflict(
                f"draft {key} is open in another process",
                code="draft-open",
                hint="Wait until that has ended; a process that is stopped keeps it.",
                key=key,
            ) from None
        lock = _LOCKS[place] = Lock(fd, place, writable=mode == os.O_RDWR)
        return lock


@contextlib.contextmanager
def held(image: Path, key: str) -> Iterator[None]:
    """Hold the lock, as :func:`take`; an image that is not there needs none."""
    try:
        lock = take(image, key)
    except FileNotFoundError:
        yield
        return
    try:
        yield
    finally:
        lock.release()
