"""One thread that plays all threads: greenlets, virtual time, and a seed that decides every switch.

The modules of the data path are run as they are. For the time of a simulation the names ``threading``, ``time``,
``os``, ``socket``, ``select``, ``queue``, ``random``, ``fcntl``, ``shutil`` and ``Future`` in their namespaces stand
for what is here and in :mod:`sim.network` and :mod:`sim.files`. A *process* is a set of tasks that dies as one: what
its tasks do after that, also in ``finally``, has no effect any more.
"""

from __future__ import annotations

import concurrent.futures
import heapq
import queue as real_queue
import random as real_random
import threading as real_threading
import time as real_time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import greenlet


class Killed(BaseException):
    """The process of this task is dead; nothing that it does counts."""


class Violation(AssertionError):
    """An invariant does not hold. It ends the simulation also where the code under test catches it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        if HUB is not None and HUB.failure is None:
            HUB.failure = self


class Process:
    """Tasks that die together. ``frozen``: stopped, as by SIGSTOP."""

    def __init__(self, name: str, machine: Any = None) -> None:
        self.name = name
        self.machine = machine
        self.alive = True
        self.frozen = False
        self.stash: list[Task] = []
        self.tasks: dict[Task, None] = {}
        self.on_death: list[Callable[[], None]] = []
        self.things: dict[int, Any] = {}


class Task:
    __slots__ = ("done", "error", "greenlet", "locals", "name", "process", "queued", "thread", "waiters", "woken")

    def __init__(self, process: Process, name: str, thread: Any) -> None:
        self.process = process
        self.name = name
        self.thread = thread if thread is not None else _Main(name)
        self.done = False
        self.error: BaseException | None = None
        self.queued = False
        self.woken = False
        self.waiters: list[Task] = []
        self.locals: dict[int, dict[str, Any]] = {}
        self.greenlet: Any = None


class _Main:
    """What ``threading.current_thread()`` returns where no Thread object was made."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ident = id(self)
        self.daemon = True


class Hub:
    """The scheduler of one simulation."""

    def __init__(self, seed: int, *, switchiness: float = 0.3, steps_max: int = 120_000) -> None:
        self.rng = real_random.Random(seed)
        self.library_rng = real_random.Random(seed ^ 0x5EED)
        self.now = 1000.0
        self.wall = 1_700_000_000.0
        self.steps = 0
        self.steps_max = steps_max
        self.switchiness = switchiness
        self.preempted: Callable[[], float] = lambda: 0.0
        self.ready: list[Task] = []
        self.timers: list[tuple[float, float, int, Callable[[], None]]] = []
        self.current: Task | None = None
        self.failure: BaseException | None = None
        self.fingerprint = 0
        self._count = 0
        self._main = greenlet.getcurrent()
        self.problems: list[str] = []
        self._graves: list[Process] = []

    # Tasks ----------------------------------------------------------------------------------------------------------

    def spawn(self, process: Process, function: Callable[[], Any], name: str, thread: Any = None) -> Task:
        task = Task(process, name, thread)

        def body() -> None:
            try:
                function()
            except Killed:
                pass
            except Violation as violation:
                self.failure = self.failure or violation
            except BaseException as error:  # noqa: BLE001 - a thread that dies of an error of its own is a finding
                task.error = error
                if process.alive:
                    text = "".join(traceback.format_exception(error))
                    self.failure = self.failure or Violation(f"task {name} of {process.name} died:\n{text}")
            task.done = True
            process.tasks.pop(task, None)
            for waiter in task.waiters:
                self.wake(waiter)

        task.greenlet = greenlet.greenlet(body, self._main)
        process.tasks[task] = None
        self._enqueue(task)
        return task

    def _enqueue(self, task: Task) -> None:
        if not task.queued and not task.done:
            task.queued = True
            self.ready.append(task)

    def wake(self, task: Task) -> None:
        """Make a blocked task run again."""
        task.woken = True
        self._enqueue(task)

    def kill(self, process: Process) -> None:
        """End a process at once. Its tasks are unwound by the loop; whatever they call until then raises Killed."""
        if not process.alive:
            return
        process.alive = False
        self.ready = [task for task in self.ready if task.process is not process]
        process.stash.clear()
        for action in process.on_death:
            action()
        self._graves.append(process)
        if self.current is not None and self.current.process is process:
            raise Killed

    def _bury(self) -> None:
        while self._graves:
            process = self._graves.pop()
            for task in list(process.tasks):
                if task.greenlet and not task.done:
                    self.current = task
                    task.greenlet.throw(Killed)
                    self.current = None
                task.done = True
            process.tasks.clear()

    def freeze(self, process: Process) -> None:
        process.frozen = True

    def thaw(self, process: Process) -> None:
        process.frozen = False
        stash, process.stash = process.stash, []
        for task in stash:
            self._enqueue(task)

    # Switching ------------------------------------------------------------------------------------------------------

    def check(self) -> Task:
        """Return the running task; end it here if its process is dead."""
        task = self.current
        if task is None:
            raise AssertionError("called from outside of the simulation")
        if not task.process.alive:
            raise Killed
        return task

    def point(self) -> None:
        """A place where another task may come first, and where one may lose the processor for long."""
        task = self.check()
        seconds = self.preempted()
        if seconds:
            self.sleep(seconds)
        elif self.rng.random() < self.switchiness:
            self._enqueue(task)
            self._switch(task)

    def _switch(self, task: Task) -> None:
        self._main.switch()
        if not task.process.alive:
            raise Killed

    def block(self, waiters: Any = None, timeout: float | None = None) -> bool:
        """Wait to be woken; False when ``timeout`` seconds have gone first."""
        task = self.check()
        task.woken = False
        if waiters is not None:
            waiters.append(task)
        if timeout is not None:
            # A real wait ends a little late, never early.
            self.after(max(0.0, timeout) + 1e-6, lambda: self._enqueue(task) if waiting else None)
        waiting = [True]
        try:
            self._switch(task)
        finally:
            waiting.clear()
            if waiters is not None and task in waiters:
                waiters.remove(task)
        return task.woken

    def sleep(self, seconds: float) -> None:
        self.block(None, seconds)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Run ``action`` when the clock has gone on by ``seconds``."""
        self._count += 1
        heapq.heappush(self.timers, (self.now + seconds, self.rng.random(), self._count, action))

    def run(self, until: Callable[[], bool], on_step: Callable[[], None] | None = None) -> None:
        """Run until ``until()``.

        Raises:
            Violation: something is wrong, nothing can go on, or it takes for ever.
        """
        while not until():
            self.steps += 1
            if self.steps > self.steps_max:
                raise Violation(f"I13: no end after {self.steps} steps: {self._stuck()}")
            ready = self.ready
            if ready:
                index = int(self.rng.random() * len(ready))
                task = ready[index]
                ready[index] = ready[-1]
                ready.pop()
                task.queued = False
                if task.process.frozen:
                    task.process.stash.append(task)
                    continue
                self.fingerprint = hash((self.fingerprint, task.name, self.now))
                self.current = task
                task.greenlet.switch()
                self.current = None
            elif self.timers:
                at, _, _, action = heapq.heappop(self.timers)
                self.now = max(self.now, at)
                action()
            else:
                raise Violation(f"I13: everything waits for ever: {self._stuck()}")
            if self._graves:
                self._bury()
            if self.failure is not None:
                raise self.failure
            if on_step is not None:
                on_step()

    def _stuck(self) -> str:
        return f"now {self.now:.1f}; " + "; ".join(self.problems[-5:])


HUB: Hub | None = None


def hub() -> Hub:
    if HUB is None:
        raise AssertionError("no simulation runs")
    return HUB


def install(new: Hub | None) -> None:
    global HUB  # noqa: PLW0603
    HUB = new


# --- threading --------------------------------------------------------------------------------------------------------


class Lock:
    def __init__(self) -> None:
        self._owner: Task | None = None
        self._waiters: list[Task] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        here = hub()
        here.point()
        task = here.check()
        while self._owner is not None:
            if self._owner is task:
                raise Violation(f"{task.name} waits for a lock that it holds itself")
            if not blocking or not here.block(self._waiters, None if timeout < 0 else timeout):
                return False
        self._owner = task
        return True

    def release(self) -> None:
        here = hub()
        here.check()
        if self._owner is None:
            raise RuntimeError("release unlocked lock")
        self._owner = None
        if self._waiters:
            here.wake(here.rng.choice(self._waiters))

    def locked(self) -> bool:
        return self._owner is not None

    def mine(self) -> bool:
        return self._owner is hub().current

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock(Lock):
    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._owner is not None and self._owner is hub().check():
            self._depth += 1
            return True
        if super().acquire(blocking, timeout):
            self._depth = 1
            return True
        return False

    def release(self) -> None:
        hub().check()
        self._depth -= 1
        if self._depth == 0:
            super().release()


class Condition:
    def __init__(self, lock: Any = None) -> None:
        self._lock = lock if lock is not None else RLock()
        self._waiters: list[Task] = []
        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        lock = self._lock
        if not lock.mine():
            raise RuntimeError("cannot wait on un-acquired lock")
        depth = getattr(lock, "_depth", 1)
        if isinstance(lock, RLock):
            lock._depth = 1
        lock.release()
        try:
            return hub().block(self._waiters, timeout)
        finally:
            lock.acquire()
            if isinstance(lock, RLock):
                lock._depth = depth

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        end = None if timeout is None else hub().now + timeout
        result = predicate()
        while not result:
            left = None if end is None else end - hub().now
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    def notify(self, n: int = 1) -> None:
        here = hub()
        here.check()
        waiting = [task for task in self._waiters if not task.woken]
        for task in here.rng.sample(waiting, min(n, len(waiting))):
            here.wake(task)

    def notify_all(self) -> None:
        here = hub()
        here.check()
        for task in list(self._waiters):
            here.wake(task)


class Event:
    def __init__(self) -> None:
        self._set = False
        self._waiters: list[Task] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        here = hub()
        here.point()
        self._set = True
        for task in list(self._waiters):
            here.wake(task)

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        end = None if timeout is None else hub().now + timeout
        while not self._set:
            left = None if end is None else end - hub().now
            if left is not None and left <= 0:
                return False
            hub().block(self._waiters, left)
        return True


class Semaphore:
    def __init__(self, value: int = 1) -> None:
        self._value = value
        self._changed = Condition(Lock())

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        with self._changed:
            if not self._changed.wait_for(lambda: self._value > 0, timeout if blocking else 0):
                return False
            self._value -= 1
            return True

    def release(self, n: int = 1) -> None:
        with self._changed:
            self._value += n
            self._changed.notify_all()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Local:
    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        try:
            return hub().check().locals.setdefault(id(self), {})[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        hub().check().locals.setdefault(id(self), {})[name] = value


class PerProcess:
    """A lock that a module made when it was loaded: each process of the simulation has its own."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def _mine(self) -> Any:
        things = hub().check().process.things
        if id(self) not in things:
            things[id(self)] = self._make()
        return things[id(self)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mine(), name)

    def __enter__(self) -> Any:
        return self._mine().__enter__()

    def __exit__(self, *_: object) -> None:
        self._mine().__exit__(*_)


def of_a_module(value: Any) -> Any:
    """Return what stands for a lock that a module made when it was loaded; None for anything else."""
    if isinstance(value, real_threading.Semaphore):
        count = value._value
        return PerProcess(lambda: Semaphore(count))
    for kind, make in ((type(real_threading.Lock()), Lock), (type(real_threading.RLock()), RLock)):
        if isinstance(value, kind):
            return PerProcess(make)
    for other, make_other in ((real_threading.Condition, Condition), (real_threading.Event, Event)):
        if isinstance(value, other):
            return PerProcess(make_other)
    return None


class Future(concurrent.futures.Future):  # type: ignore[type-arg]
    def __init__(self) -> None:
        super().__init__()
        self._condition = Condition()


class Queue:
    """Stands for Queue and SimpleQueue."""

    def __init__(self, maxsize: int = 0) -> None:
        self._items: deque[Any] = deque()
        self._max = maxsize
        self._changed = Condition(Lock())

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        with self._changed:
            if self._max and not self._changed.wait_for(lambda: len(self._items) < self._max, timeout if block else 0):
                raise real_queue.Full
            self._items.append(item)
            self._changed.notify_all()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        with self._changed:
            if not self._changed.wait_for(lambda: self._items, timeout if block else 0):
                raise real_queue.Empty
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def put_nowait(self, item: Any) -> None:
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)


class Executor:
    """Stands for ThreadPoolExecutor."""

    def __init__(self, max_workers: int | None = None, thread_name_prefix: str = "pool", **_: Any) -> None:
        self._room = Semaphore(max_workers or 4)
        self._prefix = thread_name_prefix
        self._tasks: list[Task] = []

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
        future = Future()

        def work() -> None:
            with self._room:
                try:
                    result = function(*args, **kwargs)
                except Exception as error:  # noqa: BLE001 - the future tells it
                    future.set_exception(error)
                else:
                    future.set_result(result)

        here = hub()
        self._tasks.append(here.spawn(here.check().process, work, f"{self._prefix}-{len(self._tasks)}"))
        here.point()
        return future

    def map(self, function: Callable[..., Any], *iterables: Any, timeout: float | None = None) -> Any:
        futures = [self.submit(function, *args) for args in zip(*iterables, strict=False)]
        return (future.result(timeout) for future in futures)

    def shutdown(self, wait: bool = True, **_: Any) -> None:
        while wait and any(not task.done for task in self._tasks):
            hub().block(next(task for task in self._tasks if not task.done).waiters)

    def __enter__(self) -> Executor:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def current_thread() -> Any:
    task = hub().current
    return task.thread if task is not None else real_threading.main_thread()


_real_start = real_threading.Thread.start
_real_join = real_threading.Thread.join
_real_alive = real_threading.Thread.is_alive


def _start(thread: Any) -> None:
    if HUB is None or HUB.current is None:
        _real_start(thread)
        return
    task = HUB.check()
    thread._sim_task = HUB.spawn(task.process, thread.run, thread.name, thread)
    HUB.point()


def _join(thread: Any, timeout: float | None = None) -> None:
    task = getattr(thread, "_sim_task", None)
    if task is None:
        if HUB is None or HUB.current is None:
            _real_join(thread, timeout)
        return
    here = hub()
    here.check()
    end = None if timeout is None else here.now + timeout
    while not task.done:
        left = None if end is None else end - here.now
        if left is not None and left <= 0:
            return
        here.block(task.waiters, left)


def _is_alive(thread: Any) -> bool:
    task = getattr(thread, "_sim_task", None)
    return not task.done if task is not None else _real_alive(thread)


# --- the rest ---------------------------------------------------------------------------------------------------------


class Namespace:
    """A module with some names replaced."""

    def __init__(self, real: Any, **names: Any) -> None:
        self.__dict__.update(names)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def monotonic() -> float:
    return hub().now


def wall_time() -> float:
    return hub().wall + hub().now


def sleep(seconds: float) -> None:
    hub().sleep(seconds)


class _Random:
    def __getattr__(self, name: str) -> Any:
        return getattr(hub().library_rng, name)


THREADING = Namespace(
    real_threading,
    Lock=Lock,
    RLock=RLock,
    Condition=Condition,
    Event=Event,
    Semaphore=Semaphore,
    BoundedSemaphore=Semaphore,
    local=Local,
    current_thread=current_thread,
    get_ident=lambda: id(hub().current),
)
TIME = Namespace(
    real_time,
    monotonic=monotonic,
    perf_counter=monotonic,
    time=wall_time,
    sleep=sleep,
    monotonic_ns=lambda: int(monotonic() * 1e9),
    time_ns=lambda: int(wall_time() * 1e9),
    thread_time=lambda: 0.0,
    process_time=lambda: 0.0,
)
QUEUE = Namespace(real_queue, Queue=Queue, SimpleQueue=Queue, LifoQueue=Queue)
RANDOM = _Random()
FUTURES = Namespace(concurrent.futures, Future=Future, ThreadPoolExecutor=Executor)

REPLACED: dict[int, Any] = {
    id(real_threading): THREADING,
    id(real_time): TIME,
    id(real_queue): QUEUE,
    id(real_random): RANDOM,
    id(concurrent.futures): FUTURES,
    id(concurrent.futures.Future): Future,
    id(concurrent.futures.ThreadPoolExecutor): Executor,
    id(real_time.monotonic): monotonic,
    id(real_time.time): wall_time,
    id(real_time.sleep): sleep,
    id(real_time.perf_counter): monotonic,
    id(real_threading.Lock): Lock,
    id(real_threading.Condition): Condition,
    id(real_threading.Event): Event,
    id(real_queue.Queue): Queue,
    id(real_queue.SimpleQueue): Queue,
}
PATCHED_METHODS = {"start": _start, "join": _join, "is_alive": _is_alive}
