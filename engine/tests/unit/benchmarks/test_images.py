"""Images and change maps: the same seed gives the same bytes, and they are what they say."""

import json
import zlib
from hashlib import sha256

import pytest
from benchmarks.images import (
    MIB,
    Changed,
    Content,
    Full,
    Images,
    copy_sparse,
    noise,
    plan_blocks,
    plan_changes,
)
from benchmarks.ranges import data_ranges

SMALL = Full(6 * MIB)
WHOLE = Full(8 * MIB, whole=True)
FRAGMENTS = Changed(WHOLE, 4096, 0.05)


def digest(path):
    return sha256(path.read_bytes()).hexdigest()


def test_the_same_seed_gives_the_same_image(tmp_path):
    one, other = (Images(tmp_path / name).full(SMALL) for name in ("a", "b"))
    assert digest(one.source) == digest(other.source)
    assert digest(Images(tmp_path / "c").full(Full(6 * MIB, seed=8)).source) != digest(one.source)


def test_an_image_holds_the_data_it_names(tmp_path):
    disk = Images(tmp_path).full(SMALL)
    assert disk.data_bytes == SMALL.size_bytes == sum(length for _, length in data_ranges(disk.source))
    assert Images(tmp_path).full(WHOLE).source.stat().st_size == WHOLE.size_bytes


def test_a_large_image_has_holes_noise_and_text():
    kinds = [kind for _, kind in plan_blocks(Full(3000 * MIB))]
    assert kinds.count("hole") / len(kinds) == pytest.approx(0.25, abs=0.03)
    assert kinds.count("noise") / 3000 == pytest.approx(0.47, abs=0.03)


def test_text_can_be_compressed_and_noise_can_not():
    content = Content(1)
    text, rubbish = (content.block(5, compressible=flag) for flag in (True, False))
    assert len(text) == len(rubbish) == MIB
    assert len(zlib.compress(text, 1)) < 0.5 * MIB
    assert len(zlib.compress(rubbish, 1)) > 0.99 * MIB
    assert noise(1, 2, 10_000) != noise(1, 3, 10_000)


@pytest.mark.parametrize("extent", [4096, 65536])
def test_small_blocks_have_their_size_and_differ(extent):
    content = Content(1)
    for compressible in (True, False):
        one, other = (content.block(number, extent, compressible=compressible) for number in (1, 2))
        assert len(one) == len(other) == extent
        assert one != other


def test_a_changed_image_differs_from_its_base_exactly_where_its_map_says(tmp_path):
    disk = Images(tmp_path).changed(FRAGMENTS)
    listed = json.loads(disk.changes.read_text())
    old, new = disk.base.read_bytes(), disk.source.read_bytes()
    assert len(old) == len(new)
    differing = [at for at in range(0, len(new), 4096) if old[at : at + 4096] != new[at : at + 4096]]
    assert differing == [offset for offset, _ in listed] == plan_changes(len(old), FRAGMENTS)
    assert disk.data_bytes == sum(length for _, length in listed) == pytest.approx(0.05 * len(old), rel=0.01)


def test_images_are_made_once(tmp_path):
    images = Images(tmp_path)
    first = images.changed(FRAGMENTS)
    made = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert images.changed(FRAGMENTS) == first
    assert made == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_a_copy_keeps_bytes_and_holes(tmp_path):
    disk = Images(tmp_path).full(SMALL)
    copy_sparse(disk.source, tmp_path / "copy")
    assert digest(tmp_path / "copy") == digest(disk.source)
    assert list(data_ranges(tmp_path / "copy")) == list(data_ranges(disk.source))
