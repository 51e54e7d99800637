"""The two digests, never confused.

The *wire* digest guards one chunk on its way and binds it to its place. The *leaf* digest is of content alone and goes
into the disk's digest tree, where position is bound by the tree.
"""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

from blake3 import blake3
from xxhash import xxh3_128

from farshore.units import CHUNK_SIZE, LEAF_SIZE

#: What can be digested without a copy.
Buffer: TypeAlias = bytes | bytearray | memoryview

DIGEST_SIZE: Final = 32
_ZEROS: Final = bytes(CHUNK_SIZE)
_CONTEXT: Final = struct.Struct(">QIQI")


def leaf_digest(content: Buffer, leaf_size: int = LEAF_SIZE) -> bytes:
    """Return the BLAKE3 of one leaf.

    The last leaf of a disk whose size is no multiple of the leaf size is digested *as if zeros followed* up to the leaf
    size. So an all-zero leaf has one digest wherever it lies, and a target that rounds the size up has the same leaves.
    The disk's true size is bound by the tree's root.
    """
    size = memoryview(content).nbytes
    hasher = blake3(content)
    if size < leaf_size:
        hasher.update(bytes(leaf_size - size))
    elif size > leaf_size:
        raise ValueError(f"a leaf has {leaf_size} bytes at most, not {size}")
    return hasher.digest()


#: Digest of a leaf that is all zeros.
ZERO_LEAF: Final = leaf_digest(b"")


def is_zero(view: memoryview) -> bool:
    """Say whether up to 1 MiB is all zeros.

    ``startswith`` is a memcmp that ends at the first difference and copies nothing; comparing a memoryview with bytes
    would go element by element.
    """
    return _ZEROS.startswith(view)


def leaf_digests(view: memoryview) -> list[bytes]:
    """Return the digest of each leaf of ``view``, which begins at a leaf."""
    whole = len(view) // LEAF_SIZE * LEAF_SIZE
    if 0 in bytes(view[::LEAF_SIZE]):  # the first bytes of all leaves: else none of them is zero
        leaves = [view[at : at + LEAF_SIZE] for at in range(0, whole, LEAF_SIZE)]
        digests = [ZERO_LEAF if is_zero(leaf) else blake3(leaf).digest() for leaf in leaves]
    else:
        digests = [blake3(view[at : at + LEAF_SIZE]).digest() for at in range(0, whole, LEAF_SIZE)]
    if whole < len(view):
        digests.append(leaf_digest(view[whole:]))
    return digests


def wire_digest(session: int, disk: int, epoch: int, meta: Buffer, payload: Buffer) -> bytes:
    """Return the xxh3-128 that binds a chunk to where it belongs.

    Args:
        session: number of the session (unsigned, 64 bits).
        disk: index of the disk within the session.
        epoch: the direction's counter.
        meta: the chunk's table, which names offset, length and kind of every piece and the leaf digests.
        payload: the data pieces, one behind the other.
    """
    hasher = xxh3_128(_CONTEXT.pack(session, disk, epoch, memoryview(meta).nbytes))
    hasher.update(meta)
    hasher.update(payload)
    return hasher.digest()
