"""What is known of a published checkpoint's content: how it was audited, and what was found out later.

A manifest never changes. What an audit or a scrub finds out about a checkpoint is an object of its own beside it, an
*addendum*.
"""

from __future__ import annotations

from typing import Literal

from farshore.model.base import Report

#: ``audited``: nothing speaks against it. ``verified``: every leaf was read back from the target and is what the
#: manifest says. ``suspect``: it may differ from the source's point, or the target has lost some of it.
Integrity = Literal["audited", "verified", "suspect"]


class DiskAudit(Report):
    """Which leaves of a disk were compared with the source while a checkpoint was made.

    ``whole``: all of them, by a full copy or a verify pass. Else those whose turn was ``turn`` of ``slots``; see
    :mod:`farshore.checkpoints.audit`. ``slots`` 0: none.
    """

    slots: int
    turn: int
    whole: bool = False


class Damage(Report):
    """Where a checkpoint is not what it should be, in bytes of the disk. ``length`` 0: all of the disk, or not known.

    ``kind``: ``missed-change`` the copy differs from the source where change tracking has named nothing; ``content``
    the target holds other bytes than it was given; ``unreadable`` it could not be read; ``missing`` the point is gone;
    ``tree`` the stored digest tree is damaged.
    """

    disk_key: str
    kind: Literal["missed-change", "content", "unreadable", "missing", "tree"]
    offset: int = 0
    length: int = 0
    detail: str = ""


class Addendum(Report):
    """A verdict on a published checkpoint.

    ``origin`` names the checkpoint whose cycle, or the run whose scrub, found it. ``damages`` is cut to a length that
    can be kept; ``more`` is how many were left out. ``at``: seconds since the epoch.
    """

    version: Literal[1] = 1
    checkpoint_id: str
    group_id: str
    epoch: int
    sequence: int
    verdict: Literal["verified", "suspect"]
    by: Literal["audit", "scrub"]
    origin: str
    at: float
    reason: str
    damages: tuple[Damage, ...] = ()
    more: int = 0
    read_bytes: int = 0


def integrity_of(addenda: tuple[Addendum, ...] | list[Addendum]) -> Integrity:
    """Return what all the addenda of one checkpoint say together.

    What an audit has found stays: a scrub compares with the manifest, and it is the manifest that an audit doubts. Of
    several scrubs the last one counts, for a pool can be repaired.
    """
    if any(one.by == "audit" and one.verdict == "suspect" for one in addenda):
        return "suspect"
    scrubs = sorted((one for one in addenda if one.by == "scrub"), key=lambda one: one.at)
    return scrubs[-1].verdict if scrubs else "audited"
