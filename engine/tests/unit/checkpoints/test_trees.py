"""Trees in a store: packed, shared between checkpoints, taken away without hurting each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from farshore.blocks import tree
from farshore.checkpoints import trees
from farshore.checkpoints.trees import PACK_NODES, TreeStore
from farshore.errors import Corruption, NotFound
from farshore.platforms.directory import DirectoryManifests
from farshore.units import GIB, LEAF_SIZE, MIB

SIZE = 256 * MIB


def digest(number: int) -> bytes:
    return number.to_bytes(32)


def write(
    store: DirectoryManifests, point: str, changes: dict[int, bytes], base: tuple[str, tree.Tree] | None = None
) -> tree.Tree:
    one = TreeStore(store, f"cycle-of-{point}")
    base_tree = one.open(base[0], base[1].root.hex()) if base else None
    result = one.update(base_tree, SIZE, sorted(changes.items()))
    one.commit(point, result)
    return result


def read(store: DirectoryManifests, point: str, result: tree.Tree) -> dict[int, bytes]:
    reader = TreeStore(store, "reader")
    opened = reader.open(point, result.root.hex())
    assert opened == result
    data = reader.read(opened, 0, SIZE // LEAF_SIZE)
    return {index: data[index * 32 : index * 32 + 32] for index in range(SIZE // LEAF_SIZE)}


@pytest.fixture
def store(tmp_path: Path) -> DirectoryManifests:
    return DirectoryManifests(tmp_path)


def test_a_tree_is_read_as_it_was_written(store: DirectoryManifests) -> None:
    changes = {index: digest(index + 1) for index in range(0, 4096, 7)}
    found = read(store, "a/b/c", write(store, "a/b/c", changes))
    assert {index: value for index, value in found.items() if value != trees.tree.ZERO_LEAF} == changes


def test_checkpoints_share_what_did_not_change(store: DirectoryManifests) -> None:
    first = write(store, "p1", {index: digest(index + 1) for index in range(4096)})
    packs = trees.packs_of(store, "p1")
    second = write(store, "p2", {9: digest(777)}, ("p1", first))
    more = set(trees.packs_of(store, "p2")) - set(packs)
    assert len(more) == 1
    assert len(store.get(f"trees/{more.pop()}.nodes")) == 2 * tree.NODE_SIZE
    assert read(store, "p2", second)[9] == digest(777)
    assert read(store, "p1", first)[9] == digest(10)


def test_a_large_tree_has_several_packs(store: DirectoryManifests) -> None:
    one = TreeStore(store, "large")
    count = 600 * tree.FANOUT
    result = one.update(None, 16 * GIB, ((index, digest(index + 1)) for index in range(0, count, tree.FANOUT)))
    one.commit("p", result)
    packs = trees.packs_of(store, "p")
    assert len(packs) == 600 // PACK_NODES + 1
    reader = TreeStore(store, "reader")
    opened = reader.open("p", result.root.hex())
    assert reader.read(opened, 599 * tree.FANOUT, 599 * tree.FANOUT + 1) == digest(599 * tree.FANOUT + 1)


def test_dropping_one_leaves_the_others_whole(store: DirectoryManifests) -> None:
    points: dict[str, tree.Tree] = {}
    base: tuple[str, tree.Tree] | None = None
    for number in range(4):
        name = f"p{number}"
        changes = {index: digest(number * 5000 + index + 1) for index in range(0, 4096, 300)}
        points[name] = write(store, name, changes, base)
        base = (name, points[name])
    contents = {name: read(store, name, result) for name, result in points.items()}
    for gone in ("p1", "p0", "p3"):
        del points[gone]
        trees.drop(store, [gone], points)
        trees.drop(store, [gone], points)
        with pytest.raises(NotFound):
            TreeStore(store, "reader").open(gone, "00" * 32)
        for name, result in points.items():
            assert read(store, name, result) == contents[name]
    trees.drop(store, ["p2"], [])
    assert store.list() == []


def test_the_same_content_twice_is_two_trees(store: DirectoryManifests) -> None:
    first, second = write(store, "p1", {3: digest(1)}), write(store, "p2", {3: digest(1)})
    assert first.root == second.root
    trees.drop(store, ["p1"], ["p2"])
    assert read(store, "p2", second)[3] == digest(1)


@pytest.mark.parametrize("suffix", [".root", ".index", ".nodes"])
def test_damage_is_found(store: DirectoryManifests, tmp_path: Path, suffix: str) -> None:
    result = write(store, "p1", {3: digest(1), 1000: digest(2)})
    for path in (tmp_path / "trees").iterdir():
        if path.name.endswith(suffix):
            path.write_bytes(path.read_bytes()[:-40] + b"?" * 20)
    with pytest.raises(Corruption):
        read(store, "p1", result)


def test_another_tree_than_the_manifest_names_is_refused(store: DirectoryManifests) -> None:
    write(store, "p1", {3: digest(1)})
    with pytest.raises(Corruption):
        TreeStore(store, "reader").open("p1", tree.empty(SIZE).root.hex())
