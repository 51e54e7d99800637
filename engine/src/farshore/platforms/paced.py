"""A site's machines, asked no faster than this node may ask: a share of what the provider's API allows.

A provider that says that it is too busy slows the node down, and is asked again; so is one whose reply was lost, for
every call finds what an earlier one with the same name has made.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, cast

from farshore.errors import Reconnect, Retry
from farshore.limits import Bucket
from farshore.platforms.contract import Compute

#: Codes of errors after which the same call is made again here.
AGAIN: Final = frozenset({"throttled", "reply-lost"})
#: Tries of one call, and the pause after the first; it doubles. About ten seconds in all.
MOST_TRIES: Final = 6
PAUSE_S: Final = 0.3
#: For how long a node that was told to slow down keeps to half of its share.
SLOW_S: Final = 10.0
#: What is saved up while nobody calls, as time. Who holds part ``r`` of a rate makes at most ``r * (1 + saved) + 1``
#: calls in any second, whatever its threads did before. So all together keep to the rate where what is handed out of it
#: (97 % for an operation, ``control/scheduling/rates.py``) times 1.03 is no more than the whole, to within one call for
#: each process. What comes later than that after its turn is lost to the mean; threads wake up within milliseconds.
SAVED_S: Final = 0.03
#: The longest wait for a turn that is slept at once: a changed share counts soon.
_NAP_S: Final = 0.5


class Pace:
    """Calls per second. Safe from several threads."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._share: float | None = None
        self._slow_until = float("-inf")
        self._bucket = Bucket(None, clock(), "ops", SAVED_S)

    def set(self, per_s: float | None) -> None:
        """Let another share hold from now on; None is no limit."""
        with self._lock:
            self._share = per_s
            self._adjust()

    def slow(self) -> None:
        """Keep to half of the share for a while."""
        with self._lock:
            self._slow_until = self._clock() + SLOW_S
            self._adjust()

    def _adjust(self) -> None:
        """Set the rate that holds now. The caller holds the lock."""
        now = self._clock()
        rate = self._share / 2 if self._share is not None and now < self._slow_until else self._share
        if rate != self._bucket.per_s:
            self._bucket.change(rate, now)

    def wait(self) -> None:
        """Return when it is this call's turn."""
        while True:
            with self._lock:
                self._adjust()
                now = self._clock()
                at = self._bucket.ready_at(now)
                if at <= now:
                    self._bucket.take(1, now)
                    return
            self._sleep(min(at - now, _NAP_S))

    def pause(self, tries: int) -> None:
        """Wait before the next try of a call that did not come through."""
        self._sleep(PAUSE_S * 2.0 ** (tries - 1))


class _Paced:
    """Whatever has methods, each of which is one call."""

    def __init__(self, inner: Any, pace: Pace) -> None:
        self._inner = inner
        self._pace = pace

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            tries = 0
            while True:
                self._pace.wait()
                try:
                    return found(*args, **kwargs)
                except (Retry, Reconnect) as error:
                    tries += 1
                    if error.code not in AGAIN or tries >= MOST_TRIES:
                        raise
                    if error.code == "throttled":
                        self._pace.slow()
                    self._pace.pause(tries)

        return call


def paced(compute: Compute, pace: Pace) -> Compute:
    """Return ``compute``, asked no faster than ``pace`` allows."""
    return cast("Compute", _Paced(compute, pace))
