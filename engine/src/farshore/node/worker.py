"""Runs tasks: lanes of threads, one execution per task, what ended kept until the control plane has taken it.

Rules that the control plane relies on:

- a task that is held (queued, running, or ended and not yet reported) is listed in every poll;
- the same task delivered again changes nothing; with a higher term the old execution is cancelled and awaited first;
- a task ends with exactly one report per term, durable before it is sent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from farshore.errors import FarshoreError, Retry
from farshore.model.task import DraftCover, Progress, Task, TaskReport
from farshore.node.log import fields
from farshore.node.spool import Owed, Spool

#: How soon a task that waits for its turn sees that it was cancelled.
_CANCEL_CHECK_S: Final = 0.5
_log = logging.getLogger(__name__)


class Cancelled(Retry):
    """The control plane does not want the task any more, or the node stops."""

    code = "cancelled"


Covers = Callable[[int], Sequence[DraftCover]]


def no_covers(_max_ranges: int) -> Sequence[DraftCover]:
    """Return what is durable of the drafts of a task that has none."""
    return ()


@dataclass(slots=True)
class Call:
    """One execution of a task, as its handler sees it."""

    task: Task
    cancel: threading.Event = field(default_factory=threading.Event)
    #: Why it was cancelled: the control plane's wish, a higher term, or the node's stop.
    successor: Task | None = None
    abandoned: bool = False
    #: Returns what is durable of the task's drafts, with at most so many ranges for each.
    covers: Covers = no_covers
    _progress: Progress | None = None
    _sent: Progress | None = None

    def progress(self, progress: Progress) -> None:
        """Note how far the task is; sent now and then."""
        self._progress = progress

    def show_drafts(self, covers: Covers) -> None:
        """Let others ask what is durable of the task's drafts."""
        self.covers = covers

    def unsent_progress(self) -> Progress | None:
        """Return the newest progress if it was not returned before."""
        newest = self._progress
        if newest is None or newest is self._sent:
            return None
        self._sent = newest
        return newest

    def check(self) -> None:
        """Raise :class:`Cancelled` if the task is to stop."""
        if self.cancel.is_set():
            raise Cancelled(f"task {self.task.task_id} was cancelled")


#: For so long a reply that was made before a report was taken may still bring its task: longer than a poll lasts.
TOLD_S: Final = 120.0

#: What executes a task: returns the report's result, raises what went wrong.
Execute = Callable[[Call], dict[str, Any]]


class KeyedLocks:
    """Locks by name, shared or exclusive, for as long as somebody holds them; a cancelled task stops waiting."""

    def __init__(self) -> None:
        self._freed = threading.Condition()
        self._holders: dict[str, int] = {}

    @contextmanager
    def hold(self, call: Call, key: str, *, shared: bool = False) -> Iterator[None]:
        """Hold ``key``; together with others where all hold it ``shared``.

        Raises:
            Cancelled: the task was cancelled before its turn.
        """
        with self._freed:
            while self._holders.get(key, 0) < 0 or (not shared and self._holders.get(key, 0)):
                call.check()
                self._freed.wait(_CANCEL_CHECK_S)
            call.check()
            self._holders[key] = self._holders.get(key, 0) + 1 if shared else -1
        try:
            yield
        finally:
            with self._freed:
                left = self._holders[key] - 1 if shared else 0
                if left:
                    self._holders[key] = left
                else:
                    del self._holders[key]
                self._freed.notify_all()


class Lane:
    """A queue that at most ``limit`` threads work on; threads are made when they are needed and end when idle."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self._lock = threading.Lock()
        self._queue: deque[Callable[[], None]] = deque()
        self._threads = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Run ``work`` as soon as a thread is free. ``work`` raises nothing."""
        with self._lock:
            self._queue.append(work)
            if self._threads >= self.limit:
                return
            self._threads += 1
        # A daemon thread: a guest that never answers must not keep the node from ending.
        threading.Thread(target=self._work, name=f"farshore-{self.name}", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                work = self._queue.popleft()
            work()


class Worker:
    """Holds the node's tasks from their arrival until their reports are taken."""

    def __init__(
        self, execute: Execute, lanes: Mapping[str, Lane], lane_of: Callable[[str], str], spool: Spool
    ) -> None:
        self._execute = execute
        self._lanes = lanes
        self._lane_of = lane_of
        self._spool = spool
        self._changed = threading.Condition()
        self._calls: dict[str, Call] = {}
        self._owed: dict[str, Owed] = {}
        self._told: dict[str, tuple[Owed, float]] = {}
        self._stopping = False

    def recover(self) -> list[str]:
        """Take up what an earlier process left; return the ids of the tasks that it did not end."""
        with self._changed:
            owed, interrupted = self._spool.recover()
            self._owed.update({item.task_id: item for item in owed})
            self._changed.notify_all()
        return interrupted

    def held(self) -> tuple[str, ...]:
        """Return the ids of all tasks that the node holds, sorted."""
        with self._changed:
            return tuple(sorted({*self._calls, *self._owed}))

    def calls(self) -> list[Call]:
        """Return what is queued or running."""
        with self._changed:
            return list(self._calls.values())

    def accept(self, task: Task) -> bool:
        """Take a task over; False if the node has it already, or a newer term of it.

        Raises:
            Invalid: its id is of no use as a name.
        """
        with self._changed:
            if self._stopping:
                return False
            running = self._calls.get(task.task_id)
            if running is not None:
                return self._supersede(running, task)
            owed = self._owed.get(task.task_id)
            if owed is not None and owed.term >= task.term:
                return False
            told, _ = self._told.get(task.task_id, (None, 0.0))
            if told is not None and told.term >= task.term:
                # An answer that was on its way when the report came. It is not done twice, but said twice.
                self._owed[task.task_id] = told
                self._changed.notify_all()
                return False
            self._begin(task)
            return True

    def _begin(self, task: Task) -> None:
        """Keep the task and queue it. The caller holds the lock."""
        self._spool.accept(task)
        self._owed.pop(task.task_id, None)
        call = Call(task)
        self._calls[task.task_id] = call
        self._lanes[self._lane_of(task.kind)].submit(lambda: self._run(call))

    def _supersede(self, running: Call, task: Task) -> bool:
        newest = running.successor.term if running.successor else running.task.term
        if task.term <= newest:
            return False
        running.successor = task
        running.cancel.set()
        return True

    def cancel(self, task_id: str) -> None:
        """Ask a task to stop; its report says so."""
        with self._changed:
            call = self._calls.get(task_id)
            if call is not None:
                call.cancel.set()

    def _run(self, call: Call) -> None:
        task = call.task
        tags = {"task": task.task_id, "kind": task.kind, "term": task.term}
        began = time.monotonic()
        _log.info("task begins", extra=fields(**tags))
        report = self._attempt(call)
        seconds = round(time.monotonic() - began, 3)
        code, reason = ((report.error or {}).get(name) for name in ("code", "message"))
        level = logging.INFO if report.state == "succeeded" else logging.WARNING
        self._end(call, Owed(task.task_id, task.kind, task.term, report.model_dump(mode="json")))
        # Said after the report is durable: who reads it may rely on it.
        _log.log(
            level, "task ended", extra=fields(**tags, state=report.state, code=code, reason=reason, seconds=seconds)
        )

    def _attempt(self, call: Call) -> TaskReport:
        try:
            call.check()
            result = self._execute(call)
            # What a replication moved is told beside its result, so that it is kept also where the result is not read.
            stats = result.get("stats") if call.task.kind == "replicate" else None
            return TaskReport.model_validate(
                {"state": "succeeded", "term": call.task.term, "result": result, "stats": stats}
            )
        except FarshoreError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - the boundary of a task: a bug in one must not end the node
            _log.exception("a task failed in a way that was not foreseen", extra=fields(task=call.task.task_id))
            failure = FarshoreError(
                f"task {call.task.kind} failed on the node with {type(error).__name__}",
                code="internal",
                hint="The node's log has the details.",
            )
        return TaskReport(state="failed", term=call.task.term, error=failure.to_dict())

    def _end(self, call: Call, owed: Owed) -> None:
        with self._changed:
            self._calls.pop(owed.task_id, None)
            if call.successor is not None and not self._stopping:
                self._begin(call.successor)
            elif call.abandoned and owed.report["state"] == "failed":
                # Ended only because the node stops: the next process finds the task file, and drops it.
                pass
            else:
                self._owed[owed.task_id] = owed
                self._store(owed)
            self._changed.notify_all()

    def _store(self, owed: Owed) -> None:
        try:
            self._spool.finish(owed)
        except OSError as error:
            # A full disk must not hide a published checkpoint: the report stays in memory and is sent from there.
            _log.error("cannot keep a report on disk", extra=fields(task=owed.task_id, reason=str(error)))

    def await_owed(self, timeout_s: float) -> list[Owed]:
        """Return the reports that are owed, waiting up to ``timeout_s`` for the first one."""
        with self._changed:
            self._changed.wait_for(lambda: self._owed or self._stopping, timeout_s)
            return list(self._owed.values())

    def delivered(self, owed: Owed) -> None:
        """The control plane has taken the report, or will never want it."""
        now = time.monotonic()
        with self._changed:
            if self._owed.get(owed.task_id) is owed:
                del self._owed[owed.task_id]
                self._spool.delivered(owed.task_id)
                self._told[owed.task_id] = owed, now
            # In the order of their telling.
            while self._told and now - next(iter(self._told.values()))[1] > TOLD_S:
                del self._told[next(iter(self._told))]

    def replace(self, owed: Owed, error: FarshoreError) -> None:
        """Owe a failure instead of a report that the control plane cannot take."""
        report = TaskReport(state="failed", term=owed.term, error=error.to_dict())
        with self._changed:
            if self._owed.get(owed.task_id) is owed:
                other = Owed(owed.task_id, owed.kind, owed.term, report.model_dump(mode="json"))
                self._owed[owed.task_id] = other
                self._store(other)

    def stop(self, timeout_s: float) -> list[str]:
        """Take no more tasks, cancel what runs, wait; return the ids of what did not end in time."""
        with self._changed:
            self._stopping = True
            for call in self._calls.values():
                call.abandoned = True
                call.cancel.set()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._calls, timeout_s)
            return sorted(self._calls)
