"""Real nodes with a toxic proxy between them: whatever it does, what is published is the source point."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles.datapath import Sites, sites
from doubles.toxic import Toxic
from farshore.model.checkpoint import Manifest
from farshore.units import MIB

Do = Callable[[Toxic], None]


def copy(both: Sites, toxic: Toxic, meanwhile: Do, *, tries: int = 4) -> dict[str, Any]:
    """Pull a point through the proxy while ``meanwhile`` happens; ask again after errors that allow it."""
    snapshot = both.point()
    last: dict[str, Any] = {}
    for term in range(1, tries + 1):
        params = both.params(snapshot, term=term, address=f"127.0.0.1:{toxic.port}")
        child = both.start_target(params, give_up_s=20.0)
        helper = threading.Thread(target=meanwhile, args=(toxic,), daemon=True)
        helper.start()
        last = both.finish(child)
        helper.join(30)
        if "result" in last or "manifest" in str(last)[:200]:
            break
    manifest = both.newest()
    assert isinstance(manifest, Manifest), last
    assert both.published(manifest) == both.frozen(snapshot)
    return last


def nothing(_toxic: Toxic) -> None:
    return


def resets(toxic: Toxic) -> None:
    for _ in range(4):
        time.sleep(0.15)
        toxic.reset_all()


def stall(toxic: Toxic) -> None:
    time.sleep(0.1)
    toxic.stalled = True
    time.sleep(1.0)
    toxic.stalled = False


def corrupt_for_a_while(toxic: Toxic) -> None:
    toxic.corrupt_after = 150_000
    time.sleep(1.0)
    toxic.corrupt_after = None


def cut_for_a_while(toxic: Toxic) -> None:
    toxic.cut_after = 700_000
    time.sleep(1.0)
    toxic.cut_after = None


def drip(toxic: Toxic) -> None:
    toxic.bytes_per_s = 200_000
    time.sleep(0.7)
    toxic.bytes_per_s = None


def away(toxic: Toxic) -> None:
    time.sleep(0.1)
    toxic.refuse = True
    toxic.reset_all()
    time.sleep(1.0)
    toxic.refuse = False


@pytest.mark.parametrize(
    ("meanwhile", "latency_s"),
    [
        pytest.param(nothing, 0.02, id="latency"),
        pytest.param(resets, 0.0, id="resets"),
        pytest.param(stall, 0.0, id="stall"),
        pytest.param(corrupt_for_a_while, 0.0, id="corruption-below-tls"),
        pytest.param(cut_for_a_while, 0.0, id="cut-in-the-midst"),
        pytest.param(drip, 0.0, id="slow-drip"),
        pytest.param(away, 0.0, id="away"),
    ],
)
def test_a_copy_through_a_bad_network_is_the_source_point(tmp_path: Path, meanwhile: Do, latency_s: float) -> None:
    with sites(tmp_path, {"web": {"vda": 24 * MIB}}) as both:
        both.fill("web", "vda", 7, 40, 512 * 1024)
        both.start_source()
        with Toxic(("127.0.0.1", both.port)) as toxic:
            toxic.latency_s = latency_s
            copy(both, toxic, meanwhile)
            assert toxic.connections
