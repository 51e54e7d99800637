"""Whole cycles over a wide-area link that is cut, or that flips bits: whichever end connects, the copy is the point."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.links import WANEM, Shape, Wan
from doubles.datapath import Child, Sites, sites
from farshore.model.plan import Transport
from farshore.model.task import ReplicateResult
from farshore.units import MIB

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0 or not WANEM.exists(), reason="needs root and scripts/setup.sh test"),
]

SIZE = 24 * MIB
WINDOW = 4 * MIB


@pytest.fixture
def wan(tmp_path: Path) -> Iterator[Wan]:
    with Wan(Shape(rtt_ms=20, rate_bit_s=100e6), tmp_path) as link:
        yield link


@pytest.fixture
def both(tmp_path: Path, wan: Wan) -> Iterator[Sites]:
    transport = Transport(
        compression="off", per_disk_window=WINDOW, intermediate_checkpoint_window=WINDOW, connections=4
    )
    with sites(tmp_path, {"db": {"vda": SIZE}}, transport) as one:
        one.within = {"source": wan.argv("source", []), "target": wan.argv("target", [])}
        one.machine("db").write("vda", 0, os.urandom(SIZE))
        yield one


def begin(both: Sites, wan: Wan, listens: str) -> Child:
    """Start a cycle in which this end listens, and return the target once a part of the data has come."""
    snapshot = both.point()
    if listens == "source":
        both.start_source(host=wan.address("source"))
        address = f"{wan.address('source')}:{both.port}"
        child = both.start_target(both.params(snapshot, address=address), give_up_s=120)
    else:
        at = f"{wan.address('target')}:9101"
        child = both.start_target(both.params(snapshot, address=""), listen=at, give_up_s=120)
        both.start_source(dial=at)
    seen: dict[str, Any] = {}
    while seen.get("progress", {}).get("done_bytes", 0) < 2 * MIB:
        seen = json.loads(child.line())
        assert "progress" in seen, seen
    return child


def copied(both: Sites, child: Child) -> ReplicateResult:
    last = both.finish(child)
    assert "result" in last, last
    result = ReplicateResult.model_validate(last["result"])
    (content,) = both.published(result.manifest).values()
    assert content == (both.machine("db").image("vda")).read_bytes()
    return result


@pytest.mark.parametrize("listens", ["source", "target"])
def test_a_link_that_is_cut_for_a_while_costs_a_window_at_most(both: Sites, wan: Wan, listens: str) -> None:
    child = begin(both, wan, listens)
    wan.set("--loss", "100%")
    time.sleep(3)
    wan.set("--loss", "0%")
    result = copied(both, child)
    assert result.stats.resent_bytes <= WINDOW
    assert result.stats.moved_bytes == SIZE


@pytest.mark.parametrize("listens", ["source", "target"])
def test_flipped_bits_break_connections_and_nothing_else(both: Sites, wan: Wan, listens: str) -> None:
    child = begin(both, wan, listens)
    wan.set("--corrupt", "0.1%")
    time.sleep(1)
    wan.set("--corrupt", "0%")
    copied(both, child)
    assert wan.counters()["source"]["corrupted"] > 0
