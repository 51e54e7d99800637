"""The log returns what was appended up to the first record that is not whole; ranges survive their encoding."""

from __future__ import annotations

import tempfile
from pathlib import Path

from farshore.blocks.rangeset import RangeSet
from farshore.journal.log import Log, Record, decode, encode
from farshore.journal.state import decode_ranges, encode_ranges
from hypothesis import given, settings
from hypothesis import strategies as st

records = st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=60)), max_size=12)
spans = st.tuples(st.integers(0, 2**45), st.integers(1, 2**40)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def laid_out(items: list[tuple[int, bytes]]) -> bytes:
    return b"".join(encode(index, kind, body) for index, (kind, body) in enumerate(items))


@settings(max_examples=300)
@given(records, st.data())
def test_a_cut_log_returns_a_prefix(items: list[tuple[int, bytes]], data: st.DataObject) -> None:
    whole = laid_out(items)
    cut = data.draw(st.integers(0, len(whole)))
    found = [record for record, _ in decode(whole[:cut])]
    assert found == [Record(*item) for item in items[: len(found)]]
    assert len(laid_out(items[: len(found) + 1])) > cut or len(found) == len(items)


@settings(max_examples=400)
@given(records.filter(bool), st.data())
def test_a_damaged_byte_ends_the_log_before_it(items: list[tuple[int, bytes]], data: st.DataObject) -> None:
    whole = bytearray(laid_out(items))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    found = [record for record, _ in decode(bytes(whole))]
    untouched = 0
    while len(laid_out(items[: untouched + 1])) <= at:
        untouched += 1
    assert found == [Record(*item) for item in items[:untouched]]


@settings(max_examples=300)
@given(records, st.binary(max_size=80))
def test_rubbish_behind_the_log_changes_nothing(items: list[tuple[int, bytes]], rubbish: bytes) -> None:
    found = [record for record, _ in decode(laid_out(items) + rubbish)]
    assert found[: len(items)] == [Record(*item) for item in items]


@settings(max_examples=60, deadline=None)
@given(st.lists(records.filter(bool), max_size=4), st.binary(max_size=30))
def test_appending_goes_on_behind_what_was_whole(rounds: list[list[tuple[int, bytes]]], torn: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        expected: list[Record] = []
        for items in rounds:
            log = Log(path)
            assert log.records == expected
            log.append(*items)
            log.close()
            expected.extend(Record(*item) for item in items)
            with path.open("ab") as handle:
                handle.write(torn[:15])  # less than a head: never a record by accident
        log = Log(path)
        assert log.records == expected
        log.close()


@settings(max_examples=300)
@given(st.lists(spans, max_size=40))
def test_ranges_survive_their_encoding(ranges: list[tuple[int, int]]) -> None:
    one = RangeSet(ranges)
    assert RangeSet(span for body in encode_ranges(one) for span in decode_ranges(body)) == one
