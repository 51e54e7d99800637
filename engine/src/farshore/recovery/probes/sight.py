"""What one try of a probe saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Most bytes of a guest's answer that a probe reads.
READ_LIMIT_BYTES: Final = 64 * 1024
#: Most bytes of evidence that an outcome carries.
EVIDENCE_LIMIT_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Sight:
    """One try: its verdict in a sentence, and the text that was seen."""

    green: bool
    detail: str
    seen: str = ""


def clean(text: str, limit_bytes: int = EVIDENCE_LIMIT_BYTES) -> str:
    """Return ``text`` without control characters (newline and tab stay), at most ``limit_bytes`` long in UTF-8."""
    text = text.replace("\r", "")
    printable = "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    data = printable.encode("utf-8", errors="replace")
    return data[:limit_bytes].decode("utf-8", errors="ignore")


def decode(data: bytes) -> str:
    """Return what a guest sent as text."""
    return data.decode("utf-8", errors="replace").replace("\r\n", "\n")
