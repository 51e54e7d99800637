import pytest
from farshore import units


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        (4096, 4096),
        ("512", 512),
        ("512B", 512),
        ("64KiB", 65536),
        ("8 MiB", 8 << 20),
        ("8MB", 8 << 20),
        ("2g", 2 << 30),
        ("1T", 1 << 40),
    ],
)
def test_size_is_read_in_binary_units(text, size_bytes):
    assert units.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MiB", "1.5G", "-1", "8 XB", "1e3", -1, True])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"size|negative"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(90, 90.0), ("30s", 30.0), ("15m", 900.0), ("1.5h", 5400.0), ("1d", 86400.0), ("250ms", 0.25), ("2min", 120.0)],
)
def test_duration_is_read_in_seconds(text, seconds):
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "soon", "-5m", "5 years", -1])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"duration|negative"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3.0 TiB")],
)
def test_size_for_people(size_bytes, text):
    assert units.format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (185, "3 min 5 s"), (7440, "2 h 4 min"), (200000, "2 d 7 h")],
)
def test_duration_for_people(seconds, text):
    assert units.format_duration(seconds) == text


def test_window_levels_hold_whole_chunks_and_the_default():
    assert list(units.WINDOW_LEVELS) == sorted(units.WINDOW_LEVELS)
    assert all(level % units.CHUNK_SIZE == 0 for level in units.WINDOW_LEVELS)
    assert units.PER_DISK_WINDOW in units.WINDOW_LEVELS
    assert units.CHUNK_SIZE % units.LEAF_SIZE == 0
