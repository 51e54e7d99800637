"""The other end goes away for good, or is another node: what is durable at the target is not sent again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.datapath import Sites
from doubles.gate import Gate
from doubles.resuming import DISK, LEVEL, MARK, TRANSPORT, filled, when, whole
from farshore.blocks.rangeset import RangeSet
from farshore.journal.log import decode
from farshore.journal.state import Kind, decode_ranges
from farshore.transport.tls import load
from farshore.units import MIB


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Sites]:
    sites = filled(tmp_path)
    yield sites
    sites.end()


def durable_bytes(both: Sites) -> int:
    """Return what the journals call durable."""
    total = 0
    for path in both.journals.glob("*/*/journal"):
        ranges = RangeSet()
        for (kind, body), _ in decode(path.read_bytes()):
            if kind == Kind.DURABLE:
                for span in decode_ranges(body):
                    ranges.add(*span)
        total += ranges.total()
    return total


def another_source(both: Sites) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the certificate of another node of the source's site, and what a grant says of it."""
    files = both.authority.node("alpha", "alpha-2")
    peer = load(files.cert, files.key, files.ca).peer
    return (
        {"cert": str(files.cert), "key": str(files.key), "ca": str(files.ca)},
        {"source_node": "alpha-2", "source_thumbprint": peer.thumbprint},
    )


def test_a_source_that_stays_away_ends_the_attempt_and_keeps_what_was_written(both: Sites) -> None:
    source = both.start_source()
    snapshot = both.point()
    target = both.start_target(both.params(snapshot), faults="write#3+:delay=0.2", give_up_s=1.0)
    when(target, 20 * MIB)
    source.end()
    error = both.finish(target)["error"]
    assert (error["duty"], error["code"]) == ("Unavailable", "peer-unreachable")
    before = durable_bytes(both)
    assert before >= 20 * MIB - 2 * LEVEL, "an orderly end records all that was written"
    source = both.start_source(port=both.port)
    whole(both, snapshot, both.replicate(both.params(snapshot, term=2)))
    assert both.sent(source) == 2 * DISK - before


@pytest.mark.parametrize("in_mid_cycle", [False, True])
def test_another_source_node_goes_on_for_the_first(both: Sites, in_mid_cycle: bool) -> None:
    """It has another certificate; the fresh grant names it, in a higher term."""
    files, named = another_source(both)
    first = both.start_source()
    snapshot = both.point()
    if in_mid_cycle:
        target = both.start_target(both.params(snapshot), faults="write#3+:delay=0.2", give_up_s=1.0)
        when(target, 20 * MIB)
        first.end()
        both.finish(target)
    else:
        assert both.replicate(both.params(snapshot), faults="write#40:kill") == {}
        first.end()
    before = durable_bytes(both)
    assert before >= MARK
    second = both.start_source(**files)
    whole(both, snapshot, both.replicate(both.params(snapshot, term=2, grant=named)))
    assert both.sent(second) == 2 * DISK - before


def test_a_grant_for_the_node_that_was_replaced_opens_nothing_at_the_new_one(both: Sites) -> None:
    files, _named = another_source(both)
    both.start_source(**files)
    snapshot = both.point()
    error = both.replicate(both.params(snapshot), give_up_s=1.0)["error"]
    assert error["duty"] in {"Forbidden", "Unavailable"}, error
    assert both.newest() is None


def test_a_source_that_forgets_the_session_again_and_again(both: Sites) -> None:
    """Its process is replaced on the same port three times in one cycle; the target's attempt never ends."""
    source = both.start_source()
    port, snapshot = both.port, both.point()
    target = both.start_target(both.params(snapshot), faults="write#3+:delay=0.2")
    for moved in (8, 20, 32):
        when(target, moved * MIB)
        source.end()
        source = both.start_source(port=port)
    stats = whole(both, snapshot, both.finish(target))
    assert stats.moved_bytes == 2 * DISK
    assert stats.resent_bytes <= 3 * 2 * LEVEL


def test_a_link_that_is_down_longer_than_the_attempt_costs_nothing_of_what_is_durable(both: Sites) -> None:
    source = both.start_source()
    gate = Gate(both.port)
    snapshot = both.point()
    address = f"127.0.0.1:{gate.port}"
    try:
        target = both.start_target(both.params(snapshot, address=address), faults="write#3+:delay=0.2", give_up_s=1.0)
        when(target, 20 * MIB)
        gate.cut(down=True)
        assert "error" in both.finish(target)
        before, sent = durable_bytes(both), both.sent(source)
        gate.open()
        whole(both, snapshot, both.replicate(both.params(snapshot, term=2, address=address)))
        assert both.sent(source) - sent == 2 * DISK - before
        assert sent - before <= 2 * (TRANSPORT.per_disk_window + MIB)
    finally:
        gate.close()
