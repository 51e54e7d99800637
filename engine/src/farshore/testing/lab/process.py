"""Finding and ending the laboratory's own processes, by their exact arguments.

No pid file is trusted: after a SIGKILL of anything the processes themselves say what is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from farshore.errors import Permanent


@dataclass(frozen=True, slots=True)
class Process:
    """A process as the machine numbers it; ``inner_pid`` is its number in its own pid namespace."""

    pid: int
    inner_pid: int
    started: int
    argv: tuple[str, ...]

    def alive(self) -> bool:
        """Tell whether this very process (not a later one with its number) still runs."""
        return _started(self.pid) == self.started


def _started(pid: int) -> int | None:
    """Return the start time in ticks since boot (field 22 of proc(5) stat), None for no process or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def _read(pid: int) -> Process | None:
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    started = _started(pid)
    if not argv or started is None:
        return None
    inner = next((line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:")), str(pid))
    return Process(pid, int(inner), started, tuple(os.fsdecode(word) for word in argv))


def find(words: Sequence[str]) -> Iterator[Process]:
    """Yield every process whose argument list contains ``words``, next to each other and in this order."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        process = _read(int(entry.name))
        if process is not None and _contains(process.argv, tuple(words)):
            yield process


def _contains(argv: tuple[str, ...], words: tuple[str, ...]) -> bool:
    return any(argv[i : i + len(words)] == words for i in range(len(argv) - len(words) + 1))


def end(processes: Sequence[Process], *, timeout_s: float = 15, gently: bool = False) -> None:
    """Kill ``processes`` and wait until each is gone; :class:`Permanent` (``process-stays``) if one does not go."""
    deadline = time.monotonic() + timeout_s
    for process in processes:
        if process.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM if gently else signal.SIGKILL)
    for process in processes:
        while process.alive():
            if time.monotonic() > deadline:
                raise Permanent(f"process {process.pid} does not end", code="process-stays", argv=list(process.argv))
            time.sleep(0.01)
