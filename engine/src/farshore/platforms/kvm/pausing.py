"""Pausing several machines for one common instant, and letting them run again."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from farshore.errors import Retry
from farshore.platforms.kvm.connection import asking, libvirt

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def paused(handles: Sequence[tuple[str, Any]]) -> Iterator[dict[str, float]]:
    """Pause all machines, then let all run again, whatever happens; yields what will hold each one's pause in seconds.

    Raises:
        Retry: one could not be paused, or not be resumed (``machine-paused``, after all others were).
    """
    pauses: dict[str, float] = {}
    began: list[tuple[str, Any, float]] = []
    stuck: list[str] = []
    try:
        for machine_id, handle in handles:
            began.append((machine_id, handle, time.monotonic()))
            with asking(f"pausing machine {machine_id}"):
                handle.suspend()
        yield pauses
    finally:
        for machine_id, handle, since in began:
            try:
                if handle.state(0)[0] == libvirt.VIR_DOMAIN_PAUSED:
                    handle.resume()
            except libvirt.libvirtError as error:
                _log.error("machine %s could not be resumed: %s", machine_id, error)
                stuck.append(machine_id)
            pauses[machine_id] = time.monotonic() - since
        if stuck:  # also instead of an error of the point, which the next try tells again
            raise Retry(
                f"machines {', '.join(stuck)} stay paused after the point", code="machine-paused", machines=stuck
            )
