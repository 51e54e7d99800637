"""The tree's constants, its bounds and what it refuses. The digests are frozen: they are on people's disks."""

from __future__ import annotations

import pytest
from farshore.blocks import tree
from farshore.blocks.digest import ZERO_LEAF, leaf_digest, wire_digest
from farshore.errors import Corruption
from farshore.units import LEAF_SIZE, MIB, TIB


def test_frozen_digests() -> None:
    assert ZERO_LEAF.hex() == "3bdeaf8f8e98780b318106aafdc3ca257f73df123d97b69112b26044c91a7d56"
    assert leaf_digest(b"farshore").hex() == "7978a4f81df038e701f6f81a2fc441e0208cf85c516e8f448e84f64ad21b7c9b"
    assert tree.empty(MIB).root.hex() == "6b4ddce31f7ec29a0a6936fd6bb3c8cb8539bdb0bfe0db2946380e930316db6e"
    one = tree.update(None, MIB, [(1, b"x" * 32)], {}.__getitem__, lambda _digest, _data: None)
    assert one.root.hex() == "fded39e8279344871d4bca5b69f6a45ed4e328a0c47887f1df82b7b3e265cb33"
    assert wire_digest(1, 2, 3, b"meta", b"payload").hex() == "301d16796e67dbd3e3051292d70df1a6"


def test_a_short_last_leaf_is_digested_as_if_zeros_followed() -> None:
    assert leaf_digest(b"abc") == leaf_digest(b"abc" + bytes(LEAF_SIZE - 3))
    assert leaf_digest(bytes(700)) == ZERO_LEAF
    with pytest.raises(ValueError, match="at most"):
        leaf_digest(bytes(LEAF_SIZE + 1))


@pytest.mark.parametrize(
    ("size", "leaves", "height"),
    [
        (1, 1, 1),
        (LEAF_SIZE, 1, 1),
        (LEAF_SIZE + 1, 2, 1),
        (16 * MIB, 256, 1),
        (16 * MIB + 1, 257, 2),
        (16 * TIB, 1 << 28, 4),
    ],
)
def test_leaves_and_height(size: int, leaves: int, height: int) -> None:
    assert (tree.leaf_count(size), tree.height_of(size)) == (leaves, height)


def test_the_size_is_bound_in_the_root() -> None:
    assert tree.empty(MIB).root != tree.empty(MIB + 1).root
    assert tree.empty(MIB).top == tree.empty(MIB + 1).top


def test_an_empty_disk_of_16_tib_stores_only_its_record() -> None:
    stored: dict[bytes, bytes] = {}
    built = tree.update(None, 16 * TIB, [], stored.__getitem__, stored.__setitem__)
    assert list(stored) == [built.root]
    assert tree.read_leaves(built, (1 << 28) - 2, 1 << 28, stored.__getitem__) == ZERO_LEAF * 2


def test_one_changed_leaf_stores_one_path() -> None:
    stored: dict[bytes, bytes] = {}
    base = tree.update(None, 16 * TIB, [], stored.__getitem__, stored.__setitem__)
    before = set(stored)
    tree.update(base, 16 * TIB, [(123_456_789, b"x" * 32)], stored.__getitem__, stored.__setitem__)
    assert len(set(stored) - before) == 4 + 1


def test_a_leaf_that_becomes_zero_again_gives_the_first_tree() -> None:
    stored: dict[bytes, bytes] = {}
    base = tree.empty(64 * MIB)
    changed = tree.update(base, 64 * MIB, [(700, b"x" * 32)], stored.__getitem__, stored.__setitem__)
    assert tree.update(changed, 64 * MIB, [(700, ZERO_LEAF)], stored.__getitem__, stored.__setitem__) == base


@pytest.mark.parametrize(
    "changes",
    [
        [(3, b"x" * 32), (3, b"y" * 32)],
        [(3, b"x" * 32), (2, b"y" * 32)],
        [(3, b"x" * 64), (4, b"y" * 32)],
        [(16, b"x" * 32)],
        [(15, b"x" * 64)],
        [(1, b"x")],
        [(1, b"")],
    ],
)
def test_changes_out_of_order_or_place_are_refused(changes: list[tuple[int, bytes]]) -> None:
    with pytest.raises(ValueError, match="out of order"):
        tree.update(None, MIB, changes, {}.__getitem__, lambda _digest, _data: None)


def test_a_base_that_is_larger_is_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        tree.update(tree.empty(2 * MIB), MIB, [], {}.__getitem__, lambda _digest, _data: None)


def test_damaged_nodes_and_records_are_found() -> None:
    stored: dict[bytes, bytes] = {}
    built = tree.update(None, MIB, [(1, b"x" * 32)], stored.__getitem__, stored.__setitem__)
    assert tree.open_tree(built.root, stored.__getitem__) == built
    for digest in list(stored):
        for damage in (b"", stored[digest][:-1], stored[digest][:-1] + b"?"):
            broken = {**stored, digest: damage}
            with pytest.raises(Corruption):
                tree.read_leaves(tree.open_tree(built.root, broken.__getitem__), 0, 16, broken.__getitem__)
