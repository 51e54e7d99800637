"""Where a sparse file has data. Apart, so that the bare pipe imports nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def data_ranges(path: Path) -> Iterator[tuple[int, int]]:
    """Yield ``(offset, length)`` of what is no hole in the file."""
    with path.open("rb") as image:
        size = os.fstat(image.fileno()).st_size
        at = 0
        while at < size:
            try:
                start = os.lseek(image.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            at = os.lseek(image.fileno(), start, os.SEEK_HOLE)
            yield start, at - start
