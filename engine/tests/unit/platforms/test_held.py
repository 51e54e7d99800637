"""Reading only what is in memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from farshore.platforms.file.held import Held
from farshore.units import KIB, MIB

SIZE = MIB


@pytest.fixture(params=["/dev/shm", None], ids=["memory", "disk"])  # noqa: S108 - the file system in memory
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    """A file, and what is in it."""
    path = Path(request.param or tmp_path) / f"farshore-held-{os.getpid()}"
    content = os.urandom(SIZE)
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd, content
    finally:
        os.close(fd)
        path.unlink()


def test_what_was_just_written_is_held(image: tuple[int, bytes], request: pytest.FixtureRequest) -> None:
    fd, content = image
    buffer = bytearray(64 * KIB)
    held = Held(fd).read(4096, memoryview(buffer))
    if "disk" in request.node.name and not _can_say(fd):
        assert not held, "a file system that cannot say whether it would wait is never asked without waiting"
        return
    assert held
    assert buffer == content[4096 : 4096 + 64 * KIB]


def _can_say(fd: int) -> bool:
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True


def test_what_is_not_there_whole_is_not_held(image: tuple[int, bytes]) -> None:
    fd, _ = image
    assert not Held(fd).read(SIZE - 10, memoryview(bytearray(100)))


def test_what_left_memory_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb", buffering=0) as image:
        os.fsync(image.fileno())
        os.posix_fadvise(image.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        buffer = bytearray(SIZE)
        held = Held(image.fileno()).read(0, memoryview(buffer))
        assert not held or buffer == path.read_bytes(), "a file system that keeps pages has them right"


def test_errors_are_not_taken_for_waiting() -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match="seek"):
            Held(read).read(0, memoryview(bytearray(10)))
    finally:
        os.close(read)
        os.close(write)
