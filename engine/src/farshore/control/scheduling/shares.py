"""Shares of a limited rate, leased to those who use it. The sum of what anybody may be using stays within the limit.

A holder asks again and again. It gets an equal part of the limit, less if others have not let go of theirs yet: what
was handed out counts until its holder has said that it holds something else (any answer may have been lost), or until
the lease has run out. A holder that cannot ask any more goes on with ``later``, a part that is kept free for it: so
nobody's work stops because the one that hands out is away, and still the sum holds.

Nothing here knows what the rate is of: bytes per second of a link, requests per second of an account.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

#: How long a share holds without being renewed: two long polls, and time to spare.
LEASE_S: Final = 45.0
#: How long something is kept free for a holder that was not heard of after its lease.
KEPT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Share:
    """What one holder has of one resource.

    Attributes:
        rate: what it was given last, to be used until ``until`` (seconds since the epoch).
        later: what it was given last to go on with afterwards.
        held, kept: the most that it may be using until and after ``until``: more than ``rate`` and ``later`` while an
            answer may have been lost.
    """

    rate: float = 0.0
    later: float = 0.0
    held: float = 0.0
    kept: float = 0.0
    until: float = 0.0

    def taken(self, now: float) -> float:
        """Return what others must leave to the holder."""
        if now < self.until:
            return self.held
        return 0.0 if self.lapsed(now) else self.kept

    def lapsed(self, now: float) -> bool:
        """Say whether nothing is left to the holder any more, so that others may have it all."""
        return now >= self.until + KEPT_S

    def confirm(self) -> Share:
        """Return the share of a holder that has said that it holds what it was given last."""
        return replace(self, held=self.rate, kept=self.later)


def lease(
    shares: Mapping[str, Share], holder: str, *, limit: float, users: Collection[str], members: int, now: float
) -> Share:
    """Return the new share of ``holder``.

    Args:
        shares: what is out, by holder.
        holder: who asks.
        limit: what all together may use.
        users: who has use for a part now; ``holder`` counts in any case.
        members: how many holders there can ever be; what is kept for the silent ones leaves half of the limit.
        now: seconds since the epoch.
    """
    mine = shares.get(holder, Share())
    if mine.lapsed(now):
        mine = Share()
    others = sum(share.taken(now) for name, share in shares.items() if name != holder)
    part = limit / len({holder, *users})
    # What the holder may be using anyway can be given again, also where a lowered limit is exceeded already.
    rate = max(0.0, min(part, max(limit - others, mine.taken(now))))
    later = rate if members <= 1 else min(rate, limit / (2 * members))
    return Share(rate, later, max(rate, mine.taken(now)), max(later, mine.kept), now + LEASE_S)
