"""Machines that are protected: points of running and stopped domains, and what changed between them.

Order of a point: record ``beginning`` → (freeze) → (pause) → checkpoint and export of each machine → (resume) → (thaw)
→ record ``open``.
Whatever a crash leaves is found by its names and by the record, and removed before the machine's next point begins.
See docs/internals/kvm.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from farshore import durable
from farshore.errors import FarshoreError, Invalid, NoSpace, NotFound, RestartFromCheckpoint, Retry, Unavailable
from farshore.model.checkpoint import Level
from farshore.model.machine import MachineFacts, disk_key
from farshore.model.plan import Consistency, Quiesce
from farshore.platforms.contract import Caps, Extent, Snapshot
from farshore.platforms.kvm import backup, detaching, freezing, machines, pausing, reading, resting, tracking
from farshore.platforms.kvm.connection import Hypervisor, asking
from farshore.platforms.kvm.domain import Domain
from farshore.platforms.kvm.points import DiskRecord, MachineRecord, PointRecord, Points, short
from farshore.platforms.nbd.launcher import Launcher, check_socket_path
from farshore.units import MIB

CAPS: Final = Caps(
    granularity_bytes=64 * 1024, max_io_bytes=MIB, max_parallel=8, levels=("machine", "group", "application")
)
#: A guest's writes fill the scratch files of a running job, and a full file system would fail them.
MIN_SCRATCH_BYTES: Final = 256 * MIB
_KEY: Final = "source:"
#: A guest that may be frozen is asked for so long.
_SILENT_S: Final = 900.0
_log = logging.getLogger(__name__)


class KvmSource:
    """Reads domains of one hypervisor; see :class:`farshore.platforms.contract.Source`.

    Args:
        hypervisor: where the machines are.
        scratch: a folder for records, sockets and scratch files, ours alone.
        launcher: starts the daemons that show disks of stopped machines.
    """

    caps = CAPS

    def __init__(self, hypervisor: Hypervisor, scratch: Path, launcher: Launcher) -> None:
        self._hypervisor = hypervisor
        self._launcher = launcher
        self._points = Points(scratch / "points")
        self._jobs = scratch / "jobs"
        check_socket_path(self._jobs / f"{'x' * 12}-{'x' * 12}.s", "platform.scratch")
        durable.make_dir(self._jobs)
        _give_to_qemu(self._jobs)
        self._locks: dict[str, threading.RLock] = {}
        self._locks_lock = threading.Lock()
        #: (point, machine) whose agent does not say whether it is frozen, since when.
        self._silent: dict[tuple[str, str], float] = {}
        self._beginning: set[str] = set()

    # --- points --------------------------------------------------------------------------------------------------

    def snapshot(
        self,
        group_id: str,
        point_id: str,
        machine_ids: Sequence[str],
        bases: Mapping[str, str | None],
        consistency: Consistency,
        quiesce: Mapping[str, Quiesce] | None = None,
    ) -> Snapshot:
        """Take a point over all disks of the machines.

        Raises:
            NotFound: a machine does not exist.
            Retry: a machine is busy with a job that is not ours (``machine-busy``).
            NoSpace: no room for scratch files.
            RestartFromCheckpoint: the point was taken before and is gone (``source-point-gone``).
        """
        if not machine_ids:
            raise Invalid("a point needs at least one machine", field="machine_ids")
        with self.alone(machine_ids):
            existing = self._find(point_id)
            if existing:
                return existing
            self._let_go()
            handles = {machine_id: self._hypervisor.domain(machine_id) for machine_id in machine_ids}
            self._clear_left_overs(handles)
            for machine_id, handle in handles.items():
                if tracking.name(point_id) in tracking.checkpoints(handle):
                    raise RestartFromCheckpoint(
                        f"point {point_id} of machine {machine_id} is gone; its name cannot be used again",
                        code="source-point-gone",
                        hint="Order a point with a new id.",
                    )
            # Before the point: removing a bitmap writes to the image, and a stopped machine's must rest from then on.
            kept = {tracking.name(base) for base in bases.values() if base}
            for handle in handles.values():
                self._forget_all_but(kept, handle)
            return self._begin(group_id, point_id, handles, bases, consistency, quiesce or {}).snapshot()

    def find(self, point_id: str) -> Snapshot | None:
        """Return the point if it can still be read; a daemon that is missing is started again."""
        record = self._points.load(point_id)
        if record is None:
            return None
        with self.alone([machine.machine_id for machine in record.machines]):
            return self._find(point_id)

    def _find(self, point_id: str) -> Snapshot | None:
        record = self._points.load(point_id)
        if record is None or record.state != "open":
            return None
        try:
            for machine in record.machines:
                if not self._lives(machine, point_id):
                    return None
        except NotFound:
            return None
        return record.snapshot()

    def _lives(self, machine: MachineRecord, point_id: str) -> bool:
        handle = self._hypervisor.domain(machine.machine_id)
        if machine.running:
            try:
                return backup.socket_of(handle) == Path(machine.socket)
            except Retry:
                return False
        try:
            for disk in machine.disks:
                resting.still_rests(handle, disk)
        except FarshoreError:
            return False
        key = _daemon_key(point_id, machine.machine_id)
        if not self._launcher.find(key):
            resting.serve(self._launcher, key, machines.read(handle), list(machine.disks))
        return True

    def changed(self, snapshot: Snapshot, disk_key: str, base: str | None) -> Iterator[Extent]:
        """Yield extents; ``base`` must be the one that the point was asked for with, or None for all data."""
        machine, disk = self._record(snapshot.point_id).disk(disk_key)
        if base is not None and (base != disk.base or not disk.incremental):
            raise Invalid(
                f"changes of {disk_key} since {base} are not known: {disk.reason or f'the base is {disk.base}'}",
                code="base-unusable",
                field="base",
            )
        return reading.changes(machine, disk, base, lambda: self._check(machine, disk))

    def reader(self, snapshot: Snapshot, disk_key: str) -> reading.KvmReader:
        """Return a reader of one disk."""
        machine, disk = self._record(snapshot.point_id).disk(disk_key)
        return reading.KvmReader(machine, disk, lambda: self._check(machine, disk))

    def _check(self, machine: MachineRecord, disk: DiskRecord) -> None:
        if not machine.running:
            handle = None if disk.identity else self._hypervisor.domain(machine.machine_id)
            resting.still_rests(handle, disk)

    def _record(self, point_id: str) -> PointRecord:
        record = self._points.load(point_id)
        if record is None:
            raise NotFound(f"point {point_id} does not exist", point=point_id)
        return record

    # --- taking a point ------------------------------------------------------------------------------------------

    def _begin(
        self,
        group_id: str,
        point_id: str,
        handles: Mapping[str, Any],
        bases: Mapping[str, str | None],
        consistency: Consistency,
        quiesce: Mapping[str, Quiesce],
    ) -> PointRecord:
        self._need_room()
        facts = {machine_id: machines.facts(handle) for machine_id, handle in handles.items()}
        running = [machine_id for machine_id in handles if facts[machine_id].power != "off"]
        awake = tuple(m for m in running if facts[m].power == "on")
        common = consistency != "machine" and len(handles) > 1
        record = PointRecord(
            point_id=point_id,
            group_id=group_id,
            machines=tuple(
                MachineRecord(machine_id=m, running=m in running, socket=str(self._socket(point_id, m)))
                for m in handles
            ),
            paused=awake if common else (),
            frozen=awake if consistency == "application" else (),
        )
        self._beginning.add(point_id)
        try:
            self._points.save(record)
            taken: dict[str, MachineRecord] = {}
            for machine_id in handles.keys() - running:
                taken[machine_id] = self._take_stopped(point_id, handles[machine_id], bases)
            plans = [backup.plan(handles[m], point_id, bases, self._socket(point_id, m)) for m in running]
            with (
                freezing.frozen([(m, handles[m]) for m in record.frozen], quiesce) as frozen,
                pausing.paused([(m, handles[m]) for m in record.paused]) as pauses,
            ):
                taken_at = time.time()
                begun = [backup.begin(plan) for plan in plans]
            for plan in begun:
                taken[plan.found.machine_id] = backup.record(plan)
            for machine_id in handles.keys() - running:
                for disk in taken[machine_id].disks:
                    resting.still_rests(handles[machine_id], disk)
            level: Level = "group" if common else "machine"
            short_of = _short_of_application(facts, frozen) if consistency == "application" else None
            if short_of == []:
                level = "application"
            record = record.model_copy(
                update={
                    "state": "open",
                    "taken_at": taken_at,
                    "level": level,
                    "evidence": _evidence(common, pauses, taken, frozen, short_of),
                    "machines": tuple(taken[m].model_copy(update={"facts": facts[m]}) for m in handles),
                    "paused": (),
                    "frozen": (),
                }
            )
            self._points.save(record)
        except BaseException as error:
            with contextlib.suppress(FarshoreError):
                self._discard(record)
            if isinstance(error, Retry) and error.code in {"machine-paused", "machine-frozen"}:
                stuck = error.evidence["machines"] if error.code == "machine-frozen" else ()
                # so that the next try, or the next sweep, lets them go
                self._points.save(record.model_copy(update={"frozen": tuple(stuck)}))
            raise
        finally:
            self._beginning.discard(point_id)
        return record

    def _need_room(self) -> None:
        free = shutil.disk_usage(self._jobs).free
        if free < MIN_SCRATCH_BYTES:
            raise NoSpace(
                f"{self._jobs} has {free // MIB} MiB free, less than {MIN_SCRATCH_BYTES // MIB} MiB",
                hint="Make room, or move the platform's scratch folder: a full one would fail the guest's writes.",
                free_bytes=free,
            )

    def _take_stopped(self, point_id: str, handle: Any, bases: Mapping[str, str | None]) -> MachineRecord:
        found = machines.read(handle)
        known = {
            disk.target: (base, tracking.name(base))
            for disk in found.disks
            if (base := bases.get(disk_key(found.machine_id, disk.target)))
        }
        disks = resting.take(handle, found, tracking.name(point_id), known)
        return resting.serve(self._launcher, _daemon_key(point_id, found.machine_id), found, disks)

    def _socket(self, point_id: str, machine_id: str) -> Path:
        return self._jobs / f"{short(point_id)}-{short(machine_id)}.s"

    # --- ending --------------------------------------------------------------------------------------------------

    def release(
        self,
        group_id: str,  # noqa: ARG002  a point's id is enough here
        point_id: str,
        machine_ids: Sequence[str],
        *,
        applied: bool,
    ) -> None:
        """End the reading of a point; keep its tracking and no other (``applied``), or all but its own."""
        record = self._points.load(point_id)
        ids = {*machine_ids, *(machine.machine_id for machine in record.machines)} if record else {*machine_ids}
        with self.alone(sorted(ids)):
            for machine_id in sorted(ids):
                try:
                    handle = self._hypervisor.domain(machine_id)
                except NotFound:
                    continue
                self._end_reading(point_id, machine_id, handle)
                if applied:
                    known = tracking.checkpoints(handle)
                    if tracking.name(point_id) in known:  # else older tracking is all that there is
                        tracking.forget(handle, known - {tracking.name(point_id)})
                else:
                    self._forget_point(handle, point_id)
            self._points.remove(point_id)

    def untrack(self, machine_id: str) -> None:
        """Remove our jobs, checkpoints and bitmaps of a machine, also those that libvirt does not know any more."""
        with self.alone([machine_id]):
            handle = self._hypervisor.domain(machine_id)
            self._clear_left_overs({machine_id: handle})
            for checkpoint, targets in tracking.orphans(handle).items():
                tracking.adopt(handle, checkpoint, targets, _others(machines.read(handle), targets))
            tracking.forget(handle, tracking.checkpoints(handle))
            left = tracking.orphans(handle)
            if left:
                raise Retry(
                    f"bitmaps {sorted(left)} of machine {machine_id} could not be removed", code="not-untracked"
                )

    def traces(self, machine_id: str) -> list[str]:
        """Name what is ours on a machine: jobs, checkpoints, bitmaps, records and files of points, its fence."""
        with self.alone([machine_id]):
            handle = self._hypervisor.domain(machine_id)
            found = [f"checkpoint {name}" for name in tracking.checkpoints(handle)]
            found += [
                f"bitmap {name} of {target}"
                for name, targets in tracking.orphans(handle).items()
                for target in sorted(targets)
            ]
            with contextlib.suppress(Retry):  # a job of somebody else
                if (socket := backup.socket_of(handle)) is not None and socket.parent == self._jobs:
                    found.append(f"backup job at {socket.name}")
            for record in self._points.all():
                if any(machine.machine_id == machine_id for machine in record.machines):
                    found.append(f"point {record.point_id}")
            found += [f"file {path.name}" for path in self._jobs.glob(f"*-{short(machine_id)}.*")]
            fence = machines.defined(handle).fence
            if fence is not None:
                found.append(f"fence of epoch {fence.epoch}")
        return sorted(found)

    def sweep(self, keep: Sequence[str]) -> list[str]:
        """End the reading of points that are not in ``keep``; what tracks changes since them stays.

        A point that was published but never released may still be somebody's base; the next point of its machine names
        its bases and removes the rest.
        """
        self._let_go()
        removed = []
        for record in list(self._points.all()):
            if record.point_id in keep or record.point_id in self._beginning:
                continue
            with self.alone([machine.machine_id for machine in record.machines]):
                self._close(record)
            removed += [] if record.frozen else [record.point_id]
        live = {record.point_id for record in self._points.all()} | self._beginning
        for key in list(self._launcher.keys()):
            if key.startswith(_KEY) and key.removeprefix(_KEY).rpartition(":")[0] not in live:
                self._launcher.stop(key)
        return removed

    def _close(self, record: PointRecord) -> None:
        """End a point's reading and forget its record; tracking that never became whole goes too."""
        for machine in record.machines:
            with contextlib.suppress(NotFound):
                handle = self._hypervisor.domain(machine.machine_id)
                self._end_reading(record.point_id, machine.machine_id, handle)
                if record.state == "beginning":
                    self._forget_point(handle, record.point_id)
        if not record.frozen:  # as long as a guest may be, something has to remember it
            self._points.remove(record.point_id)

    def _discard(self, record: PointRecord) -> None:
        self._close(record.model_copy(update={"state": "beginning", "frozen": ()}))

    def _end_reading(self, point_id: str, machine_id: str, handle: Any) -> None:
        socket = self._socket(point_id, machine_id)
        found = None
        with contextlib.suppress(Retry):  # busy with a job of somebody else: then ours is gone
            found = backup.socket_of(handle)
        if found == socket:
            backup.end(handle)
        self._launcher.stop(_daemon_key(point_id, machine_id))
        for path in self._jobs.glob(f"{socket.stem}*"):
            path.unlink(missing_ok=True)

    def _forget_point(self, handle: Any, point_id: str) -> None:
        """Remove a point's bitmaps, also those that libvirt was not told of yet."""
        checkpoint = tracking.name(point_id)
        if checkpoint not in tracking.checkpoints(handle):
            targets = tracking.orphans(handle).get(checkpoint)
            if not targets:
                return
            tracking.adopt(handle, checkpoint, targets, _others(machines.read(handle), targets))
        tracking.forget(handle, {checkpoint})

    def _clear_left_overs(self, handles: Mapping[str, Any]) -> None:
        """End what an earlier attempt left on these machines.

        Raises:
            Retry: a job of somebody else runs.
        """
        for record in list(self._points.all()):
            if {machine.machine_id for machine in record.machines} & handles.keys():
                self._close(record)
        for handle in handles.values():
            socket = backup.socket_of(handle)
            if socket is None:
                continue
            if socket.parent != self._jobs:
                raise Retry(f"another backup of machine {handle.name()} is running", code="machine-busy")
            backup.end(handle)
        for handle in handles.values():
            detaching.interrupt(handle)

    def _forget_all_but(self, kept: set[str], handle: Any) -> None:
        try:
            tracking.forget(handle, tracking.checkpoints(handle) - kept)
        except FarshoreError as error:
            # They do no harm; the next point tries again.
            _log.warning("stale checkpoints of %s stay for now: %s", handle.name(), error)

    def _let_go(self) -> None:
        """Let machines run, and thaw guests, that a life before ours stopped for a point and did not come to let go."""
        for record in list(self._points.all()):
            if record.point_id in self._beginning:
                continue
            for machine_id in record.paused:
                with contextlib.suppress(NotFound):
                    handle = self._hypervisor.domain(machine_id)
                    if machines.power(handle) == "paused":
                        with asking(f"resuming machine {machine_id}"):
                            handle.resume()
                        _log.warning("resumed machine %s, left paused by point %s", machine_id, record.point_id)
            still = tuple(machine_id for machine_id in record.frozen if self._may_be_frozen(record, machine_id))
            if still != record.frozen:
                self._points.save(record.model_copy(update={"frozen": still}))

    def _may_be_frozen(self, record: PointRecord, machine_id: str) -> bool:
        """Thaw a guest that an earlier life may have frozen; say whether it has to be tried again.

        Whether it has an agent at all is not known: one that has said nothing for long was never frozen, or is beyond
        our help.
        """
        try:
            handle = self._hypervisor.domain(machine_id)
            if machines.power(handle) != "off" and freezing.thaw(handle):
                _log.warning("thawed machine %s, left frozen by point %s", machine_id, record.point_id)
        except NotFound:
            pass
        except Unavailable:
            return True
        except FarshoreError as error:
            since = self._silent.setdefault((record.point_id, machine_id), time.monotonic())
            if time.monotonic() - since < _SILENT_S:
                _log.info("machine %s cannot be asked whether it is frozen: %s", machine_id, error)
                return True
            _log.warning("machine %s may be frozen since point %s: %s", machine_id, record.point_id, error)
        self._silent.pop((record.point_id, machine_id), None)
        return False

    @contextlib.contextmanager
    def alone(self, machine_ids: Sequence[str]) -> Iterator[None]:
        """Hold these machines against our other threads."""
        with self._locks_lock:
            locks = [self._locks.setdefault(machine_id, threading.RLock()) for machine_id in sorted(set(machine_ids))]
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            yield


def _daemon_key(point_id: str, machine_id: str) -> str:
    return f"{_KEY}{point_id}:{machine_id}"


def _others(found: Domain, targets: set[str]) -> list[str]:
    return [*(disk.target for disk in found.disks if disk.target not in targets), *found.other_targets]


def _short_of_application(facts: Mapping[str, MachineFacts], frozen: Mapping[str, freezing.Frozen]) -> list[str]:
    """Return why a point cannot count as application-consistent, a sentence per machine; empty if it can."""
    reasons = []
    for machine_id, one in facts.items():
        outcome = frozen.get(machine_id)
        if outcome is None:
            reasons.append(f"{one.name}: it is {one.power}; nobody can say whether it was stopped in order")
        elif outcome.reason:
            reasons.append(f"{one.name}: {outcome.reason}")
    return reasons


def _evidence(
    common: bool,
    pauses: Mapping[str, float],
    taken: Mapping[str, MachineRecord],
    frozen: Mapping[str, freezing.Frozen],
    short_of: list[str] | None,
) -> dict[str, Any]:
    evidence: dict[str, Any] = {
        "machines": {m: "running" if record.running else "stopped" for m, record in taken.items()}
    }
    if common:
        evidence["method"] = "paused together"
        evidence["paused_s"] = {m: round(seconds, 4) for m, seconds in pauses.items()}
        evidence["longest_pause_s"] = round(max(pauses.values(), default=0.0), 4)
    else:
        evidence["method"] = "one transaction over the disks of each machine"
    if short_of is not None:
        if not short_of:
            evidence["method"] = "file systems frozen by the guest agents, then " + evidence["method"]
        evidence["frozen"] = {m: outcome.told() for m, outcome in frozen.items()}
        evidence["longest_freeze_s"] = round(max((one.frozen_s for one in frozen.values()), default=0.0), 4)
        if short_of:
            evidence["below_application"] = short_of
    return evidence


def _give_to_qemu(folder: Path) -> None:
    """Let the user that runs guests make sockets in ``folder``; libvirt labels the scratch files by itself."""
    if os.geteuid() != 0:
        return
    for user in ("libvirt-qemu", "qemu"):
        with contextlib.suppress(KeyError):
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
            return
