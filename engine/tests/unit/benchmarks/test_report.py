"""What a run of the bench is turned into."""

import pytest
from benchmarks.bench import OURS, PIECES, Bench, joined
from benchmarks.images import MIB
from benchmarks.links import Shape
from benchmarks.peers.base import Outcome
from benchmarks.peers.iperf import LinkRate
from benchmarks.processes import Usage
from benchmarks.report import draw, markdown, tables

PLACES = ["loopback", *(Shape(rtt, 1e9).name for rtt in (20, 80, 200))]


def outcome(peer, place, seconds):
    usage = Usage(2.0, 50 * MIB)
    return Outcome(peer, place, 1024 * MIB, seconds, usage, usage, [peer, "go"], load_average=0.5)


@pytest.fixture
def document():
    bench = Bench()
    for place in PLACES:
        bench.copies[place] = {OURS: [outcome(OURS, place, 10.0)], "other": [outcome("other", place, 20.0)]}
        bench.links[place] = [LinkRate(110.0 * MIB, 112.0 * MIB, 8, 10.0, "cubic")]
    bench.fragments = {4096: [outcome(OURS, "loopback", 2.0)], 65536: [outcome(OURS, "loopback", 1.0)]}
    bench.disks = {1: [outcome(OURS, "loopback", 1.0)], 80: [outcome(OURS, "loopback", 2.0)]}
    bench.not_measured = {"rsync ssh": "not installed: rsync"}
    machine = {"processors": 2, "model": "a model", "memory_gib": 4.0, "kernel": "6.1", "python": "3.11"}
    return bench.document() | {
        "machine": machine,
        "measured_at": "2026-01-02T03:04:05+00:00",
        "rounds": 1,
        "load_average": bench.load_average(),
    }


def test_the_page_has_ratios_and_names_what_was_not_measured(document):
    page = markdown(document)
    assert "| other | 51.2 | 2.00 x | 20.00 | 2.00 | 2.00 | 50 | 50 |" in page
    assert "| iperf3, 8 flows, cubic | 110.0 | 0.93 x |" in page
    assert "- rsync ssh: not installed: rsync" in page
    assert "Load average before the copies: 0.5 to 0.5" in page


def test_there_is_a_table_for_each_place_and_each_cost(document):
    assert len(list(tables(document))) == len(PLACES) + 2


def test_the_plots_that_the_page_shows_are_drawn(document, tmp_path):
    draw(document, tmp_path)
    page = markdown(document)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert len(made) == 5
    assert all(f"({name})" in page for name in made)


def test_own_time_counts_where_a_tool_tells_it():
    one = outcome(OURS, "loopback", 10.0)
    one.own_seconds, one.own_cpu_s = 8.0, (1.0, 1.5)
    assert (one.rate, one.own_rate) == (102.4 * MIB, 128.0 * MIB)
    assert one.cpu_per_gib() == (2.0, 2.0)
    assert one.cpu_per_gib(own=True) == (1.0, 1.5)


def test_pieces_are_joined_in_the_order_of_the_links(document):
    whole = {}
    for piece, place in (("wan-80", PLACES[2]), ("loopback", PLACES[0]), ("wan-80", PLACES[2])):
        found = Bench(copies={place: {OURS: [outcome(OURS, place, 10.0)]}})
        found.links[place] = [LinkRate(110.0 * MIB, 112.0 * MIB, 8, 10.0, "cubic")]
        whole = joined(whole, piece, found, {"measured_at": "2026-01-02T03:04:05+00:00"})
    disks = Bench(disks={8: [outcome(OURS, "loopback", 1.0)]})
    disks.disks[8][0].load_average = 7.0
    whole = joined(whole, "disks", disks, {"measured_at": "2026-01-02T04:04:05+00:00"})
    assert list(whole["copies"]) == list(whole["iperf3"]) == [PLACES[0], PLACES[2]]
    assert list(whole["disks"]) == ["8"]
    assert whole["load_average"] == [0.5, 7.0]
    assert set(PIECES) - set(whole["pieces"]) == {"wan-20", "wan-200", "fragments"}
    page = markdown(document | {"pieces": whole["pieces"]})
    assert "disks 04:04 (7.0 to 7.0)" in page
