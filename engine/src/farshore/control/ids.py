"""Identifiers that sort by the time of their making."""

from __future__ import annotations

import secrets
import time
from typing import Final

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u


def new(prefix: str) -> str:
    """Return ``<prefix>-<18 characters>``: 48 bits of milliseconds, then 42 random bits."""
    value = (time.time_ns() // 1_000_000) << 42 | secrets.randbits(42)
    return f"{prefix}-{_encode(value, 18)}"


def short(size: int = 8) -> str:
    """Return ``size`` random characters that are safe in every platform's names."""
    return _encode(secrets.randbits(5 * size), size)


def _encode(value: int, size: int) -> str:
    digits = []
    for _ in range(size):
        value, digit = divmod(value, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
