"""Disk images and change maps to measure with; the same seed gives the same bytes.

An image is a sparse file made of 1 MiB blocks: a quarter of them are holes, about 47 % of the rest is incompressible,
the remainder is text that zstd makes three times smaller. A changed image is a copy of a base in which extents of one
size, spread at random, hold other data; its map lists them.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from benchmarks.ranges import data_ranges

MIB: Final = 1 << 20
HOLES: Final = 0.25
INCOMPRESSIBLE: Final = 0.35 / 0.75
_ZEROS: Final = bytes(MIB)
_TEXTS: Final = 16


@dataclass(frozen=True, slots=True)
class Full:
    """An image with ``size_bytes`` of data beside its holes, or ``size_bytes`` long with them (``whole``)."""

    size_bytes: int
    whole: bool = False
    seed: int = 7

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"{'disk' if self.whole else 'data'}-{self.size_bytes // MIB}m-{self.seed}.img"


@dataclass(frozen=True, slots=True)
class Changed:
    """``base`` with ``share`` of its length changed in extents of ``extent_bytes``."""

    base: Full
    extent_bytes: int
    share: float
    seed: int = 3

    @property
    def name(self) -> str:
        """The name of the file; the map's has ``.json`` behind it."""
        return f"{self.base.name[:-4]}-{self.share:g}x{self.extent_bytes}-{self.seed}.img"


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk to copy. With a ``base`` the target starts as a copy of that, and ``changes`` is the map."""

    source: Path
    data_bytes: int
    base: Path | None = None
    changes: Path | None = None


def noise(seed: int, number: int, size_bytes: int) -> bytes:
    """Return incompressible bytes, the same for the same ``seed`` and ``number``."""
    key = sha256(f"farshore {seed}".encode()).digest()[:16]
    encryptor = Cipher(AES(key), CTR(number.to_bytes(16, "big"))).encryptor()
    made = bytearray()
    while len(made) < size_bytes:
        made += encryptor.update(_ZEROS[: size_bytes - len(made)])
    return bytes(made)


class Content:
    """The blocks of one seed. Every block differs from every other one."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def block(self, number: int, size_bytes: int = MIB, *, compressible: bool) -> bytes:
        """Return block ``number`` of at most 1 MiB."""
        if not compressible:
            return noise(self._seed, number << 32, size_bytes)
        chance = random.Random(self._seed << 64 | number)  # noqa: S311
        start = chance.randrange(MIB - size_bytes + 1)
        text = bytearray(_text(number % _TEXTS)[start : start + size_bytes])
        pieces = max(1, size_bytes // 16384)
        grains = noise(self._seed, 1 << 96 | number << 32, pieces * 64)
        for piece in range(pieces):
            at = chance.randrange(max(1, size_bytes - 64))
            text[at : at + 64] = grains[piece * 64 : piece * 64 + min(64, size_bytes - at)]
        return bytes(text)


@cache
def _text(number: int) -> bytes:
    """Return 1 MiB of words, the second half like the first."""
    chance = random.Random(number)  # noqa: S311 - to be repeatable is the point
    words = [noise(number, 1 << 64 | word, chance.randint(3, 9)).hex() for word in range(2000)]
    half = " ".join(chance.choices(words, k=MIB // 8)).encode()
    return (half + half)[:MIB]


def plan_blocks(spec: Full) -> Iterator[tuple[int, str]]:
    """Yield ``(offset, "hole" | "noise" | "text")`` of the image's 1 MiB blocks."""
    chance = random.Random(spec.seed)  # noqa: S311
    offset = data = 0
    while (offset if spec.whole else data) < spec.size_bytes:
        if chance.random() < HOLES:
            kind = "hole"
        else:
            kind = "noise" if chance.random() < INCOMPRESSIBLE else "text"
            data += MIB
        yield offset, kind
        offset += MIB


def plan_changes(length_bytes: int, spec: Changed) -> list[int]:
    """Return the offsets of the extents that change, in order."""
    extents = length_bytes // spec.extent_bytes
    chance = random.Random(spec.seed)  # noqa: S311
    picked = chance.sample(range(extents), round(extents * spec.share))
    return [number * spec.extent_bytes for number in sorted(picked)]


class Images:
    """A folder of images, made once and used again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def full(self, spec: Full) -> Disk:
        """Return the image that ``spec`` describes."""
        path = self._folder / spec.name
        if not path.exists():
            content = Content(spec.seed)
            blocks = list(plan_blocks(spec))
            with _parted(path) as part, part.open("wb") as out:
                for offset, kind in blocks:
                    if kind != "hole":
                        out.seek(offset)
                        out.write(content.block(offset // MIB, compressible=kind == "text"))
                out.truncate(blocks[-1][0] + MIB)
        data = sum(MIB for _, kind in plan_blocks(spec) if kind != "hole")
        return Disk(path, data)

    def changed(self, spec: Changed) -> Disk:
        """Return the changed image that ``spec`` describes, with base and map."""
        base = self.full(spec.base).source
        path = self._folder / spec.name
        changes = path.with_name(f"{path.name}.json")
        offsets = plan_changes(base.stat().st_size, spec)
        if not path.exists():
            content = Content(spec.seed + 1_000_003)
            chance = random.Random(spec.seed)  # noqa: S311
            changes.write_text(json.dumps([[offset, spec.extent_bytes] for offset in offsets]), encoding="ascii")
            with _parted(path) as part:
                copy_sparse(base, part)
                with part.open("r+b", buffering=0) as out:
                    for number, offset in enumerate(offsets):
                        text = chance.random() >= INCOMPRESSIBLE
                        out.seek(offset)
                        out.write(content.block(number + 1, spec.extent_bytes, compressible=text))
        return Disk(path, len(offsets) * spec.extent_bytes, base, changes)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy an image with its holes."""
    with source.open("rb") as data, target.open("wb") as out:
        for offset, length in data_ranges(source):
            os.lseek(out.fileno(), offset, os.SEEK_SET)
            done = 0
            while done < length:
                count = os.sendfile(out.fileno(), data.fileno(), offset + done, length - done)
                if count == 0:
                    raise OSError(f"{source} became shorter")
                done += count
        out.truncate(source.stat().st_size)


@contextmanager
def _parted(path: Path) -> Iterator[Path]:
    """Give a file its name only when it is whole."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
