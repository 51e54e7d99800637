"""Numbers and layouts of the NBD protocol.

Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md (fixed newstyle, structured replies, meta
contexts). All integers are big-endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

GREETING: Final = struct.Struct(">8s8sH")  # NBDMAGIC, IHAVEOPT, handshake flags
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">8sII")  # IHAVEOPT, option, length
OPTION_REPLY: Final = struct.Struct(">QIII")  # magic, option, reply type, length
REQUEST: Final = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
REPLY_MAGIC: Final = struct.Struct(">I")
SIMPLE_REPLY: Final = struct.Struct(">IQ")  # after the magic: error, cookie
CHUNK: Final = struct.Struct(">HHQI")  # after the magic: flags, type, cookie, length
INFO_EXPORT: Final = struct.Struct(">HQH")  # Info.EXPORT, size, flags
EXTENT: Final = struct.Struct(">II")  # length, status flags

MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
CHUNK_MAGIC: Final = 0x668E33EF

FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2

#: Payload of one request that every server takes, where it names no other limit.
MAX_PAYLOAD: Final = 32 * 1024 * 1024
#: Largest range of one request without payload: a multiple of any block size below 2**32.
MAX_RANGE: Final = 1 << 30
#: Longest option reply that we read, against a peer that is not what it says.
MAX_OPTION_REPLY: Final = 1 << 20

ALLOCATION: Final = "base:allocation"
ALLOCATION_DEPTH: Final = "qemu:allocation-depth"
STATE_HOLE: Final = 1  # of base:allocation: nothing is allocated here
STATE_ZERO: Final = 2  # of base:allocation: reads as zero
STATE_DIRTY: Final = 1  # of qemu:dirty-bitmap:*


def dirty_bitmap(name: str) -> str:
    """Return the meta context that tells what the bitmap ``name`` holds (QEMU, docs/interop/nbd.txt)."""
    return f"qemu:dirty-bitmap:{name}"


class Option(IntEnum):
    """What a client asks for before an export is chosen."""

    ABORT = 2
    GO = 7
    STRUCTURED_REPLY = 8
    SET_META_CONTEXT = 10


class OptionReply(IntEnum):
    """What a server answers to an option; errors have the highest bit."""

    ACK = 1
    INFO = 3
    META_CONTEXT = 4
    ERROR = 1 << 31
    ERROR_UNSUPPORTED = (1 << 31) + 1
    ERROR_UNKNOWN = (1 << 31) + 6


class Info(IntEnum):
    """Parts of the answer to ``GO``."""

    EXPORT = 0
    BLOCK_SIZE = 3


class Command(IntEnum):
    """Requests of the transmission phase."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class ExportFlag(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    CAN_MULTI_CONN = 1 << 8


#: Of WRITE_ZEROES: allocate; without it the server may punch a hole.
NO_HOLE: Final = 1 << 1
#: Of a chunk: the last one of this reply.
DONE: Final = 1


class Chunk(IntEnum):
    """Kinds of chunks of a structured reply; errors have the highest bit."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 1 << 15
