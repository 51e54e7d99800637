"""What is taken for an encryption and what is not."""

from __future__ import annotations

import random

import pytest
from doubles.manifests import a_manifest
from farshore.checkpoints.score import FLAGGED_FROM, Score, score
from farshore.model.checkpoint import DiskContent, DiskPoint
from farshore.units import GIB, MIB
from hypothesis import given
from hypothesis import strategies as st

HELD = 10 * GIB


def content(
    written: int, noisy: float = 0.0, *, uniformity: float = 1.0, mode: str = "incremental", held: int = HELD
) -> DiskContent:
    return DiskContent(
        mode=mode,
        written_bytes=written,
        held_bytes=held,
        samples=1000,
        noisy=round(noisy * 1000),
        entropy_bits=6.0,
        uniformity=uniformity if noisy else 0.0,
    )


def rated(now: DiskContent | None, *earlier: DiskContent) -> Score:
    disk = DiskPoint(
        disk_key="id-db/vda", size_bytes=2 * HELD, point="p", tree_root="0" * 64, source_point="s", content=now
    )
    manifest = a_manifest(sequence=9, disks=(disk,))
    return score(manifest, {"id-db/vda": earlier})


def days(number: int = 12, noisy: float = 0.02) -> list[DiskContent]:
    """Ordinary days: 100 to 300 MiB of writes."""
    chance = random.Random(number)
    return [content(chance.randint(100, 300) * MIB, noisy) for _ in range(number)]


def test_an_encryption_of_most_of_the_disk_is_flagged_with_its_reason() -> None:
    found = rated(content(8 * GIB, 0.98), *days())
    assert found.flagged
    assert found.value >= 95
    assert "80% of what the disk holds" in found.reasons[0]
    assert "as evenly as encrypted data" in found.reasons[0]


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (content(200 * MIB, 0.02), "an ordinary day"),
        (content(900 * MIB, 0.05), "a busy one"),
        (content(800 * MIB, 0.95, uniformity=1.9), "an archive of 8 % of the disk"),
        (content(800 * MIB, 0.95), "an encrypted backup of 8 % of the disk"),
        (content(4 * GIB, 0.9, uniformity=2.5), "videos of 40 % of the disk"),
        (content(8 * GIB, 0.05), "a restore of most of it, of plain data"),
        (content(0), "nothing written"),
    ],
)
def test_what_is_no_encryption_is_not_flagged(now: DiskContent, why: str) -> None:
    assert not rated(now, *days()).flagged, why


def test_a_disk_that_is_always_rewritten_with_noise_is_not_flagged_for_it() -> None:
    usual = [content(5 * GIB + number * 10 * MIB, 0.99) for number in range(10)]
    assert not rated(content(5 * GIB, 0.99), *usual).flagged
    assert rated(content(5 * GIB, 0.99), *days()).flagged


def test_a_few_strange_cycles_do_not_move_what_is_usual() -> None:
    usual = [*days(9), *(content(8 * GIB, 0.98) for _ in range(4))]
    assert rated(content(8 * GIB, 0.98), *usual).flagged


def test_an_encryption_in_the_first_cycle_after_the_seed_is_flagged() -> None:
    assert rated(content(8 * GIB, 0.98), content(10 * GIB, 0.02, mode="full")).flagged


def test_a_full_copy_and_manifests_of_before_say_nothing() -> None:
    assert rated(content(10 * GIB, 0.99, mode="full"), *days()) == Score()
    assert rated(None, *days()) == Score()


def test_little_of_a_small_disk_is_not_much() -> None:
    tiny = content(3 * MIB, 1.0, held=4 * MIB)
    assert not rated(tiny).flagged


@given(
    st.lists(st.tuples(st.integers(0, HELD), st.floats(0, 1)), max_size=30),
    st.integers(0, HELD),
    st.floats(0, 1),
    st.floats(0.5, 5),
)
def test_scores_are_percentages_and_more_noise_never_scores_less(
    usual: list[tuple[int, float]], written: int, noisy: float, uniformity: float
) -> None:
    earlier = [content(size, share) for size, share in usual]
    found = rated(content(written, noisy, uniformity=uniformity), *earlier)
    assert 0 <= found.value <= 100
    assert found.flagged is (found.value >= FLAGGED_FROM)
    assert bool(found.reasons) or found.value < 2
    more = rated(content(written, min(1.0, noisy + 0.2), uniformity=uniformity), *earlier)
    assert more.value >= found.value or not round(noisy * 1000)


def creeping(ordinary: list[DiskContent], rate: float, cycles: int, *, grows: bool = False) -> list[DiskContent]:
    """Return a history that goes on with ``cycles`` in each of which ``rate`` of the disk becomes noise."""
    step = int(rate * HELD)
    return [
        *ordinary,
        *(
            content(step + 200 * MIB, step / (step + 200 * MIB), held=HELD + grows * number * step)
            for number in range(cycles)
        ),
    ]


@given(st.floats(0.006, 0.05), st.integers(36, 60), st.integers(0, 1000))
def test_an_encryption_of_a_little_in_each_cycle_is_flagged_before_a_third_of_the_disk_is_gone(
    rate: float, ordinary: int, seed: int
) -> None:
    chance = random.Random(seed)
    usual = [content(chance.randint(100, 300) * MIB, 0.02) for _ in range(ordinary)]
    cycles = max(8, int(0.33 / rate) + 1)
    *earlier, now = creeping(usual, rate, cycles)
    found = rated(now, *earlier)
    assert found.flagged
    assert "a little in each of" in found.reasons[0]


def test_a_disk_that_was_always_written_like_that_hardly_ever_adds_up() -> None:
    """Chance alone may look like a beginning where a disk's cycles differ by all that they can: once in hundreds."""
    taken_for_creeping = 0
    for seed in range(1000):
        chance = random.Random(seed)
        mean, spread, uniformity = chance.uniform(0, 0.5), chance.random(), chance.uniform(1, 3)
        sizes = [int(HELD * mean * chance.uniform(1 - spread, 1 + spread)) for _ in range(chance.randint(26, 145))]
        *earlier, now = [content(size, 0.98, uniformity=uniformity) for size in sizes]
        taken_for_creeping += any("a little in each" in reason for reason in rated(now, *earlier).reasons)
    assert taken_for_creeping <= 3


@given(st.floats(0.004, 0.05), st.sampled_from(["compressed", "growing", "now and then"]), st.integers(8, 60))
def test_media_new_files_and_backups_now_and_then_are_not_taken_for_a_creeping_encryption(
    rate: float, kind: str, cycles: int
) -> None:
    history = creeping(days(32), rate, cycles, grows=kind == "growing")
    if kind == "compressed":
        history = [*history[:32], *(one.model_copy(update={"uniformity": 2.5}) for one in history[32:])]
    if kind == "now and then":
        history = [
            *history[:32],
            *(one if not at % 3 else content(200 * MIB, 0.02) for at, one in enumerate(history[32:])),
        ]
    *earlier, now = history
    assert not rated(now, *earlier).flagged
