"""Rates that are kept to: a token bucket with the clock as an argument.

A bucket may be overdrawn by one taker, who then makes all wait until the debt is paid. So a piece larger than what a
tenth of a second brings still passes, and over any longer time the rate holds to within one piece.
"""

from __future__ import annotations

import math
from typing import Final, Literal

Unit = Literal["bytes", "ops"]

#: What an idle bucket saves up, as time: enough to bridge a thread's wake-up, too little to be a burst on a link.
SAVED_S: Final = 0.1


class Bucket:
    """A rate in bytes or operations per second; None is no limit. ``now`` is in seconds and never goes back.

    ``saved_s``: what it saves up while nobody takes, as time.
    """

    __slots__ = ("_at", "_per_s", "_saved_s", "_tokens", "unit")

    def __init__(
        self, per_s: float | None = None, now: float = 0.0, unit: Unit = "bytes", saved_s: float = SAVED_S
    ) -> None:
        self.unit: Unit = unit
        self._saved_s = saved_s
        self._per_s = _checked(per_s)
        # Empty at the start: who begins again and again gets no more than who goes on.
        self._tokens = 0.0
        self._at = now

    @property
    def per_s(self) -> float | None:
        """The rate that holds now."""
        return self._per_s

    def change(self, per_s: float | None, now: float) -> None:
        """Let another rate hold from ``now`` on; what was taken before was taken at the old one.

        Raises:
            ValueError: a negative rate, or none that is a number. Zero lets nothing pass.
        """
        self._fill(now)
        if self._per_s is None:
            self._tokens = 0.0
        self._per_s = _checked(per_s)

    def ready_at(self, now: float) -> float:
        """Return when something may be taken: ``now``, a later time, or infinity for a rate of zero."""
        if self._per_s is None:
            return now
        self._fill(now)
        if self._tokens >= 0:
            return now if self._per_s else math.inf
        return now - self._tokens / self._per_s if self._per_s else math.inf

    def take(self, amount: float, now: float) -> None:
        """Take ``amount``, bytes or operations, whether or not it is there."""
        if self._per_s is not None:
            self._fill(now)
            self._tokens -= amount

    def give_back(self, amount: float) -> None:
        """Put back what was taken and did not cross the link; a negative amount is what crossed it in addition."""
        if self._per_s is not None:
            self._tokens += amount

    def _fill(self, now: float) -> None:
        if self._per_s is not None and now > self._at:
            self._tokens = min(self._tokens + (now - self._at) * self._per_s, self._per_s * self._saved_s)
        self._at = max(self._at, now)


def _checked(per_s: float | None) -> float | None:
    if per_s is not None and not 0 <= per_s < math.inf:
        raise ValueError(f"{per_s} is no rate")
    return per_s
