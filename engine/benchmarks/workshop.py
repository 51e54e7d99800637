"""Where copies are made: images, places for targets, and the rule that each result is compared bit by bit."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self

from benchmarks.images import Changed, Disk, Full, Images, copy_sparse
from benchmarks.links import Place
from benchmarks.peers.base import Job, Outcome, Peer
from benchmarks.processes import ProgramFailed, ask

MIB: Final = 1 << 20
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - the kernel's name for files in memory
#: What is left free on a file system.
_RESERVE: Final = 2 << 30


class Workshop:
    """A scratch folder; use as a context manager. Images stay in it, all else goes.

    Only one can be open at a time on a folder: two measurements would measure each other.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._scratch = folder.resolve()
        self.say = say
        self._run = self._scratch / f"run-{os.getpid()}"
        self._memory: Path | None = None

    def __enter__(self) -> Self:
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._lock = (self._scratch / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ProgramFailed(f"another measurement is using {self._scratch}") from error
        for left in self._scratch.glob("run-*"):
            shutil.rmtree(left)
        self._run.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._run, ignore_errors=True)
        if self._memory:
            shutil.rmtree(self._memory, ignore_errors=True)
        self._lock.close()

    @property
    def run(self) -> Path:
        """The folder of this run."""
        return self._run

    def disk(self, spec: Full | Changed) -> Disk:
        """Return an image, made where it is not there yet.

        Raises:
            ProgramFailed: there is no room for it.
        """
        images = Images(self._scratch / "images")
        base = spec if isinstance(spec, Full) else spec.base
        if not (self._scratch / "images" / spec.name).exists():
            self._room(self._scratch, 2 * base.size_bytes)
            if base.size_bytes >= 256 * MIB:
                self.say(f"making {spec.name}")
        return images.full(spec) if isinstance(spec, Full) else images.changed(spec)

    def in_memory(self, disk: Disk) -> Disk:
        """Return a disk without a base as a copy in memory, if there is room for it and a target; else as it is."""
        need = 2 * disk.data_bytes + _RESERVE
        if not _MEMORY.is_dir() or min(shutil.disk_usage(_MEMORY).free, _free_memory()) < need:
            self.say("no room in memory: measuring on the scratch folder's disk")
            return disk
        self._memory = self._memory or _MEMORY / f"farshore-bench-{os.getpid()}"
        self._memory.mkdir(mode=0o700, exist_ok=True)
        copy = self._memory / disk.source.name
        if not copy.exists():
            copy_sparse(disk.source, copy)
        return Disk(copy, disk.data_bytes)

    def copy(self, peer: Peer, place: Place, disks: Sequence[Disk], *, connections: int = 8) -> Outcome:
        """Let a tool copy disks, compare them, and remove the copies.

        Raises:
            ProgramFailed: a program failed, or a copy is not identical.
        """
        inside = self._memory if self._memory and disks[0].source.parent == self._memory else self._run
        folder = inside / "job"
        shutil.rmtree(folder, ignore_errors=True)
        job = Job(tuple(disks), folder, connections)
        self._room(inside, sum(disk.data_bytes if disk.base is None else _allocated(disk.base) for disk in disks))
        (folder / "targets").mkdir(parents=True)
        for disk in disks:
            _read(disk.source)
            if disk.base is not None:
                copy_sparse(disk.base, job.target(disk))
                _flush(job.target(disk))
        if inside == self._memory:
            _find_pages(folder / "pages", sum(disk.data_bytes for disk in disks))
        load = round(os.getloadavg()[0], 2)
        try:
            outcome = peer.copy(place, job)
            outcome.load_average = load
            for disk in disks:
                ask(["cmp", str(disk.source), str(job.target(disk))], timeout_s=300)
        except ProgramFailed as error:
            raise ProgramFailed(f"{peer.name} over {place.name}: {error}") from error
        shutil.rmtree(folder)
        source, target = outcome.cpu_per_gib()
        self.say(
            f"{peer.name:24s} {place.name:24s} {outcome.seconds:7.2f} s  {outcome.rate / MIB:7.1f} MiB/s  "
            f"CPU s/GiB {source:5.2f} {target:5.2f}  load {load}"
        )
        return outcome

    def _room(self, folder: Path, size_bytes: int) -> None:
        free = shutil.disk_usage(folder).free
        if free < size_bytes + _RESERVE:
            raise ProgramFailed(f"{folder} has {free // MIB} MiB free, and {(size_bytes + _RESERVE) // MIB} are needed")


def _find_pages(path: Path, size_bytes: int) -> None:
    """Have the kernel find the pages that a copy will take, and give them back.

    A virtual machine returns what is free to its host, and to get a page again costs more than to copy it: whoever
    comes first would pay for all.
    """
    block = bytes(MIB)
    with path.open("wb", buffering=0) as image:
        for _ in range(-(-size_bytes // MIB)):
            image.write(block)
    path.unlink()


def _read(path: Path) -> None:
    """Bring a file into the page cache."""
    buffer = bytearray(MIB)
    with path.open("rb", buffering=0) as image:
        while image.readinto(buffer):
            pass


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def _free_memory() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
