"""File to file between two processes: what is published is the source's point, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from doubles.datapath import sites

from farshore.model.checkpoint import CycleStats, Manifest
from farshore.units import KIB, MIB


def test_full_then_incremental_copies_are_the_source_points(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": 24 * MIB, "vdb": 9 * MIB + 512}, "web": {"vda": 3 * MIB}}) as both:
        both.start_source()
        both.fill("db", "vda", 1, 60)
        both.fill("db", "vdb", 2, 10)
        for cycle in range(3):
            snapshot = both.point()
            expected = both.frozen(snapshot)
            reply = both.replicate(both.params(snapshot))
            assert "result" in reply, reply
            manifest = Manifest.model_validate(reply["result"]["manifest"])
            stats = CycleStats.model_validate(reply["result"]["stats"])
            assert both.published(manifest) == expected
            assert stats.mode == ("full" if cycle == 0 else "incremental")
            if cycle:
                assert stats.moved_bytes <= 10 * 128 * KIB
            both.release(snapshot, applied=True)
            both.fill("db", "vda", 10 + cycle, 10, size=4096)
            both.machine("web").write("vda", 3 * MIB - 700, b"x" * 700)
            both.machine("db").discard("vda", 5 * MIB, 3 * MIB)
        assert manifest.sequence == 3
        assert [path.name for path in both.journals.iterdir()] == []
