"""Digest trees in a manifest store: nodes are packed, an index beside each pack says what is in it.

    trees/<name>-<n>.nodes   up to 512 nodes, one behind the other
    trees/<name>-<n>.index   the digest of each node in the pack, in order; written after the pack
    trees/<point>.root       JSON: the root's record and the names of all packs that it needs; written last

An object per node would be 65,000 objects for a changed disk of 1 TiB. A tree is there when its ``.root`` object is; a
crash before that leaves packs that nothing names. That object is named after the native point (a digest of its id, for
ids may hold any character), not after the root: a tombstoned key never comes back, but a disk may well return to a
content that it had, or have the content of another one.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from farshore.blocks import tree
from farshore.blocks.digest import DIGEST_SIZE
from farshore.errors import Corruption, NotFound
from farshore.platforms.contract import ManifestStore

#: Nodes of one pack: 4 MiB, so that memory stays small and a disk of 2 GiB has one pack.
PACK_NODES: Final = 512
#: Packs that are kept in memory while a tree is read.
_CACHED: Final = 4


class TreeStore:
    """Trees of one disk's cycle: reads the base's packs, writes new ones named ``name``. Not for several threads."""

    def __init__(self, store: ManifestStore, name: str) -> None:
        self._store = store
        self._name = name
        self._places: dict[bytes, tuple[str, int]] = {}
        self._packs: list[str] = []
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._pending: dict[bytes, bytes] = {}
        self._written = 0
        self._needed: dict[bytes, list[str]] = {}

    def open(self, point: str, root: str) -> tree.Tree:
        """Return the tree of ``point``, whose root has to be ``root`` (hex), ready to be read.

        Raises:
            NotFound: it is not there, or a pack of it is not.
            Corruption: it is damaged, or another one.
        """
        record, packs = _read_root(self._store, point)
        for pack in packs:
            self._add_pack(pack)
        return tree.open_tree(bytes.fromhex(root), lambda _digest: record)

    def update(self, base: tree.Tree | None, size_bytes: int, changes: Iterable[tuple[int, bytes]]) -> tree.Tree:
        """Write the nodes of the tree that differs from ``base``, opened here, in ``changes``; durable on return."""
        result = tree.update(base, size_bytes, changes, self.load, self._keep)
        self._flush()
        self._needed[result.root] = self._packs_of(result)
        return result

    def forget(self) -> None:
        """Use nothing more of the packs that were opened: something in them is damaged or missing."""
        self._places.clear()
        self._packs.clear()
        self._cache.clear()

    def commit(self, point: str, result: tree.Tree) -> None:
        """Name the tree after its sealed point; durable on return."""
        body = {"record": result.record().hex(), "packs": self._needed[result.root]}
        self._store.put_if_absent(_root_key(point), json.dumps(body, sort_keys=True).encode())

    def read(self, base: tree.Tree, first: int, stop: int) -> bytes:
        """Return the digests of the leaves ``[first, stop)``."""
        return tree.read_leaves(base, first, stop, self.load)

    def load(self, digest: bytes) -> bytes:
        """Return a node."""
        pending = self._pending.get(digest)
        if pending is not None:
            return pending
        place = self._places.get(digest)
        if place is None:
            raise _missing(digest)
        pack, index = place
        nodes = self._cache.get(pack)
        if nodes is None:
            try:
                nodes = self._cache[pack] = self._store.get(f"trees/{pack}.nodes")
            except NotFound as error:
                raise _missing(digest) from error
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(pack)
        return nodes[index * tree.NODE_SIZE : (index + 1) * tree.NODE_SIZE]

    def _keep(self, digest: bytes, data: bytes) -> None:
        if len(data) != tree.NODE_SIZE:  # the root's record, which has an object of its own
            return
        if digest in self._places or digest in self._pending:
            return
        self._pending[digest] = data
        if len(self._pending) == PACK_NODES:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        index = b"".join(self._pending)
        nodes = b"".join(self._pending.values())
        # The content is part of the name: a cycle that is run again after a crash may cut its packs in another way.
        pack = f"{self._name}-{self._written}-{sha256(index).hexdigest()[:16]}"
        self._store.put_if_absent(f"trees/{pack}.nodes", nodes)
        self._store.put_if_absent(f"trees/{pack}.index", index)
        self._packs.append(pack)
        self._written += 1
        for place, digest in enumerate(self._pending):
            self._places[digest] = (pack, place)
        self._pending.clear()

    def _add_pack(self, pack: str) -> None:
        index = self._store.get(f"trees/{pack}.index")
        if len(index) % DIGEST_SIZE:
            raise Corruption(f"the index of pack {pack} is damaged", code="tree-damaged", pack=pack)
        self._packs.append(pack)
        for place in range(len(index) // DIGEST_SIZE):
            self._places.setdefault(index[place * DIGEST_SIZE : (place + 1) * DIGEST_SIZE], (pack, place))

    def _packs_of(self, result: tree.Tree) -> list[str]:
        """Return the packs that hold a node of ``result``; of inner nodes it is proven that they do."""
        needed: set[str] = set()
        waiting = [(result.height, result.top)]
        while waiting:
            level, digest = waiting.pop()
            if digest == tree.ZERO_NODES[level]:
                continue
            if digest not in self._places:
                raise _missing(digest)
            needed.add(self._places[digest][0])
            if level > 1:
                node = self.load(digest)
                if tree.node_digest(node) != digest:
                    raise Corruption("a node of a digest tree is damaged", code="tree-damaged", node=digest.hex())
                children = {node[at : at + DIGEST_SIZE] for at in range(0, len(node), DIGEST_SIZE)}
                waiting.extend((level - 1, child) for child in children)
        return [pack for pack in self._packs if pack in needed]


def packs_of(store: ManifestStore, point: str) -> list[str]:
    """Return the names of the packs that the tree of ``point`` needs; none where the tree is not there."""
    try:
        return _read_root(store, point)[1]
    except NotFound:
        return []


def drop(store: ManifestStore, points: Iterable[str], live_points: Iterable[str]) -> None:
    """Take away the trees of ``points`` with the packs that no tree of ``live_points`` needs."""
    gone = set(points) - set(live_points)
    used = {pack for point in set(live_points) for pack in packs_of(store, point)}
    for point in gone:
        for pack in packs_of(store, point):
            if pack not in used:
                store.tombstone(f"trees/{pack}.index")
                store.tombstone(f"trees/{pack}.nodes")
        store.tombstone(_root_key(point))


def _missing(digest: bytes) -> Corruption:
    return Corruption("a node of a digest tree is missing", code="tree-damaged", node=digest.hex())


def _root_key(point: str) -> str:
    return f"trees/{sha256(point.encode()).hexdigest()[:32]}.root"


def _read_root(store: ManifestStore, point: str) -> tuple[bytes, list[str]]:
    try:
        body = json.loads(store.get(_root_key(point)))
        return bytes.fromhex(body["record"]), [str(pack) for pack in body["packs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Corruption(f"the tree of {point} is damaged", code="tree-damaged", point=point) from error
