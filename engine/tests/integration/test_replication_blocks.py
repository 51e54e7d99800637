"""A target of whole blocks, as clouds have them: aligned by reads of the source, and never read to be changed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from doubles.block_target import BLOCK, BlockTarget
from doubles.source_here import SourceHere
from farshore.errors import Permanent
from farshore.model.task import ReplicateResult
from farshore.units import KIB, MIB

#: No multiple of a block, of a leaf, nor of 4 KiB.
DISK = 6 * MIB + 77 * 512


class Blocks:
    """A source of files and a target of blocks."""

    def __init__(self, folder: Path) -> None:
        self.here = SourceHere(folder, {"db": {"vda": DISK}})
        self.target = BlockTarget(folder / "beta" / "pool")
        self.here.sites.beta = replace(self.here.sites.beta, target=self.target)

    def cycle(self) -> ReplicateResult:
        """Copy a new point and compare what is published with it."""
        try:
            return self.here.applied()
        finally:
            assert self.target.broken is None, self.target.broken

    def cut(self, after: int) -> None:
        """Let a cycle fail after so many blocks; its source point is given up, its draft is not."""
        snapshot = self.here.sites.point()
        self.target.cut_after = self.target.puts + after
        with pytest.raises(Permanent, match="gone"):
            self.here.replicate(self.here.sites.params(snapshot))
        self.target.cut_after = None
        assert self.target.broken is None, self.target.broken
        self.here.sites.release(snapshot, applied=False)

    def change(self, rng: random.Random, writes: int) -> None:
        """Write and discard at places that fit no block."""
        machine = self.here.sites.machine("db")
        size = machine.image("vda").stat().st_size
        for _ in range(writes):
            offset = rng.randrange(0, size - 4096)
            if rng.random() < 0.4:
                machine.discard("vda", offset, min(rng.randrange(1, 2 * MIB), size - offset))
            else:
                machine.write("vda", offset, rng.randbytes(min(rng.randrange(1, 200 * KIB), size - offset)))


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[Blocks]:
    one = Blocks(tmp_path)
    yield one
    one.here.close()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_only_whole_blocks_are_written(blocks: Blocks, seed: int) -> None:
    """Full, incremental and verified copies, and drafts that pass from one source point to another."""
    rng = random.Random(seed)
    blocks.change(rng, 6)
    blocks.cycle()
    for step in range(5):
        blocks.change(rng, rng.randrange(1, 6))
        blocks.here.sites.machine("db").write("vda", rng.randrange(DISK // 2), b"\1" * 3 * BLOCK)
        if step % 2:
            blocks.cut(after=2)
            blocks.change(rng, 1)
        if step == 2:
            machine = blocks.here.sites.machine("db")
            for point in machine.tracked_points():
                machine.untrack(point)
        blocks.cycle()


def test_a_changed_byte_costs_one_block_and_a_discarded_one_is_written_as_zeros(blocks: Blocks) -> None:
    machine = blocks.here.sites.machine("db")
    machine.write("vda", 0, b"\5" * DISK)
    blocks.cycle()
    for offset in (3 * BLOCK + 5, DISK - 1):
        before = blocks.target.puts
        machine.write("vda", offset, b"x")
        result = blocks.cycle()
        assert blocks.target.puts - before == 1
        assert result.stats.moved_bytes <= BLOCK
    before = blocks.target.puts
    machine.discard("vda", BLOCK, 4 * BLOCK)
    result = blocks.cycle()
    assert blocks.target.puts - before == 4
    assert result.stats.moved_bytes == 0


def test_a_full_copy_writes_no_zeros(blocks: Blocks) -> None:
    blocks.here.sites.machine("db").write("vda", 2 * BLOCK + 1, b"x")
    before = blocks.target.puts
    blocks.cycle()
    assert blocks.target.puts - before <= 3, "the first writes of the fixture's disk and this one"


def test_what_a_draft_holds_of_an_earlier_point_is_not_sent_again(blocks: Blocks) -> None:
    machine = blocks.here.sites.machine("db")
    machine.write("vda", 0, random.Random(1).randbytes(DISK))
    blocks.cut(after=8)
    machine.write("vda", BLOCK + 100, b"changed")  # a part of one block: the whole of it is written again
    result = blocks.cycle()
    assert result.stats.moved_bytes + 4 * BLOCK < 2 * DISK
    assert 0 < blocks.target.puts <= 9 + 13


def test_a_disk_of_an_old_primary_that_cannot_be_taken_in_is_copied_whole(blocks: Blocks) -> None:
    here = blocks.here
    snapshot = here.sites.point()
    params = here.sites.params(snapshot)
    disks = tuple(disk.model_copy(update={"old_disk": "old/vda"}) for disk in params.disks)
    result = here.replicate(params.model_copy(update={"disks": disks}))
    assert result.stats.mode == "full"
    assert here.sites.published(result.manifest) == here.sites.frozen(snapshot)
