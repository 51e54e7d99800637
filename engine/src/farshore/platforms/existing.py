"""What a first copy may begin with: images that people put into a pool, and disks of machines that rest."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from farshore.errors import Conflict, Invalid, NotFound

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


def not_resting(name: str, machine_id: str, *, fenced: bool) -> Conflict:
    """Return that an old primary is still in use: it is not off, or not ``fenced``."""
    return Conflict(
        f"machine {name} is {'not off' if fenced else 'not fenced'}: it may still be written",
        code="old-primary-not-fenced",
        hint="It is fenced at first contact. Wait for that, or look at its site.",
        machine_id=machine_id,
    )


def fenced_later(name: str, machine_id: str, epoch: int, ordered: int) -> Conflict:
    """Return that an old primary is fenced in an ``epoch`` after that of an order to delete it."""
    return Conflict(
        f"machine {name} is fenced in epoch {epoch}, this order is of {ordered}",
        code="old-primary-fenced-later",
        hint="Look at its plan: what rests there may count again.",
        machine_id=machine_id,
    )
