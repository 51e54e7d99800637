"""What a platform must offer. Capabilities are values: callers ask ``caps``, never ``isinstance``.

Keys: every mutating call takes a name or key that the caller chose and may call again with; the second call finds
the first one's work. Everything that is made carries its owner's tag, so that ``sweep`` finds it after a crash.

Errors are those of :mod:`farshore.errors`: ``Retry`` for what may pass, ``Permanent`` (``NotFound``, ``Conflict``,
``NoSpace``) for what will not, ``RestartFromCheckpoint`` when a point or draft is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol

from farshore.model.checkpoint import Level
from farshore.model.machine import Finding, Inventory, MachineFacts, PoolFacts, Power
from farshore.model.plan import Consistency, Quiesce
from farshore.model.task import (
    DetachResult,
    IsolationResult,
    MachineCreateParams,
    NetworkCreateParams,
    RetireResult,
)
from farshore.units import LEAF_SIZE, MIB


class Kind(Enum):
    """What an extent holds."""

    DATA = 1
    ZERO = 2


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of a disk, in bytes."""

    offset: int
    length: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Caps:
    """What a platform can do; see architecture.md section 5."""

    granularity_bytes: int = 512
    max_io_bytes: int = MIB
    max_parallel: int = 8
    needs_full_block: bool = False
    zero_is_hole: bool = True
    durable_on_write: bool = False
    reads_unsealed: bool = True
    fences_by: Literal["detach", "lease", "lock", "checksum", "none"] = "none"
    draft_lifetime_s: float | None = None
    max_points: int | None = None
    levels: tuple[Level, ...] = ("machine",)
    leaf_bytes: int = LEAF_SIZE


@dataclass(frozen=True, slots=True)
class SnapshotDisk:
    """One disk of a source point. ``incremental``: changes since the asked base can be named; else ``reason``."""

    disk_key: str
    size_bytes: int
    incremental: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A source point over all disks of its machines, taken at ``taken_at`` (seconds since the epoch).

    Survives the process that made it: :meth:`Source.find` returns it again.
    """

    point_id: str
    group_id: str
    taken_at: float
    level: Level
    machines: tuple[MachineFacts, ...]
    disks: tuple[SnapshotDisk, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def disk(self, key: str) -> SnapshotDisk:
        """Return the disk called ``key``; KeyError if the point has none."""
        for disk in self.disks:
            if disk.disk_key == key:
                return disk
        raise KeyError(key)

    def to_json(self) -> dict[str, Any]:
        """Return the point as it is written down; :meth:`from_json` reads it."""
        machines = [facts.model_dump(mode="json") for facts in self.machines]
        return {**asdict(self), "machines": machines, "evidence": dict(self.evidence)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Snapshot:
        """Return the point that :meth:`to_json` wrote down."""
        machines = tuple(MachineFacts.model_validate(facts) for facts in data["machines"])
        return cls(**{**data, "machines": machines, "disks": tuple(SnapshotDisk(**disk) for disk in data["disks"])})


class Reader(Protocol):
    """Reads one disk of a point. Safe to call from several threads at once."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset``; reads past the end of the disk are an error.

        Raises:
            RestartFromCheckpoint: the point is gone.
        """

    def read_held(self, offset: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` if that waits for no storage and no network; False: ask :meth:`read_into`.

        A source whose bytes may be in this machine's memory spares a change of threads with it. What is in ``buffer``
        after False is of no meaning. Errors are those of :meth:`read_into`.
        """

    def close(self) -> None:
        """Give back connections."""


class Source(Protocol):
    """Reads machines that are protected."""

    caps: Caps

    def snapshot(
        self,
        group_id: str,
        point_id: str,
        machine_ids: Sequence[str],
        bases: Mapping[str, str | None],
        consistency: Consistency,
        quiesce: Mapping[str, Quiesce] | None = None,
    ) -> Snapshot:
        """Take one point over all disks of ``machine_ids`` and begin tracking changes from it.

        ``consistency`` is what is wished for; the point's level is what was done, never more, and its evidence says why
        it is less. ``quiesce`` names what runs in machines (by id) around a freeze; nothing does without it.

        Works for running and stopped machines. Calling it again with the same ``point_id`` returns the same point.
        A left-over of an older attempt of the same group is removed first. ``bases`` says, per disk key, which
        *applied* point changes will be asked since; a disk whose base cannot serve is ``incremental=False``.
        """

    def find(self, point_id: str) -> Snapshot | None:
        """Return the point if it is still alive and readable, also after a restart of this process."""

    def changed(self, snapshot: Snapshot, disk_key: str, base: str | None) -> Iterator[Extent]:
        """Yield, in order and without overlap, what changed since ``base``; all allocated data where it is None.

        What is not named is unchanged (with a base) or zero (without).
        """

    def reader(self, snapshot: Snapshot, disk_key: str) -> Reader:
        """Return a reader of one disk of the point."""

    def release(self, group_id: str, point_id: str, machine_ids: Sequence[str], *, applied: bool) -> None:
        """End the reading of a point.

        ``applied``: it is the base of the next cycle now, older tracking of this group goes. Else the point goes, and
        tracking since the older base stays whole. Calling it for a point that is gone is no error.
        """

    def untrack(self, machine_id: str) -> None:
        """Remove every trace of ours from the machine: points, bitmaps, metadata."""

    def sweep(self, keep: Sequence[str]) -> list[str]:
        """End and remove points of ours that are not in ``keep`` (point ids); return what was removed."""


class Draft(Protocol):
    """A writable disk that grows on a base and becomes a point. Methods are safe from several threads."""

    draft_id: str

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write ``buffer`` at ``offset``."""

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zero, as a hole where the platform can."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read back (only where ``caps.reads_unsealed``)."""

    def flush(self) -> None:
        """Return when every write that had returned before the call is durable."""

    def seal(self) -> str:
        """Freeze into a native point and return its id. Flushes. Called again, returns the same id."""

    def abandon(self) -> None:
        """Remove the draft."""

    def close(self) -> None:
        """Give back what is held; the draft itself stays for a later :meth:`Target.open` with the same key."""


class Target(Protocol):
    """Keeps points."""

    caps: Caps

    def open(self, disk_key: str, size_bytes: int, base: str | None, key: str) -> Draft:
        """Open the draft named ``key`` of a disk, growing on the point ``base`` (all zero where None).

        The same key finds the same draft, with all that :meth:`Draft.flush` covered.

        Raises:
            NotFound: the base is gone.
            NoSpace: the pool is full.
        """

    def has(self, point: str) -> bool:
        """Say whether the point exists and is whole."""

    def read_into(self, point: str, offset: int, buffer: memoryview) -> None:
        """Read a sealed point."""

    def lease(self, point: str, tag: str) -> None:
        """Pin the point for ``tag``: it is not dropped while a lease is on it."""

    def release(self, tag: str) -> None:
        """Drop all leases of ``tag``."""

    def check_drop(self, point: str) -> None:
        """Raise the ``Conflict`` that :meth:`drop` would raise now; nothing changes. A point that is gone is none."""

    def drop(self, point: str) -> None:
        """Remove a point whole; other points keep their content. ``Conflict`` while it is leased."""

    def points(self) -> list[str]:
        """Return all sealed points and drafts (drafts as ``draft:<key>``)."""

    def abandon(self, key: str) -> None:
        """Remove the draft named ``key`` if it exists."""

    def usage(self) -> PoolFacts:
        """Return the pool's size and free space."""


class ManifestStore(Protocol):
    """Small objects with create-if-absent, beside the points."""

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with ``prefix``, sorted; tombstoned ones are left out."""

    def get(self, key: str) -> bytes:
        """Return an object; ``NotFound`` if absent or tombstoned."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object, durable on return. False if it exists (also as a tombstone), durable now as well."""

    def tombstone(self, key: str) -> None:
        """Take an object away for good: it is not listed, not readable, and its key cannot be created again."""


@dataclass(frozen=True, slots=True)
class OpenDisk:
    """A disk of a machine that is off, as a file that reads and writes like the raw disk."""

    disk_id: str
    path: Path
    size_bytes: int
    bus: str = "virtio"
    boot: bool = False


class Compute(Protocol):
    """Machines and networks of a site."""

    caps: Caps

    def inventory(self) -> Inventory:
        """Return what the site holds."""

    def facts(self, machine_id: str) -> MachineFacts:
        """Return one machine; ``NotFound``."""

    def check(self) -> list[Finding]:
        """Prove that what is needed works here: access, tools, pool, permissions."""

    def create(self, spec: MachineCreateParams) -> str:
        """Make a machine as ``spec`` says, powered off, and return its id. Same name and tag: the same machine."""

    def isolated_network(self, spec: NetworkCreateParams) -> None:
        """Make a network without a way out, the hypervisor's own addresses closed too (but for its DHCP)."""

    def open_disks(self, machine_id: str) -> AbstractContextManager[tuple[OpenDisk, ...]]:
        """Open the writable layers of a machine that we made and that is off; no checkpoint is written.

        Raises:
            Conflict: it is on, or its disks are not ours.
            Permanent: this platform, or this node, cannot.
        """

    def start(self, machine_id: str) -> None:
        """Power on; nothing to do when on. ``Fenced`` if the machine is fenced."""

    def stop(self, machine_id: str, timeout_s: float) -> bool:
        """Ask for a clean shutdown and wait; False if it is still on after ``timeout_s``."""

    def power_off(self, machine_id: str) -> None:
        """Cut the power; nothing to do when off."""

    def power(self, machine_id: str) -> Power:
        """Return the state, read from the platform now."""

    def fence(self, machine_id: str, epoch: int) -> bool:
        """Keep the machine from starting (autostart off, marked, start refused where possible); read back."""

    def unfence(self, machine_id: str) -> None:
        """Lift the fence."""

    def detach(self, machine_id: str) -> DetachResult:
        """Let a machine that we made leave the chain of points, in the background; look how far it is.

        Called again until it is ``done``; it may be cut short at any time. Nothing to do where disks are whole copies.
        """

    def addresses(self, machine_id: str) -> list[str]:
        """Return the machine's IP addresses as far as the platform knows them."""

    def console(self, machine_id: str, tail_bytes: int = 16384) -> str:
        """Return the end of the machine's console text."""

    def screen(self, machine_id: str) -> bytes:
        """Return what the machine shows on its screen, a PNG or a JPEG; ``NotFound`` if it has none or is off."""

    def agent(self, machine_id: str, request: Mapping[str, Any], timeout_s: float) -> Any:
        """Ask the guest's agent, in the words of the QEMU guest agent; return what it answers under ``return``.

        Raises:
            Retry: it does not answer, or not yet.
            Permanent: it refuses, or the machine has no agent.
        """

    def isolation(self, tag: str, networks: Sequence[str], *, canaries: bool) -> IsolationResult:
        """Try whether the isolated ``networks`` of ``tag`` lead anywhere, and count what went through them.

        ``canaries``: with stand-ins for guests, while no machine is on yet; else only the counters are read.
        """

    def sweep(self, tag: str) -> tuple[list[str], list[str]]:
        """Remove machines, disks, networks and rules that carry ``tag``; return (removed, still there)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a port said. ``error`` is how the connection ended where neither side closed it in good order."""

    data: bytes
    error: OSError | None = None


class Reach(Protocol):
    """Speaks to ports of machines in an isolated network, from within it; ``where`` names for people who does."""

    where: str

    def exchange(
        self, address: str, port: int, send: bytes, until: bytes, limit_bytes: int, timeout_s: float
    ) -> Answer:
        """Connect, send, and read until ``until`` has come (never, where it is empty), the limit, or the end.

        Raises:
            Retry: it could not be tried now.
            Permanent: it cannot be tried.
        """


@dataclass(frozen=True, slots=True)
class Boots:
    """How to tell that a machine that is on has booted: ``look(machine_id)``, asked every ``poll_s``.

    One that has not after ``within_s`` has failed.
    """

    look: Callable[[str], bool]
    poll_s: float
    within_s: float


@dataclass(frozen=True, slots=True)
class Platform:
    """One site's platform, opened. ``compute`` is None where the platform only keeps disks (``file``).

    ``adopt(disk_key, size_bytes, image, key)`` makes a point of an image that lies in the pool already, and returns it;
    the image stays as it is, and is shorter than the disk or as long. The same key finds the same point. None where
    the platform cannot. ``machine:<machine id>/<disk id>`` names the disk of a machine that is fenced and off;
    ``Conflict`` where it is not.

    ``set_rate(operation, per_s)`` holds this process to a rate of calls of one of the provider's operations; None lifts
    it. None where the provider does not count.

    ``traces(machine_id)`` names whatever of ours is on a machine that is protected, read now; a fence is named as
    ``fence ...``. None where the platform cannot tell.

    ``retire(machine_id, epoch)`` deletes an old primary with its disks for good: one that is off, and fenced in
    ``epoch`` or an earlier one; ``Conflict`` where it is not. What others may use is kept, and told. ``NotFound``:
    there is no such machine. None where the platform cannot.

    ``boots`` is what the provider itself can say of a machine that has started; None where it says nothing.

    ``reach(machine_id)`` returns who speaks to the machine's ports where this node cannot; it returns None where the
    node can. None where nodes always can.
    """

    type: str
    source: Source
    target: Target
    manifests: ManifestStore
    inventory: Callable[[], Inventory]
    compute: Compute | None = None
    adopt: Callable[[str, int, str, str], str] | None = None
    traces: Callable[[str], list[str]] | None = None
    set_rate: Callable[[str, float | None], None] | None = None
    retire: Callable[[str, int], RetireResult] | None = None
    boots: Boots | None = None
    reach: Callable[[str], Reach | None] | None = None
