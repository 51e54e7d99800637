"""The target listens and the source connects: all else is as it is the other way round."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.datapath import DEADLINE_S, Sites, sites
from doubles.ports import free_port
from farshore.errors import FarshoreError, Retry, Unavailable
from farshore.model.plan import Transport
from farshore.model.task import Progress, ReplicateResult
from farshore.replication import group
from farshore.replication.serve import SourceService
from farshore.transport import dialing
from farshore.transport.dialing import Dialer
from farshore.transport.links import Links
from farshore.transport.listener import DataListener
from farshore.transport.sockets import Wire, hang_up
from farshore.transport.tls import Peer, load
from farshore.units import MIB


class TargetListens:
    """Both ends in this process; the target's data port is open, the source has none."""

    def __init__(self, folder: Path) -> None:
        transport = Transport(compression="off", intermediate_checkpoint_window=8 * MIB)
        self.sites = Sites(folder, {"db": {"vda": 3 * MIB}}, transport)
        self.sites.fill("db", "vda", 1, 20)
        self.service = SourceService(self.sites.alpha.source, self.sites.alpha_tls, self.sites.grant_key)
        self.links = Links(self.sites.beta_tls, give_up_s=0.5)
        self.listener = DataListener(lambda: self.sites.beta_tls, adopt=self.links.adopt)
        _, self.port = self.listener.start("127.0.0.1:0")
        self.dialer = Dialer(lambda: self.sites.alpha_tls, self.service.serve_connection)

    def dial(self, peer: Peer | None = None, connections: int = 2) -> None:
        self.dialer.keep(f"127.0.0.1:{self.port}", peer or self.sites.beta_tls.peer, connections)

    def replicate(self) -> ReplicateResult:
        snapshot = self.sites.point()
        result = group.replicate(
            self.sites.params(snapshot, address=""),
            target=self.sites.beta.target,
            manifests=self.sites.beta.manifests,
            links=self.links,
            journal_dir=self.sites.journals,
        )
        assert self.sites.published(result.manifest) == self.sites.frozen(snapshot)
        self.sites.release(snapshot, applied=True)
        return result

    def connections(self) -> int:
        return self.links.from_peer(self.sites.alpha_tls.peer).stats().connections

    def await_connections(self, count: int) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while self.connections() != count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.connections() == count

    def close(self) -> None:
        self.dialer.close()
        self.links.close()
        self.listener.stop()
        self.service.stop()


@pytest.fixture
def both(tmp_path: Path) -> Iterator[TargetListens]:
    one = TargetListens(tmp_path)
    yield one
    one.close()


def test_cycles_over_connections_that_the_source_made(both: TargetListens) -> None:
    both.dial()
    first = both.replicate()
    assert first.stats.mode == "full"
    both.sites.fill("db", "vda", 2, 3)
    second = both.replicate()
    assert second.stats.mode == "incremental"
    assert both.connections() == 2
    stats = both.links.from_peer(both.sites.alpha_tls.peer).stats()
    assert stats.wire_received > first.stats.moved_bytes + second.stats.moved_bytes
    assert 0 < stats.wire_sent < MIB


def test_connections_that_came_before_they_were_needed_are_kept(both: TargetListens) -> None:
    both.dial(connections=3)
    both.await_connections(3)
    both.replicate()
    both.dial(connections=1)
    both.await_connections(1)
    both.replicate()


def test_a_source_that_never_connects_is_given_up(both: TargetListens) -> None:
    with pytest.raises(Unavailable) as caught:
        both.replicate()
    assert caught.value.code == "peer-unreachable"


def test_waiting_for_a_source_is_told_and_may_be_cancelled(
    both: TargetListens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "_AWAY_S", 0.1)
    both.links.close()
    links = Links(both.sites.beta_tls, give_up_s=600)
    cancel, notes = threading.Event(), list[str]()

    def on_progress(progress: Progress) -> None:
        notes.append(progress.note)
        cancel.set()

    try:
        with pytest.raises(Retry) as caught:
            group.replicate(
                both.sites.params(both.sites.point(), address=""),
                target=both.sites.beta.target,
                manifests=both.sites.beta.manifests,
                links=links,
                journal_dir=both.sites.journals,
                on_progress=on_progress,
                cancel=cancel,
            )
    finally:
        links.close()
    assert caught.value.code == "cancelled"
    assert "has not been reached for" in notes[0]


def test_a_connection_that_breaks_comes_back_by_itself(both: TargetListens) -> None:
    both.dial()
    both.replicate()
    with both.service._lock:
        for connection in both.service._connections:
            hang_up(connection)
    both.replicate()
    both.await_connections(2)
    assert both.links.from_peer(both.sites.alpha_tls.peer).stats().reconnects == 2


def test_renewed_certificates_are_on_new_connections(both: TargetListens) -> None:
    both.dial()
    both.replicate()
    renewed = both.sites.authority.node("alpha", "alpha-1")
    both.sites.alpha_tls = both.service.identity = load(renewed.cert, renewed.key, renewed.ca)
    both.dialer.refresh()
    both.replicate()
    both.await_connections(2)


def test_a_node_that_is_not_the_target_is_not_served(both: TargetListens) -> None:
    right = both.sites.beta_tls.peer
    both.dial(Peer(right.site, "beta-2", right.thumbprint))
    with pytest.raises(FarshoreError):
        both.replicate()
    assert both.connections() == 0


def test_a_source_makes_more_connections_over_a_long_way(both: TargetListens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "wire_of", lambda _connection: Wire(rtt_s=0.2))
    both.dialer.keep(f"127.0.0.1:{both.port}", both.sites.beta_tls.peer, "auto")
    both.await_connections(16)
    both.dialer.drop(f"127.0.0.1:{both.port}", both.sites.beta_tls.peer)
    both.await_connections(0)
    assert both.dialer.kept() == []


@pytest.mark.parametrize("target_first", [True, False])
def test_a_source_that_was_killed_comes_back(tmp_path: Path, target_first: bool) -> None:
    transport = Transport(per_disk_window=2 * MIB, intermediate_checkpoint_window=2 * MIB)
    with sites(tmp_path, {"db": {"vda": 24 * MIB}}, transport) as both:
        both.machine("db").write("vda", 0, b"x" * (24 * MIB))
        address = f"127.0.0.1:{free_port()}"
        source = None if target_first else both.start_source(dial=address)
        snapshot = both.point()
        target = both.start_target(both.params(snapshot, address=""), listen=address, faults="write#3+:delay=0.05")
        source = source or both.start_source(dial=address)
        assert target.process.stdout is not None
        seen: dict[str, Any] = {}
        while seen.get("progress", {}).get("done_bytes", 0) < 4 * MIB:
            seen = json.loads(target.line())
        source.end()
        both.start_source(dial=address)
        result = both.finish(target)
        assert "result" in result, result
        manifest = ReplicateResult.model_validate(result["result"]).manifest
        assert both.published(manifest) == both.frozen(snapshot)
