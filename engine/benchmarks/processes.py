"""Processes that are measured: CPU seconds and peak memory of a program with all that it starts.

CPU is what ``wait4`` says of the program and of the children that it has waited for, and what ``/proc`` says of the
others just before they are ended. Memory is the sum over the tree of each process's own peak (``VmHWM``), looked at ten
times a second: an upper bound where there are several processes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_LOOK_S: Final = 0.1
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")
#: A child dies with the benchmark, however that ends.
_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL")


class ProgramFailed(Exception):
    """A program that was measured failed or took too long; the text is the end of what it printed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a program took."""

    cpu_s: float = 0.0
    peak_rss_bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.cpu_s + other.cpu_s, self.peak_rss_bytes + other.peak_rss_bytes)


class Running:
    """One program with a log. Use as a context manager: it is gone afterwards."""

    def __init__(self, argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.argv = list(argv)
        self.log = log
        self._begun = time.monotonic()
        with log.open("wb") as out, log.with_suffix(".err").open("wb") as err:
            self._child = subprocess.Popen(
                [*_WITH_US, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, start_new_session=True
            )
        self.pid = self._child.pid
        self._peaks: dict[int, int] = {}
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._usage: Usage | None = None
        self.seconds = 0.0
        self.status: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is None:
            self.stop(patience_s=0.5)

    def wait(self, timeout_s: float) -> None:
        """Wait for the program's own end.

        Raises:
            ProgramFailed: it failed, or has not ended in time (then it is stopped).
        """
        if not self._reap(timeout_s):
            self.stop(patience_s=0.5)
            raise ProgramFailed(f"{self.argv[0]} did not end in {timeout_s:.0f} s: {self.said()}")
        if self.status != 0:
            raise ProgramFailed(f"{' '.join(self.argv)} ended with {self.status}: {self.said()}")

    def stop(self, *, patience_s: float = 2.0) -> Usage:
        """Let what it started end, then end it; return what it took."""
        if self.status is None:
            deadline = time.monotonic() + patience_s
            while list(_descendants(self.pid)) and time.monotonic() < deadline and not self._reap(0.05):
                pass
        if self.status is None:
            rest = sum(_cpu(pid) for pid in _descendants(self.pid))
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            if not self._reap(5.0):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                self._reap(5.0)
            if self._usage:
                self._usage += Usage(cpu_s=rest)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what has lost its parent
        return self.usage

    def runs(self) -> bool:
        """Tell whether it has not ended yet."""
        return self.status is None and not self._reap(0.0)

    @property
    def usage(self) -> Usage:
        """What it took; known when it has ended."""
        return self._usage or Usage()

    def said(self, lines: int = 6) -> str:
        """Return the end of what it printed."""
        text = "".join(
            path.read_text(encoding="utf-8", errors="replace") for path in (self.log, self.log.with_suffix(".err"))
        )
        return " | ".join(text.strip().splitlines()[-lines:])

    def _reap(self, timeout_s: float) -> bool:
        """Wait for the end; False where there is none yet."""
        deadline = time.monotonic() + timeout_s
        while True:
            pid, status, taken = os.wait4(self.pid, os.WNOHANG)
            if pid:
                break
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(0.005, left))
        self.seconds = time.monotonic() - self._begun
        self.status = self._child.returncode = os.waitstatus_to_exitcode(status)
        self._over.set()
        self._watcher.join()
        self._usage = Usage(taken.ru_utime + taken.ru_stime, sum(self._peaks.values()))
        return True

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            for pid in (self.pid, *_descendants(self.pid)):
                self._peaks[pid] = max(self._peaks.get(pid, 0), _peak_rss(pid))


def listening(process: Running, port: int, *, timeout_s: float = 20.0) -> None:
    """Wait until something listens on TCP ``port`` in the network namespace that the program has gone into.

    Raises:
        ProgramFailed: the program ended, or time is over.
    """
    deadline = time.monotonic() + timeout_s
    while process.runs() and time.monotonic() < deadline:
        if port in _listening(process.pid):
            return
        time.sleep(0.02)
    raise ProgramFailed(f"{process.argv[0]} does not listen on port {port}: {process.said()}")


def _listening(pid: int) -> Iterator[int]:
    """Yield the TCP ports that something listens on in a process's network namespace, if it is not ours."""
    near = _PROC / str(pid)
    with contextlib.suppress(OSError):  # it has ended, or it cannot be looked at any more
        # Until it has gone into its namespace, what can be seen is the machine's own network.
        if (near / "ns/net").readlink() == (_PROC / "self/ns/net").readlink():
            return
        for family in ("tcp", "tcp6"):
            for line in (near / "net" / family).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A":
                    yield int(words[1].rsplit(":", 1)[1], 16)


def ask(argv: Sequence[str], *, timeout_s: float = 60.0) -> str:
    """Run a short program and return what it prints.

    Raises:
        ProgramFailed: it failed.
    """
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise ProgramFailed(f"{' '.join(argv)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in (_PROC / str(pid) / "task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from _descendants(int(child))


def _cpu(pid: int) -> float:
    """Return the CPU seconds of a process and of the children that it has waited for."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(int(fields[place]) for place in (11, 12, 13, 14)) / _TICKS


def _peak_rss(pid: int) -> int:
    try:
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
