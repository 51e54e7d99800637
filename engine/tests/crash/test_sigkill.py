"""Real processes that die by SIGKILL at a named point, and are started again: the point is published, bit by bit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from doubles.datapath import sites
from farshore.model.plan import Transport
from farshore.units import MIB

#: Operations with how many of their calls to die at; before and after each.
CALLS = {"open": 2, "write": 8, "zero": 4, "flush": 8, "seal": 2, "put": 10}
POINTS = [
    f"{operation}{after}#{number}"
    for operation, calls in CALLS.items()
    for after in ("", "-done")
    for number in range(1, calls + 1)
]
#: All of them where a million states are tried; else one of each kind, for each costs two processes.
CHOSEN = POINTS if int(os.environ.get("STATES", "0")) > 100_000 else ["write-done#3", "flush#1", "seal-done#1", "put#2"]


def test_there_are_enough_points() -> None:
    assert len(POINTS) >= 60


@pytest.mark.parametrize("point", CHOSEN)
def test_a_node_that_is_killed_goes_on(tmp_path: Path, point: str) -> None:
    transport = Transport(intermediate_checkpoint_window=2 * MIB, per_disk_window=1 * MIB, connections=2)
    with sites(tmp_path, {"web": {"vda": 6 * MIB, "vdb": 3 * MIB}}, transport) as both:
        both.start_source()
        both.fill("web", "vda", 1, 12, 256 * 1024)
        first = both.point()
        assert both.replicate(both.params(first))
        both.release(first, applied=True)
        both.fill("web", "vda", 2, 24, 256 * 1024)
        both.fill("web", "vdb", 3, 12, 256 * 1024)
        machine = both.machine("web")
        for at in range(0, 6 * MIB, MIB):
            machine.write("vda", at, bytes(128 * 1024))
        snapshot = both.point()
        both.replicate(both.params(snapshot), faults=f"{point}:kill")
        assert both.replicate(both.params(snapshot, term=2))
        manifest = both.newest()
        assert manifest is not None
        assert manifest.checkpoint_id == f"cp-{snapshot.point_id}"
        assert both.published(manifest) == both.frozen(snapshot)
