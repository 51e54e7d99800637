"""Images that people put into a pool, so that a first copy need not cross the link: which ones may be taken."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from farshore.errors import Invalid, NotFound

#: Begins the name of an image that is the disk of a machine: see ``Platform.adopt``.
OLD_DISK: Final = "machine:"


def locate(pool: Path, image: str) -> Path:
    """Return where ``image``, a path relative to the pool or absolute, really is.

    Raises:
        NotFound: nothing is there.
        Invalid: it is outside of the pool, also by a symbolic link, or no regular file.
    """
    root = pool.resolve()
    try:
        path = Path(os.path.realpath(root / image, strict=True))
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise NotFound(
            f"there is no image {image!r} in the pool {pool}",
            code="seed-not-found",
            hint="Name it by its path below the pool of the target site.",
            field="seed",
        ) from error
    if not path.is_relative_to(root):
        raise Invalid(
            f"the image {image!r} lies outside of the pool {pool}",
            code="seed-outside",
            field="seed",
            hint="Put the image itself, not a link to it, into the pool.",
        )
    if not stat.S_ISREG(mode):
        raise Invalid(f"{image!r} is no regular file", code="seed-not-a-file", field="seed")
    return path


def refuse_larger(image: str, size_bytes: int, disk_bytes: int) -> None:
    """Raise ``Invalid`` where an image holds more than its disk."""
    if size_bytes > disk_bytes:
        raise Invalid(
            f"the image {image!r} has {size_bytes} bytes, more than the {disk_bytes} of its disk",
            code="seed-too-large",
            field="seed",
            hint="It is not a copy of this disk.",
        )
