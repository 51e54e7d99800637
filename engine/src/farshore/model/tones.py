"""Whether a state is good news: one vocabulary for the command line and the web page."""

from __future__ import annotations

from typing import Final

_BY_TONE: Final = {
    "good": (
        "active",
        "green",
        "info",
        "ok",
        "on",
        "online",
        "protected",
        "published",
        "succeeded",
        "verified",
    ),
    "busy": (
        "assigned",
        "creating",
        "drilling",
        "enrolled",
        "failing-over",
        "pending",
        "preparing",
        "reprotecting",
        "running",
        "seeding",
        "starting",
    ),
    "warn": (
        "cancelled",
        "failed-over",
        "inactive",
        "new",
        "no-node",
        "partial",
        "paused",
        "skipped",
        "waiting-approval",
        "warning",
    ),
    "bad": (
        "divergent",
        "encryption-suspected",
        "error",
        "failed",
        "flagged",
        "offline",
        "red",
        "replication-failing",
        "resync-needed",
        "rpo-exceeded",
        "suspect",
        "tainted",
    ),
}
_TONES: Final = {state: tone for tone, states in _BY_TONE.items() for state in states}


def tone(state: object) -> str:
    """Return ``good``, ``busy``, ``warn`` or ``bad``; ``plain`` for a state that is none of them."""
    return _TONES.get(str(state), "plain")
