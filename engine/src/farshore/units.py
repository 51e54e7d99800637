"""Sizes and durations, defined once.

The public pages of the field say "MB"; one MB of theirs is one MiB here.
"""

from __future__ import annotations

import re
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB

#: Largest payload of one chunk, the unit of transfer.
CHUNK_SIZE: Final = 1 * MIB
#: Bytes of one leaf of a disk's digest tree.
LEAF_SIZE: Final = 64 * KIB
#: Window levels of one disk in bytes, lowest first.
WINDOW_LEVELS: Final = (16 * MIB, 24 * MIB, 32 * MIB, 48 * MIB, 64 * MIB)
#: Default window of one disk.
PER_DISK_WINDOW: Final = 32 * MIB
#: Data written between two intermediate checkpoints (marks) of one disk.
INTERMEDIATE_CHECKPOINT_WINDOW: Final = 500 * MIB

#: What a link is taken to carry until that is measured: bytes per second.
LINK_RATE: Final = 128 * MIB

_SIZES: Final = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
_SIZE: Final = re.compile(r"^\s*(\d+)\s*(?:([kmgt])(?:i?b)?|b)?\s*$", re.IGNORECASE)
#: No "Mbps": people mean either by it.
_RATE: Final = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(bit|i?B)\s*/\s*s\s*$")
_DECIMAL: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_DURATIONS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION: Final = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)\s*$", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """Return the bytes that ``text`` names: ``"8MiB"``, ``"512 k"``, ``4096``.

    Raises:
        ValueError: if it names no size.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise ValueError(f"{text} is negative; a size is 0 or more")
        return text
    match = _SIZE.match(str(text))
    if not match:
        raise ValueError(f"{text!r} is no size; write it as 512KiB, 8MiB or 2GiB")
    return int(match[1]) * _SIZES[(match[2] or "").lower()]


def parse_duration(text: str | float) -> float:
    """Return the seconds that ``text`` names: ``"15m"``, ``"30s"``, ``90``.

    Raises:
        ValueError: if it names no duration.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if text < 0:
            raise ValueError(f"{text} is negative; a duration is 0 or more")
        return float(text)
    match = _DURATION.match(str(text))
    if not match:
        raise ValueError(f"{text!r} is no duration; write it as 30s, 15m, 4h or 1d")
    return float(match[1]) * _DURATIONS[match[2].lower()]


def parse_rate(text: str | float) -> int:
    """Return the bytes per second that ``text`` names: ``"200 Mbit/s"``, ``"25 MiB/s"``, ``1048576``.

    Bits are counted as links are sold, by thousands; bytes as disks are, by 1024.

    Raises:
        ValueError: if it names no rate.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if text <= 0:
            raise ValueError(f"{text} is no rate; a rate is more than 0")
        return int(text)
    match = _RATE.match(str(text))
    if not match:
        raise ValueError(f"{text!r} is no rate; write it as 200 Mbit/s or 25 MiB/s")
    number, prefix, unit = float(match[1]), match[2].lower(), match[3]
    rate = int(number * _DECIMAL[prefix] / 8) if unit == "bit" else int(number * _SIZES[prefix])
    if rate <= 0:
        raise ValueError(f"{text!r} is no rate; a rate is more than 0")
    return rate


def format_rate(bytes_per_s: float) -> str:
    """Return a rate for people: ``"25.0 MiB/s (209.7 Mbit/s)"``."""
    bits = bytes_per_s * 8
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits >= size:
            return f"{format_size(bytes_per_s)}/s ({bits / size:.1f} {unit})"
    return f"{format_size(bytes_per_s)}/s ({bits:.0f} bit/s)"


def format_size(size_bytes: float) -> str:
    """Return a size for people: ``"1.5 MiB"``."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_duration(duration_s: float) -> str:
    """Return a duration for people: ``"4.2 s"``, ``"3 min 5 s"``, ``"2 h 4 min"``."""
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    seconds = round(duration_s)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 172800:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"
