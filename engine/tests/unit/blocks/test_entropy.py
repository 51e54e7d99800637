"""What noise looks like, and what does not."""

from __future__ import annotations

import math
import random
import zlib

import pytest
from farshore.blocks.entropy import ALL_FIRST, EVERY, SAMPLE_BYTES, Sampler, entropy_bits, noisy_above
from farshore.units import MIB
from hypothesis import given
from hypothesis import strategies as st


def sampled(data: bytes) -> Sampler:
    """Look at each chunk of ``data``."""
    sampler = Sampler()
    for place in range(0, len(data), MIB):
        sampler.look(memoryview(data)[place : place + MIB], place)
    return sampler


def prose(size: int) -> bytes:
    chance = random.Random(5)
    words = [bytes(chance.choices(b"etaoinshrdlucmfw", k=chance.randint(2, 9))) for _ in range(4000)]
    out = bytearray()
    while len(out) < size:
        out += b" ".join(chance.choices(words, k=2000))
    return bytes(out[:size])


@given(st.binary(min_size=1, max_size=5000))
def test_entropy_is_that_of_shannon(data: bytes) -> None:
    shares = [data.count(byte) / len(data) for byte in set(data)]
    assert entropy_bits(data) == pytest.approx(-sum(p * math.log2(p) for p in shares), abs=1e-9)
    assert 0 <= entropy_bits(data) <= 8


def test_random_bytes_are_noise_and_even() -> None:
    sampler = sampled(random.Random(1).randbytes(64 * MIB))
    assert sampler.noisy == sampler.samples == 64
    assert sampler.uniformity < 1.36
    assert sampler.entropy_bits > 7.94


@pytest.mark.parametrize("size", [2048, 3000, SAMPLE_BYTES])
def test_random_bytes_are_noise_at_any_size(size: int) -> None:
    chance = random.Random(size)
    assert all(entropy_bits(chance.randbytes(size)) > noisy_above(size) for _ in range(200))


def test_text_is_no_noise_and_an_archive_of_it_is_uneven_noise() -> None:
    text = prose(24 * MIB)
    assert sampled(text[: 4 * MIB]).noisy == 0
    archive = b"".join(zlib.compress(text[at : at + MIB], 6) for at in range(0, len(text), MIB))
    small = b"".join(archive[at : at + SAMPLE_BYTES] for at in range(0, len(archive), 64 * 1024))
    sampler = Sampler()
    for place in range(0, len(small), SAMPLE_BYTES):
        sampler.look(memoryview(small)[place : place + SAMPLE_BYTES], place)
    assert sampler.noisy > sampler.samples * 0.5
    assert sampler.uniformity > 1.36


def test_the_first_chunks_are_all_looked_at_then_one_of_many() -> None:
    sampler = Sampler()
    asked = [sampler.wants() for _ in range(ALL_FIRST + 10 * EVERY)]
    assert all(asked[:ALL_FIRST])
    assert sum(asked[ALL_FIRST:]) == 10


def test_crumbs_say_nothing() -> None:
    sampler = Sampler()
    sampler.look(memoryview(bytes(512)), 0)
    assert (sampler.samples, sampler.entropy_bits, sampler.uniformity) == (0, 0.0, 0.0)
