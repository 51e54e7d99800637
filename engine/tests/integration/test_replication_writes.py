"""Disks whose writes hang, are throttled or lie, beside disks whose do not."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from doubles.datapath import DEADLINE_S, Sites
from farshore.errors import Corruption, FarshoreError, Permanent, Retry
from farshore.model.plan import Transport
from farshore.model.task import Progress, ReplicateResult
from farshore.platforms.file.source import FileReader
from farshore.replication import group, landing
from farshore.replication.answering import Answering
from farshore.replication.flow import NodeWindow
from farshore.replication.serve import SourceService
from farshore.transport.links import Link, Links
from farshore.units import MIB

SIZE = 24 * MIB


class Drafts:
    """The target of a site whose drafts do as a test says. ``on_write(disk_key, offset, buffer)`` may do anything."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self.lies: set[int] = set()
        self.writes: Counter[str] = Counter()

    def on_write(self, disk_key: str, offset: int, buffer: memoryview) -> None:
        """Be told of each write before it is made."""

    def on_flush(self, disk_key: str) -> None:
        """Be told of each flush before it is made."""

    def open(self, disk_key: str, size_bytes: int, base: str | None, key: str) -> Any:
        return Draft(self._target.open(disk_key, size_bytes, base, key), disk_key, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


class Draft:
    def __init__(self, draft: Any, disk_key: str, drafts: Drafts) -> None:
        self._draft, self._key, self._drafts = draft, disk_key, drafts

    def write(self, offset: int, buffer: memoryview) -> None:
        self._drafts.writes[self._key] += 1
        self._drafts.on_write(self._key, offset, buffer)
        if offset in self._drafts.lies:
            buffer = memoryview(bytes([buffer[0] ^ 1]) + bytes(buffer[1:]))
        self._draft.write(offset, buffer)

    def flush(self) -> None:
        self._drafts.on_flush(self._key)
        self._draft.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._draft, name)


class Here:
    """A source service and a target in this process, with two disks that are full of data."""

    def __init__(self, folder: Path) -> None:
        self.sites = Sites(folder, {"db": {"vda": SIZE, "vdb": SIZE}})
        for disk in ("vda", "vdb"):
            self.sites.fill("db", disk, len(disk), 300, MIB)
        self.service = SourceService(self.sites.alpha.source, self.sites.alpha_tls, self.sites.grant_key)
        _, self.sites.port = self.service.start("127.0.0.1:0")
        self.links = Links(self.sites.beta_tls, give_up_s=5.0)
        self.drafts = Drafts(self.sites.beta.target)
        self.window = NodeWindow(64 * MIB)
        self.cancel = threading.Event()
        self.progress: list[Progress] = []

    def transport(self, **changes: Any) -> None:
        self.sites.transport = Transport(**{"intermediate_checkpoint_window": 8 * MIB, "compression": "off", **changes})

    def replicate(self, **changes: Any) -> ReplicateResult:
        snapshot = self.sites.point()
        result = group.replicate(
            self.sites.params(snapshot).model_copy(update=changes),
            target=self.drafts,
            manifests=self.sites.beta.manifests,
            links=self.links,
            journal_dir=self.sites.journals,
            window=self.window,
            cancel=self.cancel,
            on_progress=self.progress.append,
        )
        assert self.sites.published(result.manifest) == self.sites.frozen(snapshot)
        return result

    def close(self) -> None:
        self.links.close()
        self.service.stop()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    both = Here(tmp_path)
    both.transport()
    yield both
    both.close()


@pytest.mark.parametrize("window", [2 * MIB, 16 * MIB])
def test_a_disk_that_hangs_costs_another_nothing(here: Here, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    here.transport(connections=2, per_disk_window=window)
    gate, other_is_whole = threading.Event(), threading.Event()
    written: Counter[str] = Counter()

    def on_write(disk_key: str, _offset: int, buffer: memoryview) -> None:
        if disk_key.endswith("vda"):
            assert gate.wait(DEADLINE_S)
        else:
            written[disk_key] += buffer.nbytes

    def on_flush(disk_key: str) -> None:
        if disk_key.endswith("vdb") and written[disk_key] >= data:
            other_is_whole.set()

    monkeypatch.setattr(here.drafts, "on_write", on_write)
    monkeypatch.setattr(here.drafts, "on_flush", on_flush)
    image = here.sites.machine("db").image("vdb").read_bytes()
    data = sum(any(image[at : at + 4096]) * 4096 for at in range(0, SIZE, 4096))
    with ThreadPoolExecutor(1) as pool:
        copying = pool.submit(here.replicate)
        try:
            assert other_is_whole.wait(DEADLINE_S), "the other disk waits too"
            assert not copying.done()
            # The other's last chunk is written and flushed before its credit is back.
            deadline = time.monotonic() + DEADLINE_S
            while here.window.in_flight() > window and time.monotonic() < deadline:
                time.sleep(0.01)
            assert here.window.in_flight() <= window, "the disk that hangs holds its own credit and no more"
        finally:
            gate.set()
        copying.result(DEADLINE_S)
    assert here.window.in_flight() == 0


def test_no_round_trip_is_waited_for_that_can_pass_beside_other_work(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, sealed = threading.Event(), threading.Event()
    answer_list, answer_close = Answering._list, Answering._close

    def on_list(self: Answering, question: Any) -> Any:
        listed.set()
        return answer_list(self, question)

    def on_close(self: Answering, question: Any) -> Any:
        assert sealed.wait(DEADLINE_S), "the disks are sealed only when the source has confirmed the session's end"
        return answer_close(self, question)

    def open_draft(disk_key: str, size_bytes: int, base: str | None, key: str) -> Any:
        assert listed.wait(DEADLINE_S), "the source is asked for its list only when the draft is open"
        return Sealing(here.sites.beta.target.open(disk_key, size_bytes, base, key), disk_key, here.drafts)

    class Sealing(Draft):
        def seal(self) -> Any:
            sealed.set()
            return self._draft.seal()

    monkeypatch.setattr(Answering, "_list", on_list)
    monkeypatch.setattr(Answering, "_close", on_close)
    monkeypatch.setattr(here.drafts, "open", open_draft)
    stats = here.replicate().stats
    assert stats.source is not None, "what the source says at the end is waited for last"
    assert stats.source.sent_bytes


def test_a_write_that_is_throttled_is_made_again_and_counted(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing, "PAUSE_FIRST_S", 0.001)
    refused: Counter[tuple[str, int]] = Counter()

    def on_write(disk_key: str, offset: int, _buffer: memoryview) -> None:
        if refused[disk_key, offset] < 2:
            refused[disk_key, offset] += 1
            raise Retry("slow down", code="throttled")

    monkeypatch.setattr(here.drafts, "on_write", on_write)
    result = here.replicate()
    assert sum(disk.retries for disk in result.stats.disks) >= 2 * len({key for key, _ in refused})


def test_a_write_that_is_refused_for_ever_ends_the_cycle_and_keeps_what_is_there(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landing, "PAUSE_FIRST_S", 0.001)
    monkeypatch.setattr(landing, "PAUSE_MAX_S", 0.002)

    def on_write(disk_key: str, offset: int, _buffer: memoryview) -> None:
        if disk_key.endswith("vda") and offset >= SIZE // 2:
            raise Retry("slow down", code="throttled")

    with monkeypatch.context() as patched:
        patched.setattr(here.drafts, "on_write", on_write)
        with pytest.raises(Retry) as caught:
            here.replicate()
    assert caught.value.code == "throttled"
    assert here.sites.newest() is None
    assert here.window.in_flight() == 0
    assert here.replicate().stats.moved_bytes > 0


def test_cancelling_does_not_wait_for_the_pauses_of_a_throttled_disk(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landing, "PAUSE_FIRST_S", 3600.0)
    monkeypatch.setattr(landing, "PAUSE_MAX_S", 3600.0)

    def on_write(_disk_key: str, _offset: int, _buffer: memoryview) -> None:
        here.cancel.set()
        raise Retry("slow down", code="throttled")

    monkeypatch.setattr(here.drafts, "on_write", on_write)
    with ThreadPoolExecutor(1) as pool, pytest.raises(Retry) as caught:
        pool.submit(here.replicate).result(DEADLINE_S)
    assert caught.value.code in {"cancelled", "throttled"}


def test_a_write_that_fails_ends_the_cycle_with_its_error(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_write(disk_key: str, _offset: int, _buffer: memoryview) -> None:
        if disk_key.endswith("vdb"):
            raise Permanent("input/output error", code="file-io")

    monkeypatch.setattr(here.drafts, "on_write", on_write)
    with pytest.raises(Permanent) as caught:
        here.replicate()
    assert caught.value.code == "file-io"
    assert here.window.in_flight() == 0


def test_a_bug_in_a_draft_ends_the_cycle_and_is_shown(
    here: Here, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def on_write(_disk_key: str, _offset: int, _buffer: memoryview) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(here.drafts, "on_write", on_write)
    with pytest.raises(FarshoreError) as caught:
        here.replicate()
    assert caught.value.code == "internal"
    assert "a bug" in caplog.text


def test_chunks_go_on_while_a_mark_is_flushed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.transport(per_disk_window=4 * MIB, intermediate_checkpoint_window=12 * MIB)
    gate, flushing = threading.Event(), threading.Event()

    def on_flush(disk_key: str) -> None:
        if disk_key.endswith("vda") and not flushing.is_set():
            flushing.set()
            assert gate.wait(DEADLINE_S)

    def on_write(disk_key: str, _offset: int, _buffer: memoryview) -> None:
        # A quarter of the mark is written when the flush begins; three quarters and more come while it hangs.
        if disk_key.endswith("vda") and flushing.is_set() and here.drafts.writes[disk_key] >= 9:
            gate.set()

    monkeypatch.setattr(here.drafts, "on_flush", on_flush)
    monkeypatch.setattr(here.drafts, "on_write", on_write)
    here.replicate()


def test_what_is_read_back_and_is_not_what_came_is_never_published(here: Here) -> None:
    assert here.replicate(read_back=True).manifest.disks
    here.sites.machine("db").write("vda", 5 * MIB, b"\x05" * MIB)
    here.drafts.lies = {5 * MIB}
    with pytest.raises(Corruption) as caught:
        here.replicate(read_back=True)
    assert caught.value.code == "read-back"
    assert caught.value.evidence["offset"] == 5 * MIB
    newest = here.sites.newest()
    assert newest is not None
    assert newest.sequence == 1


@pytest.mark.parametrize(("rtt_s", "first"), [(0.0001, 32 * MIB), (0.2, 64 * MIB)])
def test_a_cycle_begins_with_the_window_that_its_path_needs(
    here: Here, monkeypatch: pytest.MonkeyPatch, rtt_s: float, first: int
) -> None:
    monkeypatch.setattr(Link, "rtt_s", rtt_s)
    for disk in here.replicate().stats.disks:
        began = disk.level_changes[0].from_bytes if disk.level_changes else disk.level_bytes
        assert began == first


def test_a_rate_is_kept_to_by_all_disks_together(here: Here) -> None:
    here.transport(per_disk_window=4 * MIB)
    here.window.limit("plan:test", 40 * MIB)
    seen: list[float | None] = []
    here.window.seen = seen.append  # type: ignore[method-assign]
    result = here.replicate(limits=("plan:test",))
    assert any(rtt_s is not None and rtt_s > 0 for rtt_s in seen)  # what the path holds is told while it runs
    # No upper bound: this machine may be busy. A limit that did not hold would be over in a tenth of this.
    assert result.stats.seconds >= 0.8 * result.stats.moved_bytes / (40 * MIB)


def test_what_is_in_memory_is_answered_by_the_thread_that_was_asked(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: Counter[str] = Counter()

    def from_memory(reader: FileReader, offset: int, buffer: memoryview) -> bool:
        threads[threading.current_thread().name] += 1
        reader.read_into(offset, buffer)  # whatever this folder's file system can say
        return True

    monkeypatch.setattr(FileReader, "read_held", from_memory)
    here.replicate()
    assert threads, "nobody asked for what is in memory"
    assert not [name for name in threads if name.startswith("data-reader")]
