"""Play many schedules: ``python -m sim.run --count 2000 --seed 0``; see `make sim`."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import traceback
from collections import Counter
from multiprocessing import get_context

from sim import world
from sim.runtime import Violation


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def some(first: int, count: int, verbose: bool = False) -> tuple[Counter[str], int, list[tuple[int, str]], str]:
    """Play ``count`` schedules from seed ``first``; return counts, steps, what failed, and a fingerprint."""
    counts: Counter[str] = Counter()
    steps = 0
    failed = []
    prints = []
    with world.stage():
        for seed in range(first, first + count):
            one = None
            try:
                one = world.play(seed)
                prints.append(one.hub.fingerprint)
                steps += one.hub.steps
                counts.update(one.counts)
                counts.update({f"oracle {name}": value for name, value in one.oracle.counts.items()})
            except Violation as violation:
                failed.append((seed, str(violation)))
                if verbose:
                    traceback.print_exc()
            if seed % 50 == 0:
                gc.collect()
    return counts, steps, failed, str(hash(tuple(prints)))


def _part(job: tuple[int, int]) -> tuple[Counter[str], int, list[tuple[int, str]], str]:
    return some(*job)


def main() -> int:
    """Play, report, and say how to play a schedule that failed again."""
    parser = argparse.ArgumentParser(prog="sim")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    began = time.monotonic()
    step = 50
    jobs = [
        (first, min(step, arguments.seed + arguments.count - first))
        for first in range(arguments.seed, arguments.seed + arguments.count, step)
    ]
    parts = []
    if arguments.jobs == 1 or len(jobs) == 1:
        parts = [some(*job, arguments.verbose) for job in jobs]
    else:
        with get_context("fork").Pool(arguments.jobs) as workers:
            for number, part in enumerate(workers.imap(_part, jobs), 1):
                parts.append(part)
                for seed, text in part[2]:
                    say(f"seed {seed}, after {time.monotonic() - began:.0f} s: {text.splitlines()[0]}")
                if number % 100 == 0:
                    say(f"{number * step} schedules, {time.monotonic() - began:.0f} s")
    counts: Counter[str] = Counter()
    failed: list[tuple[int, str]] = []
    steps = 0
    for part_counts, part_steps, part_failed, _ in parts:
        counts.update(part_counts)
        steps += part_steps
        failed += part_failed
    seconds = time.monotonic() - began
    say(f"{arguments.count} schedules, {steps} steps, {seconds:.1f} s, {arguments.count / seconds:.1f}/s")
    for name, value in sorted(counts.items()):
        say(f"  {value:8} {name}")
    for seed, text in failed[:20]:
        say(f"seed {seed}: {text.splitlines()[0] if not arguments.verbose else text}")
        say(f"  again: make sim SEED={seed} N=1 VERBOSE=1")
    say(f"{len(failed)} of {arguments.count} schedules broke an invariant")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
