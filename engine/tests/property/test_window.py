"""Whatever happens in whatever order: credit is conserved, bounds hold, nobody starves."""

from __future__ import annotations

from farshore.units import CHUNK_SIZE, KIB, WINDOW_LEVELS
from farshore.window.law import Law
from farshore.window.meter import Signals
from farshore.window.scheduler import PRESSURE_OFF, PRESSURE_ON, Scheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

BUDGET = 5 * CHUNK_SIZE


class Windows(RuleBasedStateMachine):
    """Three disks, chunks of any size, and a model of what is where."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = {1: CHUNK_SIZE, 2: 3 * CHUNK_SIZE, 3: 8 * CHUNK_SIZE}
        self.marks = {1: CHUNK_SIZE // 2, 2: 2 * CHUNK_SIZE, 3: 20 * CHUNK_SIZE}
        self.scheduler = Scheduler(BUDGET)
        for disk in self.levels:
            self.scheduler.add_disk(disk, self.levels[disk], self.marks[disk])
        self.sizes: dict[tuple[int, int], int] = {}
        self.waiting: list[tuple[int, int]] = []
        self.flying: list[tuple[int, int]] = []
        self.queued: list[tuple[int, int]] = []
        self.written = dict.fromkeys(self.levels, 0)
        self.marking = dict.fromkeys(self.levels, 0)
        self.pressed = False
        self.now = 0.0
        self.number = 0

    @rule(disk=st.sampled_from([1, 2, 3]), size=st.integers(1, CHUNK_SIZE))
    def want(self, disk: int, size: int) -> None:
        self.number += 1
        self.sizes[disk, self.number] = size
        self.scheduler.want(disk, self.number, size)
        self.waiting.append((disk, self.number))

    @rule()
    def grant(self) -> None:
        self.now += 1.0
        held = {disk: self.bytes_of(self.flying, disk) for disk in self.levels}
        for one in self.scheduler.requested(self.now):
            assert one in self.waiting
            first = next(other for other in self.waiting if other[0] == one[0])
            assert one == first, "a disk's chunks go in the order in which they were wanted"
            self.waiting.remove(one)
            self.flying.append(one)
            assert not self.pressed or held[one[0]] + self.sizes[one] <= CHUNK_SIZE, "above its share under pressure"
            held[one[0]] += self.sizes[one]
        for disk in self.levels:
            waits = next((one for one in self.waiting if one[0] == disk), None)
            if waits is None:
                continue
            size = self.sizes[waits]
            # The shares are one chunk each, and the two other disks' may be reserved for them.
            room = BUDGET if held[disk] + size <= CHUNK_SIZE else BUDGET - 2 * CHUNK_SIZE
            blocked = (
                held[disk] + size > self.levels[disk]
                or self.scheduler.exposed(disk) + size > self.levels[disk] + self.marks[disk]
                or self.bytes_of(self.flying) + CHUNK_SIZE > room
                or (self.pressed and held[disk] + size > CHUNK_SIZE)
            )
            assert blocked, "credit was there and not given"

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.flying))
        self.scheduler.received(*one, self.now)
        if one not in self.queued:
            self.queued.append(one)
        self.press()

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), fails=st.booleans())
    def end(self, data: st.DataObject, fails: bool) -> None:
        one = data.draw(st.sampled_from(self.flying))
        if fails:
            self.scheduler.failed(*one)
        else:
            if one not in self.queued:
                self.queued.append(one)
                self.press()
            self.scheduler.written(*one, self.now)
            self.written[one[0]] += self.sizes[one]
        self.flying.remove(one)
        if one in self.queued:
            self.queued.remove(one)
        self.press()

    @rule(disk=st.sampled_from([1, 2, 3]))
    def mark(self, disk: int) -> None:
        due = not self.marking[disk] and self.written[disk] * 4 >= self.marks[disk]
        assert self.scheduler.mark_due(disk) == due
        if due:
            self.marking[disk] = self.scheduler.begin_mark(disk)
            assert self.marking[disk] == self.written[disk]

    @precondition(lambda self: any(self.marking.values()))
    @rule(data=st.data())
    def end_mark(self, data: st.DataObject) -> None:
        disk = data.draw(st.sampled_from([disk for disk, size in self.marking.items() if size]))
        self.scheduler.durable(disk, self.marking[disk])
        self.written[disk] -= self.marking[disk]
        self.marking[disk] = 0

    def press(self) -> None:
        queued = self.bytes_of(self.queued)
        if queued > PRESSURE_ON * BUDGET:
            self.pressed = True
        elif queued < PRESSURE_OFF * BUDGET:
            self.pressed = False

    def bytes_of(self, chunks: list[tuple[int, int]], disk: int | None = None) -> int:
        return sum(self.sizes[one] for one in chunks if disk in {None, one[0]})

    @invariant()
    def credit_is_conserved(self) -> None:
        assert self.scheduler.in_flight() == self.bytes_of(self.flying) <= BUDGET
        assert self.scheduler.peak_bytes <= BUDGET
        for disk, level in self.levels.items():
            assert self.scheduler.in_flight(disk) == self.bytes_of(self.flying, disk) <= level
            assert self.scheduler.exposed(disk) == self.bytes_of(self.flying, disk) + self.written[disk]
            assert self.scheduler.exposed(disk) <= level + self.marks[disk]


TestWindows = Windows.TestCase
TestWindows.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def shared_out(sizes: list[int], budget: int, level: int, steps: int, queue: int) -> dict[int, int]:
    """Return what each disk moved in ``steps`` chunks, first in, first out; ``queue`` chunks of it always wait."""
    scheduler = Scheduler(budget)
    moved = dict.fromkeys(range(len(sizes)), 0)
    number = 0
    for disk in moved:
        scheduler.add_disk(disk, level, 10**12)
    flying: list[tuple[int, int]] = []
    queued = dict.fromkeys(moved, 0)
    for step in range(steps):
        for disk, size in enumerate(sizes):
            while queued[disk] < queue:
                number += 1
                scheduler.want(disk, number, size)
                queued[disk] += 1
        for disk, chunk in scheduler.requested(float(step)):
            flying.append((disk, chunk))
            queued[disk] -= 1
        disk, chunk = flying.pop(0)
        scheduler.written(disk, chunk, float(step))
        moved[disk] += sizes[disk]
    return moved


def jain(moved: dict[int, int]) -> float:
    return sum(moved.values()) ** 2 / (len(moved) * sum(value**2 for value in moved.values()))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([64 * KIB, 256 * KIB, CHUNK_SIZE]), min_size=2, max_size=8))
def test_disks_share_a_full_node_evenly_whatever_the_size_of_their_chunks(sizes: list[int]) -> None:
    moved = shared_out(sizes, 4 * CHUNK_SIZE, 64 * CHUNK_SIZE, 1500, 16)
    assert jain(moved) >= 0.95, moved


@settings(max_examples=50, deadline=None)
@given(disks=st.integers(2, 40), budget=st.integers(1, 64), level=st.sampled_from([1, 4, 16, 64]))
def test_equal_disks_get_equal_parts_also_where_there_is_no_room_for_a_chunk_of_each(
    disks: int, budget: int, level: int
) -> None:
    moved = shared_out([CHUNK_SIZE] * disks, budget * CHUNK_SIZE, level * CHUNK_SIZE, disks * 40, 1)
    assert jain(moved) >= 0.95, moved
    assert min(moved.values()) > 0


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_disk_with_work_gets_a_chunk_in_each_round(data: st.DataObject) -> None:
    disks = data.draw(st.integers(2, 6))
    scheduler = Scheduler(data.draw(st.integers(1, 12)) * CHUNK_SIZE)
    for disk in range(disks):
        scheduler.add_disk(disk, data.draw(st.integers(1, 12)) * CHUNK_SIZE, 10**12)
    flying: list[tuple[int, int]] = []
    wants, passed = dict.fromkeys(range(disks), 0), dict.fromkeys(range(disks), 0)
    for step in range(200):
        for disk, number in wants.items():
            if not number:
                wants[disk] = step + 1
                scheduler.want(disk, step + 1, data.draw(st.integers(1, CHUNK_SIZE)))
        for disk, chunk in scheduler.requested(float(step)):
            for other in wants:
                # Who has nothing in flight cannot be at its own limit.
                waits = other != disk and wants[other] and not scheduler.in_flight(other)
                passed[other] = passed[other] + 1 if waits else 0
            passed[disk] = wants[disk] = 0
            flying.append((disk, chunk))
            assert max(passed.values()) <= 4 * disks, "somebody waits while others go round and round"
        if flying:
            disk, chunk = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
            scheduler.written(disk, chunk, float(step))


shares = st.floats(0, 1, allow_nan=False)
signals = st.builds(
    Signals,
    seconds=st.floats(1, 4),
    chunks=st.integers(0, 1000),
    goodput=st.floats(0, 1e9),
    slowness=st.floats(1, 100),
    queue=shares,
    errors=st.floats(0, 2),
    stalled=st.booleans(),
    path_queue=shares,
    jitter=shares,
    limited=st.booleans(),
    pressed=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(signals, max_size=80), st.sampled_from(WINDOW_LEVELS), st.integers(1, 64))
def test_a_level_moves_one_step_up_or_two_down_and_writers_within_what_the_platform_bears(
    seen: list[Signals], start: int, writers: int
) -> None:
    law = Law(WINDOW_LEVELS, start, writers)
    for now, one in enumerate(seen):
        before = WINDOW_LEVELS.index(law.level)
        change = law.step(one, float(now))
        step = WINDOW_LEVELS.index(law.level) - before
        assert -2 <= step <= 1
        assert (change is not None) == (step != 0)
        if change is not None:
            assert (change.from_bytes, change.to_bytes) == (WINDOW_LEVELS[before], law.level)
            assert change.reason
        assert 1 <= law.writers <= writers
