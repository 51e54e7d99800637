"""The digest tree of a disk: content-addressed, shared between checkpoints, never whole in memory.

Shape
-----
* A *leaf* is the digest of 64 KiB of the disk (:func:`farshore.blocks.digest.leaf_digest`).
* A *node* of level 1 is the 256 leaf digests of 16 MiB, 8 KiB in all; of level n + 1 the 256 digests of level n. Its
  own digest is keyed BLAKE3, so that no node can be taken for a leaf. Places behind the end of the disk hold the
  digest of zeros: growing a disk by zeros changes no node.
* The *root* is the digest of a small record: version, leaf size, the disk's size, the height and the top node. Equal
  roots mean equal sizes and equal content; the root is what a manifest names.
* An all-zero subtree is one constant per level and is never stored.

Nodes come and go through two callbacks, ``load(digest) -> bytes`` and ``store(digest, bytes)``. A child is stored
before its parent, so a reader that finds a root finds all below it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from farshore.blocks.digest import DIGEST_SIZE, ZERO_LEAF
from farshore.errors import Corruption
from farshore.units import LEAF_SIZE

FANOUT: Final = 256
NODE_SIZE: Final = FANOUT * DIGEST_SIZE
#: 256 ** 5 leaves of 64 KiB are 64 PiB.
MAX_HEIGHT: Final = 5

_ROOT: Final = struct.Struct(">4sBBIQ32s")
_MAGIC: Final = b"FSHT"
_VERSION: Final = 1

Load = Callable[[bytes], bytes]
Store = Callable[[bytes, bytes], None]


def node_digest(node: bytes | bytearray) -> bytes:
    """Return the digest of a node of 256 digests."""
    return blake3(node, derive_key_context="farshore.dr digest tree node v1").digest()


def _zero_nodes() -> tuple[bytes, ...]:
    digests = [ZERO_LEAF]
    for _ in range(MAX_HEIGHT):
        digests.append(node_digest(digests[-1] * FANOUT))
    return tuple(digests)


#: Digest of an all-zero subtree, by level (0 is a leaf).
ZERO_NODES: Final = _zero_nodes()


@dataclass(frozen=True, slots=True)
class Tree:
    """A whole tree, named by its root."""

    size_bytes: int
    height: int
    top: bytes

    @property
    def leaves(self) -> int:
        """How many leaves the disk has."""
        return leaf_count(self.size_bytes)

    def record(self) -> bytes:
        """Return the root's record, whose digest is the root."""
        return _ROOT.pack(_MAGIC, _VERSION, self.height, LEAF_SIZE, self.size_bytes, self.top)

    @property
    def root(self) -> bytes:
        """The digest that names the tree."""
        return blake3(self.record(), derive_key_context="farshore.dr digest tree root v1").digest()


def leaf_count(size_bytes: int) -> int:
    """Return how many leaves a disk has; the last may be shorter than the others."""
    return -(-size_bytes // LEAF_SIZE)


def height_of(size_bytes: int) -> int:
    """Return the levels of nodes above the leaves, 1 at least."""
    height = 1
    while FANOUT**height < leaf_count(size_bytes):
        height += 1
    if height > MAX_HEIGHT:
        raise ValueError(f"a disk of {size_bytes} bytes is too large for the tree")
    return height


def empty(size_bytes: int) -> Tree:
    """Return the tree of an all-zero disk. Nothing of it is stored but its record."""
    height = height_of(size_bytes)
    return Tree(size_bytes, height, ZERO_NODES[height])


def open_tree(root: bytes, load: Load) -> Tree:
    """Return the tree that ``root`` names.

    Raises:
        Corruption: the stored record does not have this digest, or is of a kind that this code does not know.
    """
    record = load(root)
    if len(record) != _ROOT.size:
        raise Corruption("the record of a digest tree is damaged", code="tree-damaged", root=root.hex())
    magic, version, height, leaf_size, size, top = _ROOT.unpack(record)
    tree = Tree(size, height, top)
    if (magic, version, leaf_size) != (_MAGIC, _VERSION, LEAF_SIZE) or tree.root != root:
        raise Corruption("the record of a digest tree is damaged", code="tree-damaged", root=root.hex())
    return tree


def update(base: Tree | None, size_bytes: int, changes: Iterable[tuple[int, bytes]], load: Load, store: Store) -> Tree:
    """Return the tree of a disk of ``size_bytes`` that differs from ``base`` in ``changes``.

    Args:
        base: the tree to grow on; all zero where None. Its disk must not be larger.
        size_bytes: the disk's size now.
        changes: ``(first leaf, digests)`` of runs of leaves, one digest behind the other; strictly ascending.
        load: returns a stored node.
        store: keeps a node; called with children before parents, and with the root's record last.

    Raises:
        ValueError: indexes out of order or behind the end, or a base that is larger.
        Corruption: a loaded node does not have its digest.
    """
    height = height_of(size_bytes)
    top = ZERO_NODES[height]
    if base is not None:
        if base.size_bytes > size_bytes:
            raise ValueError(f"the base has {base.size_bytes} bytes, more than the {size_bytes} of the disk")
        top = base.top
        for level in range(
            base.height, height
        ):  # the disk outgrew its tree: the old top is the first child of a new one
            if top == ZERO_NODES[level]:
                top = ZERO_NODES[level + 1]
                continue
            node = top + ZERO_NODES[level] * (FANOUT - 1)
            top = node_digest(node)
            store(top, node)
    stream = _Stream(changes, leaf_count(size_bytes))
    if stream.index is not None:
        top = _update(height, top, stream, load, store)
    tree = Tree(size_bytes, height, top)
    store(tree.root, tree.record())
    return tree


class _Stream:
    """Changes with the next leaf in view; checks their order."""

    __slots__ = ("_at", "_changes", "_digests", "_limit", "index")

    def __init__(self, changes: Iterable[tuple[int, bytes]], limit: int) -> None:
        self._changes = iter(changes)
        self._limit = limit
        self._digests = b""
        self._at = 0
        self.index: int | None = None
        self._next_run(0)

    def take(self, stop: int) -> bytes:
        """Return the digests from the leaf in view on, up to ``stop`` at most, and bring what follows into view."""
        if self.index is None:
            raise AssertionError("no change left")
        at, index = self._at, self.index
        taken = self._digests[at : at + (stop - index) * DIGEST_SIZE]
        self._at += len(taken)
        self.index += len(taken) // DIGEST_SIZE
        if self._at == len(self._digests):
            self._next_run(self.index)
        return taken

    def _next_run(self, least: int) -> None:
        """Bring the next run into view; ``index`` is None behind the last."""
        following = next(self._changes, None)
        if following is None:
            self.index = None
            return
        first, digests = following
        leaves, odd = divmod(len(digests), DIGEST_SIZE)
        if odd or not leaves or not least <= first <= self._limit - leaves:
            raise ValueError(f"leaf {first} is out of order, behind the end, or has no digest")
        self.index, self._digests, self._at = first, digests, 0


def _update(level: int, digest: bytes, stream: _Stream, load: Load, store: Store) -> bytes:
    """Apply all changes that fall into the subtree of the next one; return the subtree's new digest."""
    if stream.index is None:
        raise AssertionError("no change left for this subtree")
    span = FANOUT**level
    first = stream.index // span * span
    step = span // FANOUT
    node = bytearray(_load(level, digest, load))
    while stream.index is not None and stream.index < first + span:
        at = (stream.index - first) // step * DIGEST_SIZE
        if level == 1:
            taken = stream.take(first + span)
            node[at : at + len(taken)] = taken
        else:
            node[at : at + DIGEST_SIZE] = _update(level - 1, bytes(node[at : at + DIGEST_SIZE]), stream, load, store)
    new = node_digest(node)
    if new not in {digest, ZERO_NODES[level]}:
        store(new, bytes(node))
    return new


def read_leaves(tree: Tree, first: int, stop: int, load: Load) -> bytes:
    """Return the digests of the leaves ``[first, stop)``, one behind the other; leaves behind the end read as zero.

    Raises:
        Corruption: a loaded node does not have its digest.
    """
    limit = FANOUT**tree.height
    inside = b"".join(_read(tree.height, tree.top, 0, first, min(stop, limit), load)) if first < limit else b""
    return inside + ZERO_LEAF * (stop - first - len(inside) // DIGEST_SIZE)


def _read(level: int, digest: bytes, start: int, first: int, stop: int, load: Load) -> Iterator[bytes]:
    """Yield the digests of ``[first, stop)`` below the node of ``level`` whose first leaf is ``start``."""
    low, high = max(first, start), min(stop, start + FANOUT**level)
    if low >= high:
        return
    if digest == ZERO_NODES[level]:
        yield ZERO_LEAF * (high - low)
        return
    node = _load(level, digest, load)
    if level == 1:
        yield node[(low - start) * DIGEST_SIZE : (high - start) * DIGEST_SIZE]
        return
    step = FANOUT ** (level - 1)
    for child in range((low - start) // step, -(-(high - start) // step)):
        at = child * DIGEST_SIZE
        yield from _read(level - 1, node[at : at + DIGEST_SIZE], start + child * step, first, stop, load)


def _load(level: int, digest: bytes, load: Load) -> bytes:
    """Return a node's 256 digests, proven against the node's own."""
    if digest == ZERO_NODES[level]:
        return ZERO_NODES[level - 1] * FANOUT
    node = load(digest)
    if len(node) != NODE_SIZE or node_digest(node) != digest:
        raise Corruption("a node of a digest tree is damaged", code="tree-damaged", node=digest.hex())
    return node
