"""What every tool is asked: copy these disks from the source's end to the target's.

The target's end starts last and its run is the time, from the start of its process to its end, with what it wrote
flushed. A tool that has not got what it needs says so and is reported as not measured.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from benchmarks.images import Disk
from benchmarks.links import ROOT, End, Place
from benchmarks.processes import Running, Usage, listening

#: Where servers listen; the namespaces are ours alone.
PORT: Final = 7700
TIMEOUT_S: Final = 900.0


@dataclass(frozen=True, slots=True)
class Job:
    """Disks to copy, and how.

    Where the disks have bases, ``targets`` hold copies of them at the start; else they do not exist yet.
    """

    disks: tuple[Disk, ...]
    folder: Path
    connections: int = 8
    options: tuple[str, ...] = ()

    @property
    def data_bytes(self) -> int:
        """Bytes that have to be moved."""
        return sum(disk.data_bytes for disk in self.disks)

    @property
    def incremental(self) -> bool:
        """Whether the targets hold bases."""
        return self.disks[0].base is not None

    def target(self, disk: Disk) -> Path:
        """Return where a disk's copy goes."""
        return self.folder / "targets" / disk.source.name

    @property
    def targets(self) -> list[Path]:
        """Return where the copies go."""
        return [self.target(disk) for disk in self.disks]


@dataclass(slots=True)
class Outcome:
    """One copy by one tool, compared bit by bit afterwards.

    ``seconds`` is the life of the target's process. What says it itself has ``own_seconds`` from the first attempt to
    connect until it is done, and the CPU seconds of source and target, which leave the start of an interpreter out.
    """

    peer: str
    place: str
    data_bytes: int
    seconds: float
    source: Usage
    target: Usage
    command: list[str]
    load_average: float = 0.0
    wire_bytes: int | None = None
    own_seconds: float | None = None
    own_cpu_s: tuple[float, float] | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Bytes of data per second of the process."""
        return self.data_bytes / self.seconds

    @property
    def own_rate(self) -> float:
        """Bytes of data per second from the first attempt to connect."""
        return self.data_bytes / (self.own_seconds or self.seconds)

    def cpu_per_gib(self, *, own: bool = False) -> tuple[float, float]:
        """Return CPU seconds per GiB of data at the source and at the target."""
        gib = self.data_bytes / (1 << 30)
        if own and self.own_cpu_s:
            return self.own_cpu_s[0] / gib, self.own_cpu_s[1] / gib
        return self.source.cpu_s / gib, self.target.cpu_s / gib

    def row(self) -> dict[str, Any]:
        """Return it for JSON."""
        source, target = self.cpu_per_gib()
        return {
            "peer": self.peer,
            "place": self.place,
            "data_bytes": self.data_bytes,
            "seconds": round(self.seconds, 3),
            **({"own_seconds": round(self.own_seconds, 3)} if self.own_seconds else {}),
            "mib_per_s": round(self.rate / (1 << 20), 1),
            "source_cpu_s_per_gib": round(source, 3),
            "target_cpu_s_per_gib": round(target, 3),
            "source_peak_rss_mib": round(self.source.peak_rss_bytes / (1 << 20), 1),
            "target_peak_rss_mib": round(self.target.peak_rss_bytes / (1 << 20), 1),
            "link_bytes": self.wire_bytes,
            "load_average": self.load_average,
            "command": " ".join(self.command),
            **({"detail": self.detail} if self.detail else {}),
        }


class Peer(Protocol):
    """A tool that copies disks."""

    name: str
    #: Whether it uses a base that is there already.
    incremental: bool

    def missing(self) -> str | None:
        """Return what has to be installed for it; None where all is there."""

    def copy(self, place: Place, job: Job) -> Outcome:
        """Copy the disks once.

        Raises:
            ProgramFailed: a program of it failed.
        """


def lacking(*programs: str) -> str | None:
    """Return those of ``programs`` that are not installed."""
    gone = [name for name in programs if shutil.which(name) is None]
    return f"not installed: {', '.join(gone)}" if gone else None


def serve_and_pull(
    peer: str, place: Place, job: Job, serve: Sequence[str], pull: Sequence[str], *, ends: bool = False
) -> Outcome:
    """Start the source's end, wait until it listens on :data:`PORT`, run the target's end, stop the source's.

    Args:
        peer: the tool's name.
        place: where.
        job: what.
        serve: the command of the source's end.
        pull: the command of the target's end.
        ends: the source's end ends by itself when the target's has.

    Raises:
        ProgramFailed: an end failed.
    """
    with Running(place.argv("source", serve), log(job, peer, "source"), env=environment()) as source:
        listening(source, PORT)
        before = place.wire_bytes()
        with Running(place.argv("target", pull), log(job, peer, "target"), env=environment()) as target:
            target.wait(TIMEOUT_S)
        after = place.wire_bytes()
        if ends:
            source.wait(30)
        source.stop()
        return Outcome(
            peer=peer,
            place=place.name,
            data_bytes=job.data_bytes,
            seconds=target.seconds,
            source=source.usage,
            target=target.usage,
            command=list(pull),
            wire_bytes=after - before if before is not None and after is not None else None,
        )


def log(job: Job, peer: str, end: End) -> Path:
    """Return where an end's output goes."""
    return job.folder / f"{peer.replace(' ', '-')}.{end}.log"


def environment() -> dict[str, str]:
    """Return the environment of what is measured: nothing of ours but the way to this checkout's code.

    Byte code is cached, as it is where a program is installed; the first run of all warms that up.
    """
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "LC_ALL", "TERM", "USER") if key in os.environ}
    return {
        **kept,
        "PYTHONPATH": f"{ROOT}/engine:{ROOT}/engine/src",
        "PYTHONPYCACHEPREFIX": str(ROOT / ".cache/bench/pycache"),
    }


def python(module: str, *words: str) -> list[str]:
    """Return the command that runs one of our modules."""
    return [sys.executable, "-m", module, *words]
