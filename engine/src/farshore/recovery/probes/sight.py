"""What one try of a probe saw."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import Final

#: Most bytes of a guest's answer that a probe reads.
READ_LIMIT_BYTES: Final = 64 * 1024
#: Most bytes of evidence that an outcome carries.
EVIDENCE_LIMIT_BYTES: Final = 4096

# Why a try is not green.
NO_ADDRESS: Final = "no-address"
DNS_FAILED: Final = "dns-failed"
DNS_ELSEWHERE: Final = "dns-elsewhere"
UNREACHABLE: Final = "unreachable"
REFUSED: Final = "refused"
NO_ANSWER: Final = "no-answer"
WRONG_ANSWER: Final = "wrong-answer"
NOT_ALLOWED: Final = "not-allowed"
WRONG_HOST_KEY: Final = "wrong-host-key"
CANNOT_TRY: Final = "cannot-try"


@dataclass(frozen=True, slots=True)
class Sight:
    """One try: its verdict in a sentence, a code where it is not green, and the text that was seen.

    ``final``: no further try can change it.
    """

    green: bool
    detail: str
    seen: str = ""
    code: str = ""
    final: bool = False


def red(code: str, detail: str, seen: str = "", *, final: bool = False) -> Sight:
    """Return a try that was not green."""
    return Sight(green=False, detail=detail, seen=seen, code=code, final=final)


def of_error(error: OSError, seen: str = "") -> Sight:
    """Return the try that a network's error ended."""
    after = f" after {len(seen.encode())} bytes" if seen else ""
    if isinstance(error, socket.gaierror):
        return red(DNS_FAILED, f"the name cannot be looked up: {error.strerror or error}")
    if isinstance(error, ConnectionRefusedError):
        return red(REFUSED, f"{error.strerror or error}{after}", seen)
    if isinstance(error, TimeoutError):
        return red(NO_ANSWER, f"{error.strerror or str(error) or 'no answer in time'}{after}", seen)
    code = UNREACHABLE if error.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN} else NO_ANSWER
    return red(code, f"{error.strerror or error}{after}", seen)


def clean(text: str, limit_bytes: int = EVIDENCE_LIMIT_BYTES) -> str:
    """Return ``text`` without control characters (newline and tab stay), at most ``limit_bytes`` long in UTF-8."""
    text = text.replace("\r", "")
    printable = "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    data = printable.encode("utf-8", errors="replace")
    return data[:limit_bytes].decode("utf-8", errors="ignore")


def decode(data: bytes) -> str:
    """Return what a guest sent as text."""
    return data.decode("utf-8", errors="replace").replace("\r\n", "\n")
