"""The node as a background process without a service manager: start, status, stop.

A lock on ``state_dir/node.lock``, held by the running node, says whether one runs; the pid file only says which. The
process id is the one seen in the pid namespace of whoever starts and stops the node.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from farshore import durable
from farshore.errors import Conflict, Permanent, Unavailable

_POLL_S: Final = 0.05
#: Python runs a signal's handler between two instructions of the main thread. Where that is just about to sleep in the
#: kernel, or another thread gets the signal, it runs only after the sleep; so no sleep of it is longer.
_NOTICE_S: Final = 1.0


class Ending:
    """What a process's main thread waits for: that somebody asks it to end."""

    def __init__(self) -> None:
        # Its put may interrupt its get, so that a handler in the main thread cannot block; an event's lock can.
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ask(self) -> None:
        """Ask, from any thread or a signal's handler."""
        self._asked.put(None)

    def wait(self) -> None:
        """Wait until somebody has asked."""
        while True:
            with contextlib.suppress(queue.Empty):
                self._asked.get(timeout=_NOTICE_S)
                return


@contextlib.contextmanager
def only_one(lock_path: Path, pid_path: Path) -> Iterator[None]:
    """Hold the lock that says that a node runs, and leave our process id.

    Raises:
        Conflict: another process holds it.
    """
    durable.make_dir(lock_path.parent)
    fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"a node runs already with the state in {str(lock_path.parent)!r}",
                code="node-running",
                hint="Stop it with `farshore node stop`, or give this node a state_dir of its own.",
            ) from None
        durable.write(pid_path, f"{os.getpid()}\n".encode())
        yield
        pid_path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def is_running(lock_path: Path) -> bool:
    """Say whether a process holds the lock."""
    try:
        fd = os.open(lock_path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def running_pid(lock_path: Path, pid_path: Path) -> int | None:
    """Return the process id of the running node, None if none runs."""
    if not is_running(lock_path):
        return None
    try:
        return int(pid_path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None


def start(argv: Sequence[str], lock_path: Path, pid_path: Path, log_path: Path, timeout_s: float = 30.0) -> int:
    """Start ``argv`` detached, with its output appended to ``log_path``; return its process id once it holds the lock.

    Raises:
        Permanent: it ended at once; the end of its log is in the message.
        Unavailable: it did not get ready in time.
    """
    durable.make_dir(lock_path.parent)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    from_byte = log_path.stat().st_size if log_path.exists() else 0
    if not is_running(lock_path):
        # Of a node that was killed; it would name the wrong process until the new one has written its own.
        pid_path.unlink(missing_ok=True)
    alive = _detach(argv, log_path)
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            pid = running_pid(lock_path, pid_path)
            if pid is not None:
                return pid
            ended, _, _ = select.select([alive], [], [], _POLL_S)
            if ended:
                raise Permanent(
                    f"the node ended at once: {_tail(log_path, from_byte)}",
                    code="node-start-failed",
                    hint=f"The whole log is in {log_path}.",
                )
    finally:
        os.close(alive)
    raise Unavailable(f"the node was not ready after {timeout_s:.0f} s", hint=f"Look into {log_path}.")


def _detach(argv: Sequence[str], log_path: Path) -> int:
    """Run ``argv`` in a session of its own that no terminal and no parent ends.

    Forked twice: the second child is nobody's session leader, so it never gets a terminal, and becomes the child of the
    namespace's first process, which reaps it. Returns a descriptor that ends when the process does.
    """
    alive, held = os.pipe()
    child = os.fork()
    if child:
        os.close(held)
        os.waitpid(child, 0)
        return alive
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        null = os.open(os.devnull, os.O_RDONLY)
        log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        # 3 is the pipe's end: nobody reads or writes it, its closing by the kernel tells that the process has ended.
        os.dup2(held, 3)
        for source, descriptor in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, descriptor)
        os.closerange(4, 4096)
        os.chdir("/")
        os.umask(0o077)
        os.execvp(argv[0], list(argv))  # noqa: S606 - an argv list, no shell
    finally:
        os._exit(127)


def _tail(path: Path, from_byte: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(from_byte)
            lines = file.read().decode(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return "it left no log"
    return lines[-1] if lines else "it left nothing in its log"


def stop(lock_path: Path, pid_path: Path, timeout_s: float = 60.0) -> bool:
    """Ask the running node to end and wait until it has; False if none ran.

    Raises:
        Unavailable: it is still there after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    pid = running_pid(lock_path, pid_path)
    if pid is None:
        if is_running(lock_path):
            raise Permanent(
                f"a node holds {str(lock_path)!r}, but {str(pid_path)!r} does not say which process it is",
                code="pid-unknown",
                hint="Was it started in another pid namespace, or was the file removed?",
            )
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    while is_running(lock_path):
        if time.monotonic() > deadline:
            raise Unavailable(f"the node (process {pid}) still runs {timeout_s:.0f} s after it was asked to end")
        time.sleep(_POLL_S)
    return True


def command(config_path: Path) -> list[str]:
    """Return the command line of a node in the foreground."""
    return [sys.executable, "-m", "farshore.node", "--config", str(config_path)]
