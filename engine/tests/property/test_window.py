"""Whatever happens in whatever order: credit is conserved, bounds hold, nobody starves."""

from __future__ import annotations

from farshore.units import CHUNK_SIZE, KIB
from farshore.window.scheduler import Scheduler
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
        self.written = dict.fromkeys(self.levels, 0)
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
        for one in self.scheduler.requested(self.now):
            assert one in self.waiting
            first = next(other for other in self.waiting if other[0] == one[0])
            assert one == first, "a disk's chunks go in the order in which they were wanted"
            self.waiting.remove(one)
            self.flying.append(one)
        for disk in self.levels:
            waits = next((one for one in self.waiting if one[0] == disk), None)
            if waits is None:
                continue
            size = self.sizes[waits]
            blocked = (
                self.bytes_flying(disk) + size > self.levels[disk]
                or self.scheduler.exposed(disk) + size > self.levels[disk] + self.marks[disk]
                or self.bytes_flying() + CHUNK_SIZE > BUDGET
            )
            assert blocked, "credit was there and not given"

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), fails=st.booleans())
    def end(self, data: st.DataObject, fails: bool) -> None:
        one = data.draw(st.sampled_from(self.flying))
        self.flying.remove(one)
        if fails:
            self.scheduler.failed(*one)
        else:
            self.scheduler.written(*one, self.now)
            self.written[one[0]] += self.sizes[one]

    @rule(disk=st.sampled_from([1, 2, 3]))
    def mark(self, disk: int) -> None:
        assert self.scheduler.mark_due(disk) == (self.written[disk] >= self.marks[disk])
        covered = self.scheduler.begin_mark(disk)
        assert covered == self.written[disk]
        self.scheduler.durable(disk, covered)
        self.written[disk] = 0

    def bytes_flying(self, disk: int | None = None) -> int:
        return sum(self.sizes[one] for one in self.flying if disk in {None, one[0]})

    @invariant()
    def credit_is_conserved(self) -> None:
        assert self.scheduler.in_flight() == self.bytes_flying() <= BUDGET
        for disk, level in self.levels.items():
            assert self.scheduler.in_flight(disk) == self.bytes_flying(disk) <= level
            assert self.scheduler.exposed(disk) == self.bytes_flying(disk) + self.written[disk]
            assert self.scheduler.exposed(disk) <= level + self.marks[disk]


TestWindows = Windows.TestCase
TestWindows.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([64 * KIB, 256 * KIB, CHUNK_SIZE]), min_size=2, max_size=8))
def test_disks_share_a_full_node_evenly(sizes: list[int]) -> None:
    scheduler = Scheduler(4 * CHUNK_SIZE)
    moved = dict.fromkeys(range(len(sizes)), 0)
    number = 0
    for disk in moved:
        scheduler.add_disk(disk, 64 * CHUNK_SIZE, 10**12)
    flying: list[tuple[int, int]] = []
    queued = dict.fromkeys(moved, 0)
    for step in range(600):
        for disk, size in enumerate(sizes):
            while queued[disk] < 16:
                number += 1
                scheduler.want(disk, number, size)
                queued[disk] += 1
        for disk, chunk in scheduler.requested(float(step)):
            flying.append((disk, chunk))
            queued[disk] -= 1
        disk, chunk = flying.pop(0)
        scheduler.written(disk, chunk, float(step))
        moved[disk] += sizes[disk]
    total = sum(moved.values())
    jain = total**2 / (len(sizes) * sum(value**2 for value in moved.values()))
    assert jain >= 0.9, moved
