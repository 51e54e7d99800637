"""A disk whose storage stops answering among others that go on: what that costs the others.

The disk lies behind ``qemu-storage-daemon``, which shows it as a file (FUSE). Stopped by SIGSTOP, it answers no read,
no write and no flush, as storage does whose controller hangs; with SIGCONT it goes on. Nothing of that is known to what
is measured. The bound is on the slowest of the others, beside the same disks on the same link without it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from benchmarks.images import Disk
from benchmarks.links import End, Place
from benchmarks.peers.base import Job, Outcome, lacking
from benchmarks.peers.farshore import Farshore
from benchmarks.processes import ProgramFailed, Running, ask

_PROGRAM: Final = "qemu-storage-daemon"
#: The disk is in the middle of its work when so much of it has been read or written.
_BEGUN_BYTES: Final = 4 << 20
_PATIENCE_S: Final = 60.0


class StallingDisk:
    """``image`` as a file that can stop answering. A context manager; ``path`` is there inside it."""

    def __init__(self, image: Path, *, writable: bool) -> None:
        self._image = image
        self._writable = writable
        self._folder = Path(tempfile.mkdtemp(prefix="farshore-stall-"))
        self.path = self._folder / image.name
        self._server: Running | None = None

    def __enter__(self) -> Self:
        self.path.touch()
        node = f"driver=file,node-name=disk,filename={self._image},read-only={'off' if self._writable else 'on'}"
        grows = "writable=on,growable=on" if self._writable else "writable=off"
        export = f"type=fuse,id=disk,node-name=disk,mountpoint={self.path},{grows}"
        self._server = Running([_PROGRAM, "--blockdev", node, "--export", export], self._folder / "log")
        deadline = time.monotonic() + _PATIENCE_S
        while not os.path.ismount(self.path):
            if not self._server.runs() or time.monotonic() > deadline:
                raise ProgramFailed(f"{_PROGRAM} shows no disk: {self._server.said()}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        if self._server:
            self.go_on()
            self._server.stop()
        with contextlib.suppress(ProgramFailed):
            ask(["umount", "--lazy", str(self.path)])
        shutil.rmtree(self._folder, ignore_errors=True)

    def moved_bytes(self) -> int:
        """Return what was read and written of the disk."""
        lines = Path(f"/proc/{self._pid}/io").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar")))

    def stall(self) -> None:
        """Stop answering."""
        os.kill(self._pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer again."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)

    @property
    def _pid(self) -> int:
        if self._server is None:
            raise ValueError("the disk is not there yet")
        return self._server.pid


class Stalled(Farshore):
    """Copies disks of which the last stalls at one end for ``hold_s`` seconds, once it has begun."""

    def __init__(self, end: End, hold_s: float) -> None:
        super().__init__(f"farshore, {end} stalls")
        self._end = end
        self.hold_s = hold_s
        self._behind: dict[Path, Path] = {}
        self.stalled_at: float | None = None

    def missing(self) -> str | None:
        """Return what has to be there for it."""
        return lacking(_PROGRAM) or (None if Path("/dev/fuse").exists() else "no /dev/fuse")

    def copy(self, place: Place, job: Job) -> Outcome:
        """Copy, and let the last disk stall meanwhile.

        Raises:
            ProgramFailed: an end failed, or the disk was never touched.
        """
        last = job.disks[-1]
        image = last.source if self._end == "source" else job.target(last)
        image.touch()
        with StallingDisk(image, writable=self._end == "target") as disk, self._stalling(disk):
            self._behind = {image: disk.path}
            outcome = super().copy(place, job)
        if self.stalled_at is None:
            raise ProgramFailed("the disk was not touched before all was over")
        return outcome

    def path(self, image: Path) -> Path:
        """Return the path by which an end knows an image."""
        return self._behind.get(image, image)

    @contextlib.contextmanager
    def _stalling(self, disk: StallingDisk) -> Iterator[None]:
        over = threading.Event()

        def watch() -> None:
            before = disk.moved_bytes()
            while disk.moved_bytes() - before < _BEGUN_BYTES:
                if over.wait(0.01):
                    return
            disk.stall()
            self.stalled_at = time.monotonic()
            over.wait(self.hold_s)
            disk.go_on()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def seconds_of(outcome: Outcome, disks: Sequence[Disk]) -> list[float]:
    """Return what each of ``disks`` took, by the report of the pulling end."""
    took = {Path(one["disk"]).name: float(one["seconds"]) for one in outcome.detail["disks"]}
    return [took[disk.source.name] for disk in disks]
