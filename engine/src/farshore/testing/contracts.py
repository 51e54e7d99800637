"""The suites that every platform passes. Free of any test framework: a method per behaviour, plain ``assert``.

A platform's tests make a *stand* (fresh, with its own storage) and call every ``check_...`` method of a suite with it;
:func:`checks` lists them. The stands below say what a platform has to bring: how to write as the guest would, and how
to make things go wrong behind our back.
"""

# ruff: noqa: S101 - a suite is made of assertions; nobody runs it with -O

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from farshore.blocks.rangeset import RangeSet
from farshore.errors import Conflict, FarshoreError, Invalid, NotFound, RestartFromCheckpoint
from farshore.platforms.contract import Draft, Kind, ManifestStore, Snapshot, Source, Target
from farshore.units import KIB, MIB

#: The disk that a stand offers: large enough for extents to be told apart, small enough to be quick everywhere.
DISK_SIZE = 8 * MIB


def checks(suite: type[Any]) -> list[str]:
    """Return the names of a suite's checks."""
    return sorted(name for name in dir(suite) if name.startswith("check_"))


@contextmanager
def raising(*errors: type[FarshoreError]) -> Iterator[None]:
    """Fail unless the body raises one of ``errors``."""
    try:
        yield
    except errors:
        return
    raise AssertionError(f"nothing was raised; expected one of {[error.__name__ for error in errors]}")


# --- manifest stores --------------------------------------------------------------------------------------------------


class ManifestStoreSuite:
    """What a manifest store does. ``make`` returns a store; each call another handle of the same one."""

    def __init__(self, make: Callable[[], ManifestStore]) -> None:
        self._make = make
        self._store = make()

    def check_an_object_is_there_once_it_was_put(self) -> None:
        """Put, get, list; also through another handle."""
        assert self._store.put_if_absent("groups/a/1.json", b"one")
        assert self._store.get("groups/a/1.json") == b"one"
        assert self._make().get("groups/a/1.json") == b"one"
        assert self._make().list() == ["groups/a/1.json"]

    def check_the_first_put_wins(self) -> None:
        """A second put changes nothing."""
        assert self._store.put_if_absent("groups/a/1.json", b"one")
        assert not self._store.put_if_absent("groups/a/1.json", b"two")
        assert self._store.get("groups/a/1.json") == b"one"

    def check_of_many_at_once_exactly_one_wins(self) -> None:
        """Create-if-absent is atomic between threads and handles."""
        won: list[int] = []
        barrier = threading.Barrier(8)

        def put(number: int) -> None:
            store = self._make()
            barrier.wait()
            if store.put_if_absent("claims/a/1.json", str(number).encode()):
                won.append(number)

        threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert self._store.get("claims/a/1.json") == str(won[0]).encode()

    def check_listing_is_sorted_and_by_prefix(self) -> None:
        """Prefixes are text, not folders."""
        keys = ["groups/a/2.json", "groups/a/10.json", "groups/ab/1.json", "groups/b/1.json", "trees/x.root"]
        for key in keys:
            assert self._store.put_if_absent(key, key.encode())
        assert self._store.list() == sorted(keys)
        assert self._store.list("groups/a") == sorted(keys[:3])
        assert self._store.list("groups/a/") == sorted(keys[:2])
        assert self._store.list("groups/a/1") == ["groups/a/10.json"]
        assert self._store.list("nothing/") == []

    def check_what_is_absent_is_not_found(self) -> None:
        """Absent, and a prefix of a key, are no objects."""
        assert self._store.put_if_absent("groups/a/1.json", b"")
        assert self._store.get("groups/a/1.json") == b""
        for key in ("groups/a/2.json", "groups/a", "other"):
            with raising(NotFound):
                self._store.get(key)

    def check_a_tombstone_is_for_good(self) -> None:
        """Not listed, not readable, not creatable again; also for what never existed. Twice is once."""
        assert self._store.put_if_absent("groups/a/1.json", b"one")
        for key in ("groups/a/1.json", "groups/a/2.json"):
            self._store.tombstone(key)
            self._store.tombstone(key)
            assert self._store.list() == []
            with raising(NotFound):
                self._store.get(key)
            assert not self._store.put_if_absent(key, b"again")
            with raising(NotFound):
                self._make().get(key)

    def check_objects_of_some_mebibytes_are_whole(self) -> None:
        """The packs of digest trees are 4 MiB."""
        data = random.Random(1).randbytes(4 * MIB)  # noqa: S311 - content, not a secret
        assert self._store.put_if_absent("trees/a.nodes", data)
        assert self._make().get("trees/a.nodes") == data

    def check_keys_that_lead_elsewhere_are_refused(self) -> None:
        """No key leaves the store."""
        for key in ("", "/", "/etc/passwd", "../a", "groups/../../a", "groups//a", "a\0b", "."):
            with raising(Invalid, NotFound):
                self._store.put_if_absent(key, b"x")
            with raising(Invalid, NotFound):
                self._store.get(key)


# --- targets ----------------------------------------------------------------------------------------------------------


class TargetStand(ABC):
    """A pool to keep points in."""

    @abstractmethod
    def target(self) -> Target:
        """Return the target; each call another handle of the same pool, as after a restart of the process."""


class TargetSuite:
    """What a target does with drafts and points."""

    KEY = "db-1/vda"

    def __init__(self, stand: TargetStand) -> None:
        self._stand = stand
        self._target = stand.target()

    def check_a_new_draft_reads_as_zero(self) -> None:
        """All of it, before anything was written."""
        draft = self._draft("one")
        if self._target.caps.reads_unsealed:
            assert _read(draft, 0, DISK_SIZE) == bytes(DISK_SIZE)
        assert self._content(draft.seal()) == bytes(DISK_SIZE)
        draft.close()

    def check_what_is_written_is_in_the_point(self) -> None:
        """Writes at any granule, in any order, overwritten ones too."""
        granule = self._target.caps.granularity_bytes
        model, draft = bytearray(DISK_SIZE), self._draft("one")
        rng = random.Random(2)  # noqa: S311 - content, not a secret
        for _ in range(40):
            length = granule * rng.randint(1, max(self._target.caps.max_io_bytes // granule // 4, 1))
            offset = rng.randrange(0, DISK_SIZE - length + 1, granule)
            data = rng.randbytes(length)
            draft.write(offset, memoryview(data))
            model[offset : offset + length] = data
        if self._target.caps.reads_unsealed:
            assert _read(draft, 0, DISK_SIZE) == bytes(model)
        assert self._content(draft.seal()) == bytes(model)
        draft.close()

    def check_zeros_take_the_place_of_data(self) -> None:
        """Over written data, over the base's, and up to the end."""
        base = self._point("base", b"\1")
        draft = self._draft("one", base)
        draft.write(MIB, memoryview(b"\2" * MIB))
        draft.write_zeroes(MIB // 2, MIB)
        last = max(64 * KIB, self._target.caps.granularity_bytes)
        draft.write_zeroes(DISK_SIZE - last, last)
        model = bytearray(b"\1" * DISK_SIZE)
        model[MIB : 2 * MIB] = b"\2" * MIB
        model[MIB // 2 : MIB // 2 + MIB] = bytes(MIB)
        model[DISK_SIZE - last :] = bytes(last)
        assert self._content(draft.seal()) == bytes(model)
        draft.close()

    def check_a_draft_grows_on_its_base_and_leaves_it_as_it_was(self) -> None:
        """Three generations; each keeps its own content."""
        points: list[str] = []
        contents: list[bytes] = []
        model = bytearray(DISK_SIZE)
        step = max(64 * KIB, self._target.caps.granularity_bytes)
        for number in range(3):
            draft = self._draft(f"gen-{number}", points[-1] if points else None)
            data = bytes([number + 1]) * (4 * step)
            draft.write(number * 3 * step, memoryview(data))
            model[number * 3 * step : number * 3 * step + len(data)] = data
            points.append(draft.seal())
            contents.append(bytes(model))
            draft.close()
        assert len(set(points)) == 3
        assert [self._content(point) for point in points] == contents

    def check_the_same_key_finds_the_same_draft(self) -> None:
        """With all that a flush covered, also after a restart."""
        draft = self._draft("one")
        draft.write(0, memoryview(b"\5" * MIB))
        draft.flush()
        draft.close()
        again = self._stand.target()
        assert again.points() == ["draft:one"]
        draft = again.open(self.KEY, DISK_SIZE, None, "one")
        draft.write(MIB, memoryview(b"\6" * MIB))
        point = draft.seal()
        draft.close()
        assert self._content(point) == b"\5" * MIB + b"\6" * MIB + bytes(DISK_SIZE - 2 * MIB)

    def check_sealing_twice_is_sealing_once(self) -> None:
        """By the same handle, and by one that was opened after a restart."""
        draft = self._draft("one")
        draft.write(0, memoryview(b"\5" * MIB))
        point = draft.seal()
        assert draft.seal() == point
        draft.close()
        again = self._stand.target().open(self.KEY, DISK_SIZE, None, "one")
        assert again.seal() == point
        again.close()
        assert self._stand.target().points() == [point]

    def check_a_sealed_point_takes_no_writes(self) -> None:
        """Not by the handle that sealed it, nor by another."""
        draft = self._draft("one")
        draft.write(0, memoryview(b"\5" * MIB))
        point = draft.seal()
        for handle in (draft, self._target.open(self.KEY, DISK_SIZE, None, "one")):
            with raising(FarshoreError):
                handle.write(0, memoryview(b"\6" * MIB))
            with raising(FarshoreError):
                handle.write_zeroes(0, MIB)
            handle.close()
        assert self._content(point)[:MIB] == b"\5" * MIB

    def check_an_abandoned_draft_is_gone(self) -> None:
        """By the draft or by its key; what is not there may be abandoned too."""
        self._draft("one").abandon()
        draft = self._draft("two")
        draft.close()
        self._target.abandon("two")
        self._target.abandon("three")
        assert self._target.points() == []
        assert self._content(self._point("one", b"")) == bytes(DISK_SIZE)

    def check_a_draft_on_a_base_that_is_gone_is_not_made(self) -> None:
        """NotFound, and nothing is left."""
        base = self._point("base", b"\1")
        self._target.drop(base)
        with raising(NotFound):
            self._draft("one", base)
        assert self._target.points() == []
        assert not self._target.has(base)

    def check_dropping_a_point_leaves_the_others(self) -> None:
        """The first, the middle and the last of a chain; dropping twice is dropping once."""
        for number, gone in enumerate((0, 1, 2)):
            points: list[str] = []
            model, contents = bytearray(DISK_SIZE), []
            for step in range(3):
                draft = self._draft(f"run{number}-{step}", points[-1] if points else None)
                data = bytes([step + 1]) * MIB
                draft.write(step * MIB // 2, memoryview(data))
                model[step * MIB // 2 : step * MIB // 2 + MIB] = data
                contents.append(bytes(model))
                points.append(draft.seal())
                draft.close()
            self._target.drop(points[gone])
            self._target.drop(points[gone])
            assert [self._target.has(point) for point in points] == [step != gone for step in range(3)]
            for step in {0, 1, 2} - {gone}:
                assert self._content(points[step]) == contents[step], (gone, step)

    def check_a_leased_point_is_not_dropped(self) -> None:
        """Until all of its leases are released; leases survive a restart."""
        point = self._point("one", b"\1")
        self._target.lease(point, "run-1")
        self._target.lease(point, "run-1")
        self._target.lease(point, "run-2")
        for tag in ("run-1", "run-2"):
            with raising(Conflict):
                self._stand.target().check_drop(point)
            with raising(Conflict):
                self._stand.target().drop(point)
            assert self._content(point) == b"\1" * DISK_SIZE
            self._target.release(tag)
        self._target.release("run-3")
        self._target.check_drop(point)
        assert self._content(point) == b"\1" * DISK_SIZE
        self._target.drop(point)
        self._target.check_drop(point)
        assert self._target.points() == []
        with raising(NotFound):
            self._target.lease(point, "run-1")

    def check_writes_from_several_threads_all_arrive(self) -> None:
        """Drafts are safe to be written by several threads at once."""
        draft = self._draft("one")
        step = max(128 * KIB, self._target.caps.granularity_bytes)
        failed: list[BaseException] = []

        def write(first: int) -> None:
            try:
                for offset in range(first * step, DISK_SIZE, 4 * step):
                    draft.write(offset, memoryview(bytes([offset // step % 251 + 1]) * step))
            except BaseException as error:  # noqa: BLE001 - it is told below
                failed.append(error)

        threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed
        content = self._content(draft.seal())
        draft.close()
        assert all(content[at] == at // step % 251 + 1 for at in range(0, DISK_SIZE, 4096))

    def check_a_disk_may_have_any_number_of_sectors(self) -> None:
        """A size that is no multiple of leaf or granule; the end is written in part."""
        size = DISK_SIZE + 5 * 512
        draft = self._target.open(self.KEY, size, None, "odd")
        granule = self._target.caps.granularity_bytes
        last = (size - 1) // granule * granule
        draft.write(last, memoryview(b"\7" * (size - last)))
        point = draft.seal()
        draft.close()
        assert self._content(point, size) == bytes(last) + b"\7" * (size - last)

    def check_a_grown_disk_reads_as_zero_behind_its_base(self) -> None:
        """The base's size is not the draft's."""
        base = self._point("base", b"\1")
        size = DISK_SIZE + 3 * MIB
        draft = self._target.open(self.KEY, size, base, "grown")
        point = draft.seal()
        draft.close()
        assert self._content(point, size) == b"\1" * DISK_SIZE + bytes(3 * MIB)

    def check_the_pool_tells_its_space(self) -> None:
        """Capacity and free space, in bytes."""
        usage = self._target.usage()
        assert 0 < usage.free_bytes <= usage.capacity_bytes

    def _draft(self, key: str, base: str | None = None) -> Draft:
        return self._target.open(self.KEY, DISK_SIZE, base, key)

    def _point(self, key: str, fill: bytes) -> str:
        draft = self._draft(key)
        for offset in range(0, DISK_SIZE if fill else 0, MIB):
            draft.write(offset, memoryview(fill * MIB))
        point = draft.seal()
        draft.close()
        return point

    def _content(self, point: str, size: int = DISK_SIZE) -> bytes:
        buffer = bytearray(size)
        for offset in range(0, size, MIB):
            self._target.read_into(point, offset, memoryview(buffer)[offset : offset + MIB])
        return bytes(buffer)


def _read(draft: Draft, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    for at in range(0, length, MIB):
        draft.read_into(offset + at, memoryview(buffer)[at : at + MIB])
    return bytes(buffer)


# --- seeds ------------------------------------------------------------------------------------------------------------


class SeedStand(TargetStand):
    """A pool, and disks that lie there already."""

    #: How long the disks are.
    size_bytes: int = DISK_SIZE

    @abstractmethod
    def disk(self, content: bytes) -> str:
        """Make a disk that begins with ``content`` and is zero behind it; return what :meth:`adopt` calls it."""

    @abstractmethod
    def content(self, image: str, length: int) -> bytes:
        """Return how a disk begins."""

    @abstractmethod
    def adopt(self, disk_key: str, size_bytes: int, image: str, key: str) -> str:
        """Do what the platform does."""


class SeedSuite:
    """What ``Platform.adopt`` does."""

    KEY = "db-1/vda"

    def __init__(self, stand: SeedStand) -> None:
        self._stand = stand
        self._data = random.Random(7).randbytes(3 * MIB)  # noqa: S311 - content, not a secret
        self._image = stand.disk(self._data)

    def check_a_disk_becomes_a_point_once(self) -> None:
        """Whole, and the same key finds it, also after a restart."""
        point = self._adopt()
        assert self._content(point) == self._data
        assert self._adopt() == point
        assert self._stand.target().points() == [point]

    def check_a_draft_grows_on_it_and_the_disk_stays_as_it_was(self) -> None:
        """As on any point."""
        target, point = self._stand.target(), self._adopt()
        draft = target.open(self.KEY, self._stand.size_bytes, point, "one")
        draft.write(MIB, memoryview(b"\5" * MIB))
        grown = draft.seal()
        draft.close()
        assert self._content(grown) == self._data[:MIB] + b"\5" * MIB + self._data[2 * MIB :]
        target.drop(point)
        assert self._content(grown)[:MIB] == self._data[:MIB]
        assert self._stand.content(self._image, len(self._data)) == self._data

    def check_its_key_opens_a_draft_that_is_sealed(self) -> None:
        """So whoever drops it finds it by its key."""
        point = self._adopt()
        draft = self._stand.target().open(self.KEY, self._stand.size_bytes, None, "seed.1")
        assert draft.seal() == point
        draft.close()
        self._stand.target().abandon("seed.1")
        assert self._stand.target().points() == [point]

    def check_a_disk_that_is_longer_is_no_seed(self) -> None:
        """And one that is not there is none; nothing is left."""
        with raising(Invalid):
            self._stand.adopt(self.KEY, self._stand.size_bytes - 512, self._image, "seed.1")
        with raising(NotFound):
            self._stand.adopt(self.KEY, self._stand.size_bytes, self._image + "x", "seed.1")
        assert self._stand.target().points() == []

    def _adopt(self) -> str:
        return self._stand.adopt(self.KEY, self._stand.size_bytes, self._image, "seed.1")

    def _content(self, point: str) -> bytes:
        buffer = bytearray(len(self._data))
        self._stand.target().read_into(point, 0, memoryview(buffer))
        return bytes(buffer)


# --- sources ----------------------------------------------------------------------------------------------------------


class SourceStand(ABC):
    """One machine with two disks, all zero at first; the suite works on their first :data:`DISK_SIZE` bytes."""

    machine_id: str
    disk_keys: tuple[str, str]
    size_bytes: int = DISK_SIZE

    @abstractmethod
    def source(self) -> Source:
        """Return the source; each call another handle of the same site, as after a restart of the process."""

    @abstractmethod
    def write(self, disk_key: str, offset: int, data: bytes) -> None:
        """Write as the guest would."""

    @abstractmethod
    def forget_changes(self) -> None:
        """Destroy the platform's change tracking behind our back."""

    @abstractmethod
    def destroy_point(self, point_id: str) -> None:
        """Make a point unreadable behind our back."""


class SourceSuite:
    """What a source does with points and changes."""

    GROUP = "grp-contract"

    def __init__(self, stand: SourceStand) -> None:
        self._stand = stand
        self._source = stand.source()
        self._disks = {key: bytearray(DISK_SIZE) for key in stand.disk_keys}
        self._rng = random.Random(3)  # noqa: S311 - content, not a secret

    def check_a_point_is_what_the_disks_were(self) -> None:
        """And stays so while the machine writes on."""
        self._scribble(10)
        frozen = self._frozen()
        snapshot = self._snapshot("pt-1")
        self._scribble(10)
        assert self._content(snapshot) == frozen
        assert {disk.disk_key for disk in snapshot.disks} == set(self._disks)
        assert all(disk.size_bytes == self._stand.size_bytes for disk in snapshot.disks)
        assert [facts.machine_id for facts in snapshot.machines] == [self._stand.machine_id]

    def check_without_a_base_all_data_is_named(self) -> None:
        """What is not named, or named as ZERO, is zero."""
        self._scribble(10)
        snapshot = self._snapshot("pt-1")
        for key, content in self._content(snapshot).items():
            named = self._named(snapshot, key, None)
            for start, stop in named.gaps(0, DISK_SIZE):
                assert not any(content[start:stop])
            assert not snapshot.disk(key).incremental

    def check_changes_since_the_base_are_named(self) -> None:
        """Three cycles: base content plus named changes is the point; far less than all is named."""
        content = self._cycle("pt-0", None)
        for number in range(1, 4):
            self._scribble(4, size=8 * KIB)
            before, base = content, f"pt-{number - 1}"
            snapshot = self._snapshot(f"pt-{number}", base)
            content = self._content(snapshot)
            for key in self._disks:
                assert snapshot.disk(key).incremental, snapshot.disk(key).reason
                named = self._named(snapshot, key, base)
                for start, stop in named.gaps(0, DISK_SIZE):
                    assert content[key][start:stop] == before[key][start:stop]
                assert named.total() <= DISK_SIZE // 4
            self._source.release(self.GROUP, f"pt-{number}", [self._stand.machine_id], applied=True)

    def check_a_point_that_was_given_up_costs_no_change(self) -> None:
        """Changes count from the applied base, over points that were taken and dropped in between."""
        content = self._cycle("pt-0", None)
        for number in (1, 2):
            self._scribble(3, size=4 * KIB)
            self._snapshot(f"pt-{number}", "pt-0")
            self._source.release(self.GROUP, f"pt-{number}", [self._stand.machine_id], applied=False)
        self._scribble(3, size=4 * KIB)
        snapshot = self._snapshot("pt-3", "pt-0")
        after = self._content(snapshot)
        for key in self._disks:
            assert snapshot.disk(key).incremental, snapshot.disk(key).reason
            for start, stop in self._named(snapshot, key, "pt-0").gaps(0, DISK_SIZE):
                assert after[key][start:stop] == content[key][start:stop]

    def check_a_left_over_point_of_the_group_is_no_obstacle(self) -> None:
        """Nobody released the older attempt; its node died."""
        self._cycle("pt-0", None)
        self._scribble(3)
        self._snapshot("pt-1", "pt-0")
        self._scribble(3)
        snapshot = self._snapshot("pt-2", "pt-0", source=self._stand.source())
        assert self._content(snapshot) == self._frozen()
        assert all(disk.incremental for disk in snapshot.disks)
        assert self._source.find("pt-1") is None

    def check_a_lost_release_costs_no_change(self) -> None:
        """The point was published and is a base, but its release never came."""
        self._scribble(5)
        base = self._content(self._snapshot("pt-0"))
        self._scribble(3, size=4 * KIB)
        snapshot = self._snapshot("pt-1", "pt-0")
        content = self._content(snapshot)
        for key in self._disks:
            assert snapshot.disk(key).incremental, snapshot.disk(key).reason
            for start, stop in self._named(snapshot, key, "pt-0").gaps(0, DISK_SIZE):
                assert content[key][start:stop] == base[key][start:stop]

    def check_the_same_point_is_taken_once(self) -> None:
        """Also when the machine wrote meanwhile, and by another process."""
        self._scribble(3)
        frozen = self._frozen()
        first = self._snapshot("pt-1")
        self._scribble(3)
        second = self._snapshot("pt-1", source=self._stand.source())
        assert second.taken_at == first.taken_at
        assert self._content(second) == frozen

    def check_a_point_survives_its_process(self) -> None:
        """``find`` returns it as it was."""
        self._scribble(3)
        frozen = self._frozen()
        first = self._snapshot("pt-1")
        again = self._stand.source()
        found = again.find("pt-1")
        assert found is not None
        assert (found.disks, found.taken_at) == (first.disks, first.taken_at)
        assert self._content(found, source=again) == frozen
        assert again.find("pt-2") is None

    def check_lost_tracking_is_told(self) -> None:
        """Not incremental, with a reason; all data is named, and the next base serves again."""
        self._cycle("pt-0", None)
        self._stand.forget_changes()
        self._scribble(3)
        snapshot = self._snapshot("pt-1", "pt-0")
        assert not any(disk.incremental for disk in snapshot.disks)
        assert all(disk.reason for disk in snapshot.disks)
        for key, content in self._content(snapshot).items():
            for start, stop in self._named(snapshot, key, None).gaps(0, DISK_SIZE):
                assert not any(content[start:stop])
        self._source.release(self.GROUP, "pt-1", [self._stand.machine_id], applied=True)
        self._scribble(2)
        assert all(disk.incremental for disk in self._snapshot("pt-2", "pt-1").disks)

    def check_an_unknown_base_is_told(self) -> None:
        """A base that was never a point of ours cannot serve."""
        snapshot = self._snapshot("pt-1", "pt-of-nobody")
        assert not any(disk.incremental for disk in snapshot.disks)
        assert all(disk.reason for disk in snapshot.disks)

    def check_a_destroyed_point_ends_the_reading(self) -> None:
        """RestartFromCheckpoint, by the open reader or by the next one."""
        self._scribble(3)
        snapshot = self._snapshot("pt-1")
        key = self._stand.disk_keys[0]
        reader = self._source.reader(snapshot, key)
        reader.read_into(0, memoryview(bytearray(4096)))
        self._stand.destroy_point("pt-1")
        with raising(RestartFromCheckpoint):
            reader.read_into(0, memoryview(bytearray(4096)))
            self._source.reader(snapshot, key).read_into(0, memoryview(bytearray(4096)))
        reader.close()
        assert self._source.find("pt-1") is None
        self._source.release(self.GROUP, "pt-1", [self._stand.machine_id], applied=False)
        self._scribble(1)
        assert self._content(self._snapshot("pt-2")) == self._frozen()

    def check_releasing_twice_is_releasing_once(self) -> None:
        """And releasing what never was is no error."""
        self._cycle("pt-0", None)
        for point_id in ("pt-0", "pt-0", "pt-of-nobody"):
            self._source.release(self.GROUP, point_id, [self._stand.machine_id], applied=False)
        self._source.release(self.GROUP, "pt-of-nobody", [self._stand.machine_id], applied=True)
        assert self._source.find("pt-0") is None

    def check_a_sweep_removes_what_nobody_keeps(self) -> None:
        """And says what; the kept ones stay readable."""
        self._scribble(2)
        snapshot = self._snapshot("pt-1")
        assert self._source.sweep(["pt-1"]) == []
        assert self._content(snapshot) == self._frozen()
        assert self._stand.source().sweep([]) == ["pt-1"]
        assert self._source.find("pt-1") is None
        assert self._source.sweep([]) == []

    def check_untracking_leaves_no_trace(self) -> None:
        """The next point has no base; doing it twice is no error."""
        self._cycle("pt-0", None)
        self._source.untrack(self._stand.machine_id)
        self._source.untrack(self._stand.machine_id)
        assert not any(disk.incremental for disk in self._snapshot("pt-1", "pt-0").disks)

    def check_several_threads_read_one_reader(self) -> None:
        """Readers are safe to be used by several threads at once."""
        self._scribble(20)
        snapshot = self._snapshot("pt-1")
        frozen, key = self._frozen(), self._stand.disk_keys[0]
        reader = self._source.reader(snapshot, key)
        wrong: list[int] = []

        def read(seed: int) -> None:
            rng = random.Random(seed)  # noqa: S311 - places, not secrets
            for _ in range(30):
                length = rng.choice([512, 4096, 256 * KIB])
                offset = rng.randrange(0, DISK_SIZE - length + 1, 512)
                buffer = bytearray(length)
                reader.read_into(offset, memoryview(buffer))
                if bytes(buffer) != frozen[key][offset : offset + length]:
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reader.close()
        assert not wrong

    def check_an_unknown_machine_is_named(self) -> None:
        """NotFound, and no point is left."""
        with raising(NotFound):
            self._source.snapshot(self.GROUP, "pt-1", ["machine-of-nobody"], {}, "machine")
        assert self._source.find("pt-1") is None

    def _scribble(self, writes: int, size: int = 200 * KIB) -> None:
        for key, model in self._disks.items():
            for _ in range(writes):
                length = self._rng.randint(1, size // 512) * 512
                offset = self._rng.randrange(0, DISK_SIZE - length + 1, 512)
                data = self._rng.randbytes(length)
                self._stand.write(key, offset, data)
                model[offset : offset + length] = data

    def _frozen(self) -> dict[str, bytes]:
        return {key: bytes(model) for key, model in self._disks.items()}

    def _snapshot(self, point_id: str, base: str | None = None, source: Source | None = None) -> Snapshot:
        bases = dict.fromkeys(self._disks, base)
        return (source or self._source).snapshot(self.GROUP, point_id, [self._stand.machine_id], bases, "machine")

    def _cycle(self, point_id: str, base: str | None) -> dict[str, bytes]:
        """Write, take a point, read it and let it be the base of the next."""
        self._scribble(5)
        content = self._content(self._snapshot(point_id, base))
        self._source.release(self.GROUP, point_id, [self._stand.machine_id], applied=True)
        return content

    def _content(self, snapshot: Snapshot, source: Source | None = None) -> dict[str, bytes]:
        content = {}
        for key in self._disks:
            reader = (source or self._source).reader(snapshot, key)
            buffer = bytearray(DISK_SIZE)
            held = bytearray(MIB)
            for offset in range(0, DISK_SIZE, MIB):
                reader.read_into(offset, memoryview(buffer)[offset : offset + MIB])
                view = memoryview(held)[: min(MIB, DISK_SIZE - offset)]
                assert not reader.read_held(offset, view) or view == buffer[offset : offset + MIB]
            reader.close()
            content[key] = bytes(buffer)
        return content

    def _named(self, snapshot: Snapshot, key: str, base: str | None) -> RangeSet:
        """Return what ``changed`` names, after checking its order, and that ZERO is zero where there is a base."""
        named, at = RangeSet(), 0
        content = self._content(snapshot)[key]
        for extent in self._source.changed(snapshot, key, base):
            assert extent.offset >= at
            assert extent.length > 0
            at = extent.offset + extent.length
            assert at <= self._stand.size_bytes
            if extent.kind is Kind.ZERO:
                assert not any(content[extent.offset : at])
            named.add(extent.offset, at)
        return named
