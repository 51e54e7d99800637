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


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("200 Mbit/s", 25_000_000),
        ("1Gbit/s", 125_000_000),
        ("1.5 GiB/s", 1_610_612_736),
        ("64 kbit/s", 8000),
        ("25 MiB/s", 25 << 20),
        ("25MB/s", 25 << 20),
        ("512 KiB/s", 512 << 10),
        (1048576, 1 << 20),
    ],
)
def test_rate_is_read_in_bits_and_bytes(text, bytes_per_s):
    assert units.parse_rate(text) == bytes_per_s


@pytest.mark.parametrize(
    "text", ["", "200", "200 Mbit", "200 Mbps", "25 Mb/s", "0 MiB/s", "-1 MiB/s", "fast", 0, -5, True]
)
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(ValueError, match="rate"):
        units.parse_rate(text)


def test_rate_is_written_in_both_units():
    assert units.format_rate(25 << 20) == "25.0 MiB/s (209.7 Mbit/s)"
    assert units.format_rate(64) == "64 B/s (512 bit/s)"
