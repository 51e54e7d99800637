import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from farshore.errors import NoSpace, Permanent
from farshore.model.task import Progress, Task
from farshore.node.spool import Owed, Spool
from farshore.node.worker import Call, Cancelled, KeyedLocks, Lane, Worker

LONG_S = 20.0


def task(task_id: str = "tsk-1", term: int = 1) -> Task:
    return Task(task_id=task_id, kind="inventory", key=task_id, site="alpha", term=term)


class Gate:
    """An executor whose tasks wait to be let through."""

    def __init__(self) -> None:
        self.begun: dict[tuple[str, int], threading.Event] = {}
        self.let: dict[tuple[str, int], threading.Event] = {}
        self.ran: list[tuple[str, int]] = []
        self._lock = threading.Lock()

    def _event(self, table: dict[tuple[str, int], threading.Event], key: tuple[str, int]) -> threading.Event:
        with self._lock:
            return table.setdefault(key, threading.Event())

    def __call__(self, call: Call) -> dict[str, Any]:
        key = (call.task.task_id, call.task.term)
        self.ran.append(key)
        self._event(self.begun, key).set()
        while not self._event(self.let, key).wait(0.01):
            call.check()
        return {"term": call.task.term}

    def await_begun(self, task_id: str, term: int = 1) -> None:
        assert self._event(self.begun, (task_id, term)).wait(LONG_S)

    def open(self, task_id: str, term: int = 1) -> None:
        self._event(self.let, (task_id, term)).set()


def make(tmp_path: Path, execute: Callable[[Call], dict[str, Any]], limit: int = 4) -> Worker:
    return Worker(execute, {"quick": Lane("quick", limit)}, lambda _kind: "quick", Spool(tmp_path))


def await_owed(worker: Worker, count: int = 1) -> list[Owed]:
    for _ in range(2000):
        owed = worker.await_owed(LONG_S)
        if len(owed) >= count:
            return owed
        threading.Event().wait(0.01)
    raise AssertionError(f"{count} reports did not come")


def test_a_task_is_held_from_its_arrival_until_its_report_is_taken(tmp_path: Path):
    gate = Gate()
    worker = make(tmp_path, gate)
    assert worker.accept(task())
    assert worker.held() == ("tsk-1",)
    gate.open("tsk-1")
    (owed,) = await_owed(worker)
    assert worker.held() == ("tsk-1",)
    assert owed.report["state"] == "succeeded"
    assert owed.report["result"] == {"term": 1}
    worker.delivered(owed)
    assert worker.held() == ()
    assert list(tmp_path.iterdir()) == []


def test_the_same_delivery_again_changes_nothing(tmp_path: Path):
    gate = Gate()
    worker = make(tmp_path, gate)
    worker.accept(task())
    gate.await_begun("tsk-1")
    assert not worker.accept(task())
    gate.open("tsk-1")
    await_owed(worker)
    assert not worker.accept(task())
    assert gate.ran == [("tsk-1", 1)]


def test_a_higher_term_awaits_the_end_of_the_old_execution(tmp_path: Path):
    gate = Gate()
    worker = make(tmp_path, gate)
    worker.accept(task(term=1))
    gate.await_begun("tsk-1", 1)
    assert worker.accept(task(term=3))
    assert not worker.accept(task(term=2))
    gate.await_begun("tsk-1", 3)
    gate.open("tsk-1", 3)
    (owed,) = await_owed(worker)
    assert (owed.term, owed.report["result"]) == (3, {"term": 3})
    assert gate.ran == [("tsk-1", 1), ("tsk-1", 3)]


def test_a_higher_term_replaces_a_report_that_nobody_took(tmp_path: Path):
    gate = Gate()
    worker = make(tmp_path, gate)
    worker.accept(task(term=1))
    gate.open("tsk-1", 1)
    (old,) = await_owed(worker)
    assert worker.accept(task(term=2))
    worker.delivered(old)  # an answer that came late
    gate.open("tsk-1", 2)
    (owed,) = await_owed(worker)
    assert owed.term == 2


def test_a_cancelled_task_says_so(tmp_path: Path):
    gate = Gate()
    worker = make(tmp_path, gate)
    worker.accept(task())
    gate.await_begun("tsk-1")
    worker.cancel("tsk-1")
    worker.cancel("tsk-unknown")
    (owed,) = await_owed(worker)
    assert (owed.report["state"], owed.report["error"]["code"]) == ("failed", "cancelled")


def test_a_queued_task_that_is_cancelled_does_not_begin(tmp_path: Path):
    gate = Gate()
    worker = make(tmp_path, gate, limit=1)
    worker.accept(task("tsk-1"))
    gate.await_begun("tsk-1")
    worker.accept(task("tsk-2"))
    worker.cancel("tsk-2")
    gate.open("tsk-1")
    reports = {item.task_id: item.report for item in await_owed(worker, 2)}
    assert reports["tsk-2"]["error"]["code"] == "cancelled"
    assert gate.ran == [("tsk-1", 1)]


def test_a_lane_runs_no_more_than_its_limit(tmp_path: Path):
    gate = Gate()
    worker = make(tmp_path, gate, limit=2)
    for number in range(4):
        worker.accept(task(f"tsk-{number}"))
    gate.await_begun("tsk-0")
    gate.await_begun("tsk-1")
    assert len(gate.ran) == 2
    for number in range(4):
        gate.open(f"tsk-{number}")
    assert len(await_owed(worker, 4)) == 4


def test_an_error_of_ours_travels_whole(tmp_path: Path):
    def execute(_call: Call) -> dict[str, Any]:
        raise NoSpace("pool full", hint="make room", pool="/srv", free_bytes=0)

    worker = make(tmp_path, execute)
    worker.accept(task())
    (owed,) = await_owed(worker)
    error = owed.report["error"]
    assert (error["duty"], error["code"], error["hint"]) == ("NoSpace", "no-space", "make room")
    assert error["evidence"] == {"pool": "/srv", "free_bytes": 0}


def test_a_bug_shows_its_type_only(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def execute(_call: Call) -> dict[str, Any]:
        raise ZeroDivisionError("password=hunter2")

    worker = make(tmp_path, execute)
    worker.accept(task())
    (owed,) = await_owed(worker)
    assert owed.report["error"]["code"] == "internal"
    assert "ZeroDivisionError" in owed.report["error"]["message"]
    assert "hunter2" not in str(owed.report)
    assert any(record.exc_info for record in caplog.records)


def test_reports_outlive_the_process(tmp_path: Path):
    gate = Gate()
    worker = make(tmp_path, gate)
    gate.open("tsk-1")
    worker.accept(task("tsk-1"))
    await_owed(worker)
    worker.accept(task("tsk-2"))
    gate.await_begun("tsk-2")
    after = make(tmp_path, gate)
    assert after.recover() == ["tsk-2"]
    assert after.held() == ("tsk-1",)
    gate.open("tsk-2")
    await_owed(worker, 2)


def test_stopping_ends_what_runs_and_owes_nothing_for_it(tmp_path: Path):
    gate = Gate()
    worker = make(tmp_path, gate)
    worker.accept(task())
    gate.await_begun("tsk-1")
    assert worker.stop(LONG_S) == []
    assert worker.await_owed(0) == []
    assert not worker.accept(task("tsk-2"))
    assert make(tmp_path, gate).recover() == ["tsk-1"]


def test_what_succeeds_while_stopping_is_reported(tmp_path: Path):
    begun, end = threading.Event(), threading.Event()

    def execute(_call: Call) -> dict[str, Any]:
        begun.set()
        assert end.wait(LONG_S)
        return {"published": True}

    worker = make(tmp_path, execute)
    worker.accept(task())
    assert begun.wait(LONG_S)
    assert worker.stop(0.01) == ["tsk-1"]
    end.set()
    assert worker.stop(LONG_S) == []
    assert [item.report["result"] for item in worker.await_owed(0)] == [{"published": True}]


def test_a_refused_report_becomes_a_failure(tmp_path: Path):
    worker = make(tmp_path, lambda _call: {})
    worker.accept(task())
    (owed,) = await_owed(worker)
    worker.replace(owed, Permanent("refused", code="report-refused"))
    (other,) = worker.await_owed(0)
    assert (other.report["state"], other.report["error"]["code"]) == ("failed", "report-refused")
    worker.delivered(owed)
    assert worker.held() == ("tsk-1",)
    worker.delivered(other)
    assert worker.held() == ()


def test_progress_is_told_once():
    call = Call(task())
    assert call.unsent_progress() is None
    call.progress(Progress(done_bytes=1))
    call.progress(Progress(done_bytes=2))
    assert call.unsent_progress() == Progress(done_bytes=2)
    assert call.unsent_progress() is None


def test_an_exclusive_lock_awaits_the_shared_ones():
    locks, order = KeyedLocks(), []
    entered, leave, done = threading.Event(), threading.Event(), threading.Event()

    def hold_shared() -> None:
        with locks.hold(Call(task("a")), "k", shared=True):
            entered.set()
            assert leave.wait(LONG_S)
            order.append("shared ended")

    def hold_exclusive() -> None:
        with locks.hold(Call(task("b")), "k"):
            order.append("exclusive")
        done.set()

    threading.Thread(target=hold_shared, daemon=True).start()
    assert entered.wait(LONG_S)
    with locks.hold(Call(task("c")), "k", shared=True), locks.hold(Call(task("d")), "other"):
        threading.Thread(target=hold_exclusive, daemon=True).start()
        leave.set()
    assert done.wait(LONG_S)
    assert order == ["shared ended", "exclusive"]


def test_a_cancelled_task_does_not_wait_for_a_lock():
    locks = KeyedLocks()
    waiting = Call(task("b"))
    waiting.cancel.set()
    with locks.hold(Call(task("a")), "k"), pytest.raises(Cancelled), locks.hold(waiting, "k"):
        pass


def test_a_task_that_comes_again_after_its_report_was_taken_is_not_done_twice_but_said_twice(tmp_path: Path) -> None:
    gate = Gate()
    worker = make(tmp_path, gate)
    worker.accept(task())
    gate.open("tsk-1")
    (owed,) = await_owed(worker)
    worker.delivered(owed)
    assert not worker.accept(task())  # an answer that was made before the report came
    assert worker.await_owed(0) == [owed]
    worker.delivered(owed)
    assert gate.ran == [("tsk-1", 1)]
    gate.open("tsk-1", 2)
    assert worker.accept(task(term=2))
