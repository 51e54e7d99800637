"""A disk whose storage stalls holds up nobody else, and a peer that does not read costs a bounded memory."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.datapath import DEADLINE_S, Sites
from doubles.raw_target import connect, open_session, take
from farshore.errors import FarshoreError
from farshore.model.plan import Transport
from farshore.platforms.contract import Reader, Snapshot
from farshore.replication import group
from farshore.replication.answering import READY_MAX
from farshore.replication.serve import SourceService
from farshore.transport import frames
from farshore.transport.links import Links
from farshore.units import CHUNK_SIZE, KIB, MIB

SIZE = 20 * MIB


class Gated:
    """A reader that answers only while its gate is open."""

    def __init__(self, inner: Reader, gate: threading.Event, reached: threading.Event) -> None:
        self._inner, self._gate, self._reached = inner, gate, reached

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._reached.set()
        assert self._gate.wait(2 * DEADLINE_S)
        self._inner.read_into(offset, buffer)

    def read_held(self, offset: int, buffer: memoryview) -> bool:
        return self._gate.is_set() and self._inner.read_held(offset, buffer)

    def close(self) -> None:
        self._inner.close()


class Stall:
    """Sites with two disks, the first of which stalls until ``gate`` is set."""

    def __init__(self, folder: Path) -> None:
        transport = Transport(connections=2, per_disk_window=16 * MIB)
        self.sites = Sites(folder, {"db": {"vda": SIZE, "vdb": SIZE}}, transport)
        for disk in ("vda", "vdb"):
            self.sites.machine("db").write(disk, 0, random.Random(disk).randbytes(SIZE))
        self.gate, self.reached = threading.Event(), threading.Event()
        source = self.sites.alpha.source
        opened = source.reader

        def reader(snapshot: Snapshot, disk_key: str) -> Reader:
            inner = opened(snapshot, disk_key)
            return Gated(inner, self.gate, self.reached) if disk_key == "db/vda" else inner

        source.reader = reader  # type: ignore[method-assign]
        self.service = SourceService(source, self.sites.alpha_tls, self.sites.grant_key)
        _, self.sites.port = self.service.start("127.0.0.1:0")
        self.links = Links(self.sites.beta_tls, give_up_s=5)

    def close(self) -> None:
        self.gate.set()
        self.links.close()
        self.service.stop()


@pytest.fixture
def stall(tmp_path: Path) -> Iterator[Stall]:
    one = Stall(tmp_path)
    yield one
    one.close()


def test_a_stalled_disk_lets_the_other_one_finish(stall: Stall) -> None:
    both = stall.sites
    snapshot = both.point()
    params = both.params(snapshot)
    finished: list[object] = []

    def copy() -> None:
        finished.append(
            group.replicate(
                params,
                target=both.beta.target,
                manifests=both.beta.manifests,
                links=stall.links,
                journal_dir=both.journals,
            )
        )

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        assert stall.reached.wait(DEADLINE_S)
        deadline = time.monotonic() + DEADLINE_S
        session = None
        while time.monotonic() < deadline:
            session = next(iter(stall.service._sessions.values()), None)
            # All of the other disk was read and sent, over connections that owe answers of the stalled one.
            if session is not None and session.read_bytes >= SIZE:
                break
            time.sleep(0.02)
        assert session is not None
        assert session.read_bytes >= SIZE
        assert not finished
    finally:
        stall.gate.set()
        thread.join(DEADLINE_S)
    assert len(finished) == 1
    assert both.published(finished[0].manifest) == both.frozen(snapshot)  # type: ignore[attr-defined]


def test_closing_a_session_with_stalled_reads_closes_their_reader_afterwards(stall: Stall) -> None:
    both = stall.sites
    params = both.params(both.point())
    cancel = threading.Event()
    failed: list[FarshoreError] = []

    def copy() -> None:
        try:
            group.replicate(
                params,
                target=both.beta.target,
                manifests=both.beta.manifests,
                links=stall.links,
                journal_dir=both.journals,
                cancel=cancel,
            )
        except FarshoreError as error:
            failed.append(error)

    thread = threading.Thread(target=copy)
    thread.start()
    assert stall.reached.wait(DEADLINE_S)
    session = next(iter(stall.service._sessions.values()))
    cancel.set()
    thread.join(DEADLINE_S)
    assert failed
    assert session._readers, "somebody reads from it still"
    stall.gate.set()
    deadline = time.monotonic() + DEADLINE_S
    while session._readers and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not session._readers


def test_a_peer_that_asks_and_does_not_read_costs_a_bounded_memory(stall: Stall) -> None:
    """It asks for 400 MiB without reading any; the source keeps few buffers, and serves others meanwhile."""
    both, service = stall.sites, stall.service
    stall.gate.set()
    grant = both.params(both.point()).grant
    greedy, modest = connect(both), connect(both)
    number = open_session(greedy, grant)
    question = frames.Read(number, 1, ((0, CHUNK_SIZE),))
    sender = threading.Thread(target=lambda: [greedy.sendall(question.encode(n)) for n in range(2, 402)], daemon=True)
    sender.start()
    before = service.sent_bytes
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:  # until nothing moves any more: socket and bound are full
        time.sleep(0.3)
        if service.sent_bytes == before:
            break
        before = service.sent_bytes
    threads = 2 * max(both.alpha.source.caps.max_parallel, 4)
    assert service.buffers.lent_bytes <= (READY_MAX + 1 + threads) * CHUNK_SIZE
    for n in range(2, 12):
        modest.sendall(frames.Read(number, 1, ((n * 64 * KIB, 64 * KIB),)).encode(n))
        assert take(modest)[0].request == n
    # And when it reads after all, everything comes.
    answered = {take(greedy)[0].request for _ in range(400)}
    assert answered == set(range(2, 402))
    sender.join(DEADLINE_S)
    greedy.close()
    modest.close()
    deadline = time.monotonic() + DEADLINE_S
    while service.buffers.lent_bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service.buffers.lent_bytes == 0


def test_a_peer_that_goes_without_reading_leaves_nothing(stall: Stall) -> None:
    both, service = stall.sites, stall.service
    stall.gate.set()
    grant = both.params(both.point()).grant
    connection = connect(both)
    number = open_session(connection, grant)
    for n in range(2, 30):
        connection.sendall(frames.Read(number, 1, ((0, CHUNK_SIZE),)).encode(n))
    deadline = time.monotonic() + DEADLINE_S
    while not service.buffers.lent_bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    connection.close()
    while (service.buffers.lent_bytes or service._connections) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service.buffers.lent_bytes == 0
    assert not service._connections
