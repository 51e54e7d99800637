"""Looks now and then at what this node has for guests and hooks, so that preflight can tell what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from farshore.model.kit import Kit
from farshore.recovery.guest import tools
from farshore.recovery.hooks.player import Player

#: What an administrator puts right shows up within this.
LOOK_EVERY_S: Final = 30.0
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Kits:
    """What was seen last. ``player`` is None at a node that plays no hooks; ``guests``: it looks into some."""

    def __init__(self, player: Player | None, *, guests: bool, clock: Callable[[], float]) -> None:
        self._player = player
        self._guests = guests
        self._clock = clock
        self._host = _BOOT_ID.read_text(encoding="ascii").strip()
        self._kit = Kit(host=self._host)
        self._look_at = clock()

    def now(self) -> Kit:
        """Return it, not older than :data:`LOOK_EVERY_S`."""
        now = self._clock()
        if self._player is not None and now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            no_hooks, secrets = self._player.kit()
            self._kit = Kit(
                host=self._host,
                lacks=tools.missing() if self._guests else (),
                no_hooks=no_hooks[:500],
                secrets=secrets[:1024],
            )
        return self._kit
