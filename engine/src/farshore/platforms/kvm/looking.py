"""Looks at a running machine from outside: its screen, and what its guest agent says."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final

from farshore.errors import NotFound, Permanent, Retry
from farshore.platforms.kvm.connection import asking, code_of, libvirt

_PPM: Final = re.compile(rb"P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s")
_PNG: Final = b"\x89PNG\r\n\x1a\n"
#: Raw pixels of 3840 x 2160; more is no screen.
_MOST_BYTES: Final = 32 << 20
_PIECE: Final = 1 << 16
_NO_AGENT: Final = 74  # it has no such device
_MUTE: Final = 86  # it does not answer, or is not connected yet


def screen(connection: Any, handle: Any) -> bytes:
    """Return a running machine's screen as a PNG; ``NotFound`` if it has none or is off."""
    stream = connection.newStream(0)
    data = bytearray()
    try:
        handle.screenshot(stream, 0, 0)
        while piece := stream.recv(_PIECE):
            data += piece
            if len(data) > _MOST_BYTES:
                stream.abort()
                raise Permanent(f"the screen of {handle.name()} is larger than {_MOST_BYTES} bytes", code="screen")
        stream.finish()
    except libvirt.libvirtError as error:
        raise NotFound(f"machine {handle.name()} shows no screen: {error}", code="no-screen") from error
    return png(bytes(data))


def png(data: bytes) -> bytes:
    """Return a picture as a PNG; QEMU without the library writes a PPM (P6), whatever type it tells.

    Raises:
        Permanent: it is neither.
    """
    if data.startswith(_PNG):
        return data
    head = _PPM.match(data)
    width, height = (int(head[1]), int(head[2])) if head else (0, 0)
    # One white space ends the head; pixels may look like white space too.
    pixels = data[head.end() :] if head else b""
    row = 3 * width
    if not pixels or len(pixels) != row * height:
        raise Permanent("the screen is neither PNG nor PPM", code="screen")
    lines = b"".join(b"\0" + pixels[at : at + row] for at in range(0, len(pixels), row))
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return _PNG + _chunk(b"IHDR", size) + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def ask_agent(handle: Any, request: Mapping[str, Any], timeout_s: float) -> Any:
    """Ask the guest's agent; see :meth:`farshore.platforms.contract.Compute.agent`."""
    import libvirt_qemu

    try:
        # Whole seconds, at least one; libvirt's own meaning of 0 is to look once.
        answer = libvirt_qemu.qemuAgentCommand(handle, json.dumps(dict(request)), max(1, round(timeout_s)), 0)
    except libvirt.libvirtError as error:
        code = code_of(error)
        if code == _MUTE:
            raise Retry(f"the guest agent of {handle.name()} does not answer: {error}", code="no-answer") from error
        if code == _NO_AGENT:
            raise Permanent(f"machine {handle.name()} has no guest agent", code="no-agent") from error
        if "unable to execute QEMU agent command" in str(error):
            raise Permanent(f"the guest agent refused: {error}", code="agent-refused") from error
        with asking(f"asking the guest agent of {handle.name()}"):
            raise
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return json.loads(answer)["return"]
    raise Permanent(f"the guest agent of {handle.name()} does not speak its protocol", code="agent-refused")
