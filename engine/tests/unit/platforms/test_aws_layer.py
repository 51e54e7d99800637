"""A layer over a snapshot: it reads as what is below but for what was written, and fetches no more than is touched."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from farshore.errors import NoSpace, Retry
from farshore.platforms.aws.ebs import BLOCK
from farshore.platforms.aws.layer import Layer
from farshore.platforms.nbd.server import Server


class Below:
    """Blocks named by a letter each; ``.`` was never written. ``asked``: which were read, in order."""

    def __init__(self, letters: str) -> None:
        self.letters = letters
        self.asked: list[int] = []

    def block(self, index: int) -> bytes | None:
        self.asked.append(index)
        letter = self.letters[index]
        return None if letter == "." else letter.encode() * BLOCK

    def image(self) -> bytearray:
        """Return the whole disk."""
        return bytearray(b"".join((b"\0" if one == "." else one.encode()) * BLOCK for one in self.letters))


@contextmanager
def layer(below: Below, tmp_path: Path, most: int = 2) -> Iterator[Layer]:
    made = Layer(below, len(below.letters) * BLOCK, tmp_path / "slots", most)
    yield made
    made.close()


def read(disk: Layer, offset: int, length: int) -> bytes:
    data = bytearray(length)
    disk.read_into(offset, memoryview(data))
    return bytes(data)


def test_it_reads_as_what_was_written_over_what_is_below(tmp_path: Path) -> None:
    numbers, below = random.Random(11), Below("AB.CD..E")
    expected = below.image()
    with layer(below, tmp_path) as disk:
        for _ in range(300):
            offset = numbers.randrange(len(expected))
            length = min(numbers.choice((1, 512, 4096, BLOCK, 3 * BLOCK)), len(expected) - offset)
            if numbers.random() < 0.3:
                data = bytes([numbers.randrange(256)]) * length
                disk.write(offset, memoryview(data))
                expected[offset : offset + length] = data
            else:
                assert read(disk, offset, length) == expected[offset : offset + length]
        assert read(disk, 0, len(expected)) == expected
        base = below.image()
        differ = [at for at in range(8) if expected[at * BLOCK :][:BLOCK] != base[at * BLOCK :][:BLOCK]]
        found = list(disk.changed())
    assert [index for index, *_ in found] == differ
    for index, data, digest in found:
        assert data == expected[index * BLOCK :][:BLOCK]
        assert digest == sha256(data).digest()


def test_no_more_is_fetched_than_is_touched_and_no_more_is_kept_than_the_limit(tmp_path: Path) -> None:
    below = Below("ABCDEF")
    with layer(below, tmp_path, most=2) as disk:
        for index in (0, 1, 0, 1):
            read(disk, index * BLOCK + 7, 9)
        assert below.asked == [0, 1]
        read(disk, 2 * BLOCK, 1)
        read(disk, BLOCK, 1)
        assert below.asked == [0, 1, 2]  # the one that was used last but one went
        read(disk, 0, 1)
        assert below.asked == [0, 1, 2, 0]
        disk.write(3 * BLOCK, memoryview(b"x"))
        for index in (0, 1, 2):
            read(disk, index * BLOCK, 1)
        assert read(disk, 3 * BLOCK, 2) == b"xD"  # what was changed is never fetched again
        assert below.asked.count(3) == 1
    assert (tmp_path / "slots").stat().st_size <= 4 * BLOCK


def test_what_was_written_and_is_the_same_is_no_change(tmp_path: Path) -> None:
    with layer(Below("AB."), tmp_path) as disk:
        disk.write(0, memoryview(b"A" * 100))
        disk.write(BLOCK, memoryview(b"x"))
        disk.write(BLOCK, memoryview(b"B"))
        disk.write(2 * BLOCK, memoryview(bytes(BLOCK)))
        assert list(disk.changed()) == []


def test_a_block_that_could_not_be_fetched_is_asked_for_again(tmp_path: Path) -> None:
    class Busy(Below):
        def block(self, index: int) -> bytes | None:
            if not self.asked:
                self.asked.append(-1)
                raise Retry("busy")
            return super().block(index)

    with layer(Busy("A"), tmp_path) as disk:
        with pytest.raises(Retry):
            read(disk, 0, 1)
        assert read(disk, 0, 1) == b"A"


def test_a_scratch_folder_that_is_full_says_so() -> None:
    disk = Layer(Below("A"), BLOCK, Path("/dev/full"))
    with pytest.raises(NoSpace) as caught:
        read(disk, 0, 1)
    assert caught.value.code == "layer-full"
    disk.close()


def qemu(server: Server, export: str, *commands: str) -> str:
    """Have QEMU, who is its real peer, ask the server; return what it says."""
    words = [word for command in commands for word in ("-c", command)]
    where = f"nbd+unix:///{export}?socket={server.path}"
    done = subprocess.run(["qemu-io", "-f", "raw", *words, where], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_qemu_reads_and_writes_it(tmp_path: Path) -> None:
    with layer(Below("AB.D"), tmp_path) as disk, Server(tmp_path / "n", {"vda": disk, "vdb": disk}) as server:
        said = qemu(
            server,
            "vda",
            f"write -P 0x6f {BLOCK - 512} 1k",
            f"write -z {3 * BLOCK} 4k",
            "flush",
            f"read -P 0x41 0 {BLOCK - 512}",
            f"read -P 0x6f {BLOCK - 512} 1k",
            f"read -P 0x42 {BLOCK + 512} {BLOCK - 512}",
            f"read -P 0 {2 * BLOCK} {BLOCK + 4096}",
            f"discard 0 {BLOCK}",
            "length",
        )
        assert "verification failed" not in said
        assert "error" not in said, said
        assert "2 MiB" in said
        assert "0x6f" not in qemu(server, "vdb", f"read -P 0x6f {BLOCK - 512} 1k")
        assert read(disk, BLOCK - 2, 4) == b"oooo"
        assert server.failure is None
    assert not (tmp_path / "n").exists()


def test_what_goes_wrong_below_is_an_error_there_and_kept_here(tmp_path: Path) -> None:
    class Gone(Below):
        def block(self, index: int) -> bytes | None:
            if index == 1:
                raise Retry("the key cannot be used", code="kms-key")
            return super().block(index)

    with layer(Gone("AB"), tmp_path) as disk, Server(tmp_path / "n", {"vda": disk}) as server:
        said = qemu(server, "vda", f"read {BLOCK} 512", "read -P 0x41 0 512")
        assert said.count("Input/output error") == 1
        assert "verification failed" not in said
        assert server.failure is not None
        assert server.failure.code == "kms-key"


def test_an_export_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with layer(Below("A"), tmp_path) as disk, Server(tmp_path / "n", {"vda": disk}) as server:
        assert "not available" in qemu(server, "vdb", "read 0 512")
        assert "read 512/512" in qemu(server, "vda", "read 0 512")
