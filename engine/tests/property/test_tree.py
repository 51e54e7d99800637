"""A tree that is updated equals one that is built at once, whatever the order of updates."""

from __future__ import annotations

from farshore.blocks import tree
from farshore.blocks.digest import DIGEST_SIZE, ZERO_LEAF
from farshore.units import LEAF_SIZE
from hypothesis import given, settings
from hypothesis import strategies as st


class Nodes:
    """Where the callbacks keep nodes."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}

    def load(self, digest: bytes) -> bytes:
        return self.stored[digest]

    def store(self, digest: bytes, data: bytes) -> None:
        if len(data) == tree.NODE_SIZE and data != ZERO_LEAF * tree.FANOUT:
            children = {data[at : at + DIGEST_SIZE] for at in range(0, len(data), DIGEST_SIZE)}
            inner = children & {key for key, value in self.stored.items() if len(value) == tree.NODE_SIZE}
            assert inner <= set(self.stored)
        self.stored[digest] = data


LEAVES = 3 * tree.FANOUT + 7
leaf = st.integers(0, 5).map(lambda n: ZERO_LEAF if n == 0 else bytes([n]) * DIGEST_SIZE)
changes = st.dictionaries(st.integers(0, LEAVES - 1), leaf, max_size=40)


def flat(content: dict[int, bytes], count: int) -> bytes:
    return b"".join(content.get(index, ZERO_LEAF) for index in range(count))


@settings(max_examples=200, deadline=None)
@given(st.lists(changes, min_size=1, max_size=4))
def test_updates_one_after_the_other_equal_all_at_once(rounds: list[dict[int, bytes]]) -> None:
    nodes, size = Nodes(), LEAVES * LEAF_SIZE - 100
    content: dict[int, bytes] = {}
    grown: tree.Tree | None = None
    for one in rounds:
        content.update(one)
        grown = tree.update(grown, size, sorted(one.items()), nodes.load, nodes.store)
    fresh = tree.update(None, size, sorted(content.items()), Nodes().load, Nodes().store)
    assert grown is not None
    assert grown == fresh
    assert grown.root == fresh.root
    assert tree.read_leaves(grown, 0, LEAVES, nodes.load) == flat(content, LEAVES)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, LEAVES - 1), st.lists(st.integers(1, 2 * tree.FANOUT), min_size=1, max_size=5))
def test_runs_of_leaves_count_as_their_leaves_one_by_one(start: int, lengths: list[int]) -> None:
    runs, at = list[tuple[int, bytes]](), start
    for number, length in enumerate(lengths):
        digests = b"".join(bytes([number + 1, n % 251]) * (DIGEST_SIZE // 2) for n in range(min(length, LEAVES - at)))
        if digests:
            runs.append((at, digests))
        at += len(digests) // DIGEST_SIZE + number % 2
    leaves = [
        (first + at // DIGEST_SIZE, digests[at : at + DIGEST_SIZE])
        for first, digests in runs
        for at in range(0, len(digests), DIGEST_SIZE)
    ]
    one, other = (tree.update(None, LEAVES * LEAF_SIZE, each, Nodes().load, Nodes().store) for each in (runs, leaves))
    assert one == other


@settings(max_examples=200, deadline=None)
@given(changes, st.integers(0, LEAVES), st.integers(0, LEAVES + 300))
def test_any_range_of_leaves_can_be_read(content: dict[int, bytes], one: int, other: int) -> None:
    nodes = Nodes()
    built = tree.update(None, LEAVES * LEAF_SIZE, sorted(content.items()), nodes.load, nodes.store)
    first, stop = sorted((one, other))
    expected = flat(content, LEAVES + 300)[first * DIGEST_SIZE : stop * DIGEST_SIZE]
    assert tree.read_leaves(built, first, stop, nodes.load) == expected


@settings(max_examples=200, deadline=None)
@given(changes, changes)
def test_equal_roots_mean_equal_content(one: dict[int, bytes], other: dict[int, bytes]) -> None:
    size = LEAVES * LEAF_SIZE
    trees = [
        tree.update(None, size, sorted(content.items()), nodes.load, nodes.store)
        for content, nodes in ((one, Nodes()), (other, Nodes()))
    ]
    assert (trees[0].root == trees[1].root) == (flat(one, LEAVES) == flat(other, LEAVES))


@settings(max_examples=100, deadline=None)
@given(changes, st.integers(1, 70000 * LEAF_SIZE))
def test_growing_by_zeros_changes_the_root_but_no_leaf(content: dict[int, bytes], more: int) -> None:
    nodes, size = Nodes(), LEAVES * LEAF_SIZE
    small = tree.update(None, size, sorted(content.items()), nodes.load, nodes.store)
    large = tree.update(small, size + more, [], nodes.load, nodes.store)
    assert large.root != small.root
    assert tree.read_leaves(large, 0, LEAVES, nodes.load) == flat(content, LEAVES)
    assert large == tree.update(None, size + more, sorted(content.items()), nodes.load, nodes.store)
