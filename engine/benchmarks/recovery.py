"""The figures of recoveries at scale: a real control plane and real nodes before a simulated provider.

All that the provider was asked is judged by an oracle of its own: :mod:`farshore.testing.simulated.oracle`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from farshore.testing.simulated.faults import Outcome, run_seeds
from farshore.testing.simulated.house import Fleet, House, until
from farshore.testing.simulated.kills import kill_through
from farshore.testing.simulated.sharing import copy_alone, share

from benchmarks.results import Check, Figure
from benchmarks.workshop import Workshop

_PATIENCE_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is tried. ``quick`` is for trying; the bounds belong to ``full``."""

    counts: tuple[int, ...]
    groups: int
    kill_machines: int
    kill_runs: int
    kills_each: int
    scale_machines: int
    nodes: tuple[int, ...]
    schedules: int
    copy_mib: int


SCALES: Final = {
    "full": Scale((100, 300, 1000), 50, 200, 5, 10, 320, (1, 2, 4), 1000, 256),
    "quick": Scale((20, 60), 10, 20, 1, 5, 64, (1, 2), 20, 32),
}


def many_machines(shop: Workshop, size: str) -> Figure:
    """One plan of up to 1,000 machines in 50 groups: what the control plane takes for each."""
    figure, scale = Figure("rec-1000"), SCALES[size]
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    for count in scale.counts:
        with _house(shop, Fleet(count, scale.groups), {}) as house:
            house.fill()
            house.node("beta-1", limits={"machine": 64})
            until(partial(house.online, "beta-1"), "the node answers")
            before, began = house.control.cpu_s(), time.monotonic()
            run = house.ended(house.failover(), _PATIENCE_S)
            cpu_s, seconds = house.control.cpu_s() - before, time.monotonic() - began
            verdict = house.verdict()
            wrong += [f"{count}: {text}" for text in (*verdict.wrong, *house.wrong(run))]
            if run["state"] != "succeeded":
                wrong.append(f"{count}: the run ended {run['state']}")
        rows.append(
            {
                "machines": count,
                "control_cpu_s": round(cpu_s, 2),
                "cpu_ms_per_machine": round(1000 * cpu_s / count, 2),
                "seconds": round(seconds, 1),
                "calls": verdict.calls,
                "peak_at_once": verdict.peaks,
                "peak_calls_per_s": verdict.peak_calls_per_s,
                "limits": house.limits,
            }
        )
        shop.say(f"{count} machines: {rows[-1]['cpu_ms_per_machine']} ms each, {seconds:.0f} s, {len(wrong)} wrong")
    first = rows[0]["cpu_ms_per_machine"]
    worst = max(row["cpu_ms_per_machine"] for row in rows[1:]) / first
    figure.checks += [
        Check("CPU per machine", worst, "<=", 1.2, f"times that of {scale.counts[0]}"),
        Check("limits, order or machines violated", float(len(wrong)), "<=", 0, "times"),
    ]
    figure.details |= {"runs": rows, "wrong": wrong[:50]}
    return figure


def killed(shop: Workshop, size: str) -> Figure:
    """The control plane killed with SIGKILL over the steps of planned failovers."""
    figure, scale = Figure("rec-kill"), SCALES[size]
    runs = []
    for seed in range(1, scale.kill_runs + 1):
        folder = _folder(shop)
        runs.append(kill_through(folder, scale.kill_machines, 10, scale.kills_each, seed))
        shutil.rmtree(folder)
        shop.say(f"seed {seed}: killed at {runs[-1].points}, {runs[-1].state}, {len(runs[-1].wrong)} wrong")
    kills = sum(len(one.points) for one in runs)
    figure.checks += [
        Check("wrong after all kills", float(sum(len(one.wrong) for one in runs)), "<=", 0, "machines or limits"),
        Check("runs that succeeded", sum(one.state == "succeeded" for one in runs) / len(runs), ">=", 1.0, "of all"),
        Check("kills", float(kills), ">=", float(scale.kill_runs * scale.kills_each), "of the control plane"),
    ]
    figure.details["runs"] = [
        {
            "seed": one.seed,
            "killed_at_steps": one.points,
            "state": one.state,
            "seconds": one.seconds,
            "calls": one.calls,
            "wrong": one.wrong[:20],
        }
        for one in runs
    ]
    return figure


def shared(shop: Workshop, size: str) -> Figure:
    """One, two and four recovery nodes; a copy at a limited rate beside the last, and alone."""
    figure, scale = Figure("rec-scale"), SCALES[size]
    runs = []
    for nodes in scale.nodes:
        runs.append(share(_folder(shop), scale.scale_machines, nodes))
        shop.say(f"{nodes} nodes: {runs[-1].seconds:.1f} s, creates {runs[-1].creates}")
    beside = share(_folder(shop), scale.scale_machines, scale.nodes[-1], scale.copy_mib)
    alone_s = copy_alone(_folder(shop), scale.copy_mib)
    shop.say(f"a copy beside it: {beside.copy_s:.1f} s, alone {alone_s:.1f} s")
    growth = (runs[0].seconds / runs[-1].seconds) / (runs[-1].nodes / runs[0].nodes)
    wrong = [text for one in (*runs, beside) for text in one.wrong]
    figure.checks += [
        Check("recovery grows", growth, ">=", 0.9, "of linear"),
        Check("replication slows", (beside.copy_s or 0.0) / alone_s - 1.0, "<=", 0.05, "of its time alone"),
        Check("limits, order or machines violated", float(len(wrong)), "<=", 0, "times"),
    ]
    figure.details |= {
        "machines": scale.scale_machines,
        "runs": [
            {"nodes": one.nodes, "seconds": round(one.seconds, 1), "creates": one.creates} for one in (*runs, beside)
        ],
        "copy_alone_s": round(alone_s, 2),
        "copy_beside_s": round(beside.copy_s or 0.0, 2),
        "wrong": wrong[:50],
    }
    return figure


def faulty(shop: Workshop, size: str) -> Figure:
    """Random schedules of faults, in a made-up time; the bad ones are named by their seeds."""
    figure, scale = Figure("rec-faults"), SCALES[size]
    folder = _folder(shop)
    chunks = [range(first, min(first + 10, scale.schedules + 1)) for first in range(1, scale.schedules + 1, 10)]
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(partial(run_seeds, folder), chunks):
            outcomes += found
            if len(outcomes) % 100 == 0:
                shop.say(f"{len(outcomes)} schedules, {sum(bool(one.wrong) for one in outcomes)} wrong")
    bad = [one for one in outcomes if one.wrong]
    figure.checks += [
        Check("schedules", float(len(outcomes)), ">=", float(scale.schedules), ""),
        Check("invariants broken", float(len(bad)), "<=", 0, "schedules"),
    ]
    figure.details |= {
        "bad": [{"seed": one.seed, "kind": one.kind, "states": one.states, "wrong": one.wrong} for one in bad[:50]],
        "first_ends": dict(Counter(f"{one.kind} {one.states[0]}" for one in outcomes if one.states)),
        "kills_of_the_control_plane": sum(one.kills for one in outcomes),
        "calls": sum(one.calls for one in outcomes),
        "throttled": sum(one.throttled for one in outcomes),
        "lost_replies": sum(one.lost for one in outcomes),
    }
    return figure


def _house(shop: Workshop, fleet: Fleet, provider: dict[str, Any]) -> House:
    return House(_folder(shop), fleet, provider=provider)


def _folder(shop: Workshop) -> Path:
    folder = shop.run / "house"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
