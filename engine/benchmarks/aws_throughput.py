"""The figure ``aws-throughput``: our writer and reader beside bare boto3 with as many threads, in one process and two.

Before a peer on the same machine the processors are what there is least of: how much two processes bring shows beside
what they bring to bare boto3. Before a peer that takes its time, as the service does, nothing holds a second process
back, and it has to bring as much as the first.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.aws_peer import endless, environment
from benchmarks.processes import ProgramFailed
from benchmarks.results import Check, Figure
from benchmarks.workshop import Workshop

_MIB = {"full": 256, "quick": 64}
_ROUNDS = {"full": 5, "quick": 2}
_THREADS = 16
_BOUND = 0.9
#: A call for a block as the documentation reckons it, and how much two processes have to bring then.
_CALL_S = 0.1
_TWICE = 1.8
_WAYS = ("write", "bare_write", "read", "bare_read")
#: MiB/s of each way, in one process and in two, by turns.
_Rates = dict[tuple[str, int], list[float]]


class Worker:
    """A process that goes through a disk of its own whenever it is told to."""

    def __init__(self, url: str, mib: int, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.aws_measured", "passes", url, str(mib), str(_THREADS), str(folder)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, env=environment(), text=True, stdin=pipe, stdout=pipe)
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("it was started with its pipes")
        self._orders, self._answers = self._process.stdin, self._process.stdout

    def tell(self, way: str) -> None:
        """Have it begin."""
        self._orders.write(f"{way}\n")
        self._orders.flush()

    def wait(self) -> float:
        """Wait until it is through; return the seconds that it took."""
        answer = self._answers.readline()
        if not answer:
            raise ProgramFailed("a process of the measurement has ended")
        return float(answer)

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)


@contextmanager
def workers(folder: Path, mib: int, delay_s: float) -> Iterator[list[Worker]]:
    """Yield two processes, each before a peer of its own: what they share is the machine."""
    with ExitStack() as stack:
        found = []
        for number in range(2):
            url = stack.enter_context(endless(64, delay_s))
            found.append(Worker(url, mib, folder / f"{delay_s:g}-{number}"))
            stack.callback(found[-1].close)
        yield found


def rates(both: list[Worker], ways: tuple[str, ...], mib: int, rounds: int) -> _Rates:
    """Measure by turns; the first one, which opens the connections, does not count."""
    found: _Rates = {(way, number): [] for way in ways for number in (1, 2)}
    for turn in range(rounds + 1):
        for way, number in found:
            for worker in both[:number]:
                worker.tell(way)
            seconds = max([worker.wait() for worker in both[:number]])
            if turn:
                found[way, number].append(number * mib / seconds)
    return found


def figure(shop: Workshop, size: str) -> Figure:
    """Measure it: medians of the turns' ratios, for writing and for reading."""
    result, mib, rounds = Figure("aws-throughput"), _MIB[size], _ROUNDS[size]
    with workers(shop.run, mib, 0.0) as both:
        near = rates(both, _WAYS, mib, rounds)
    with workers(shop.run, mib, _CALL_S) as both:
        far = rates(both, ("write", "read"), mib, (rounds + 1) // 2)
    shop.say(f"near {near}, far {far}")
    for way in ("write", "read"):
        for number, where in ((1, "one process"), (2, "two processes")):
            ratio = _ratio(near[way, number], near[f"bare_{way}", number])
            result.checks.append(Check(f"{way}, {where}", ratio, ">=", _BOUND, "of bare boto3"))
        grown = _ratio(near[way, 2], near[way, 1]) / _ratio(near[f"bare_{way}", 2], near[f"bare_{way}", 1])
        result.checks.append(Check(f"{way}, growth by a second process", grown, ">=", _BOUND, "of bare boto3's"))
        twice = _ratio(far[way, 2], far[way, 1])
        result.checks.append(Check(f"{way}, two processes far away", twice, ">=", _TWICE, "of one"))
    result.details |= {
        "threads": _THREADS,
        "mib_per_s": {f"{way}, {number}": _rounded(found) for (way, number), found in near.items()},
        "mib_per_s far away": {f"{way}, {number}": _rounded(found) for (way, number), found in far.items()},
    }
    return result


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def _rounded(found: list[float]) -> list[float]:
    return [round(rate, 1) for rate in found]
