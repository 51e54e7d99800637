"""Buffers that are lent and used again."""

from __future__ import annotations

import threading

import pytest
from farshore.transport.buffers import KEEP_BYTES, NOTHING, BufferPool
from farshore.units import KIB, MIB


def test_a_buffer_is_used_again_and_no_longer_to_be_touched_by_its_first_user() -> None:
    pool = BufferPool()
    first = pool.take(MIB)
    first.view[:4] = b"mine"
    view = first.view
    first.release()
    with pytest.raises(ValueError, match="released"):
        view[0]
    second = pool.take(600 * KIB)
    assert bytes(second.view[:4]) == b"mine"
    assert len(second.view) == 600 * KIB
    assert (pool.lent_bytes, pool.free_bytes, pool.peak_bytes) == (MIB, 0, MIB)


def test_a_buffer_that_is_given_back_twice_is_not_lent_to_two() -> None:
    pool = BufferPool()
    lent = pool.take(100)
    lent.release()
    lent.release()
    one, other = pool.take(100), pool.take(100)
    one.view[:] = b"1" * 100
    other.view[:] = b"2" * 100
    assert bytes(one.view) == b"1" * 100


def test_a_small_payload_takes_a_small_buffer() -> None:
    pool = BufferPool()
    assert [pool.take(size).view.nbytes for size in (1, 64 * KIB, 64 * KIB + 1)] == [1, 64 * KIB, 64 * KIB + 1]
    assert pool.lent_bytes == (64 + 64 + 128) * KIB


@pytest.mark.parametrize("size", [0, -1, MIB + 1])
def test_no_buffer_has_the_size_of_no_chunk(size: int) -> None:
    with pytest.raises(ValueError, match="no chunk"):
        BufferPool().take(size)


def test_what_is_kept_follows_what_is_in_use() -> None:
    pool = BufferPool()
    lent = [pool.take(MIB) for _ in range(40)]
    while lent:
        lent.pop().release()
        assert pool.free_bytes <= max(KEEP_BYTES, pool.lent_bytes)
    assert (pool.free_bytes, pool.lent_bytes) == (KEEP_BYTES, 0)


def test_threads_share_a_pool() -> None:
    pool = BufferPool()

    def work(mark: int) -> None:
        for _ in range(200):
            lent = pool.take(MIB)
            lent.view[:8] = bytes([mark]) * 8
            assert bytes(lent.view[:8]) == bytes([mark]) * 8
            lent.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.lent_bytes == 0
    assert pool.peak_bytes <= 4 * MIB


def test_nothing_may_be_released_again_and_again() -> None:
    NOTHING.release()
    NOTHING.release()
    assert NOTHING.view.nbytes == 0
