"""The figures of recoveries at scale: a real control plane and real nodes before a simulated provider.

All that the provider was asked is judged by an oracle of its own: :mod:`farshore.testing.simulated.oracle`. A figure is
made of pieces; what was broken off goes on with those that are missing, if the code is still the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import farshore
from farshore.testing.simulated.faults import Outcome, run_seeds
from farshore.testing.simulated.house import Fleet, House, until
from farshore.testing.simulated.kills import Killed, kill_through
from farshore.testing.simulated.sharing import Shared, copy_alone, share

from benchmarks.links import ROOT
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
    # The copy ends while four nodes still recover: 24 s at its rate, beside at least 40 s.
    "full": Scale((100, 300, 1000), 50, 200, 5, 10, 384, (1, 2, 4), 1000, 192),
    "quick": Scale((20, 60), 10, 20, 1, 5, 64, (1, 2), 20, 32),
}


class _Pieces:
    """What of a figure was measured already, kept until it is whole. Another version begins anew."""

    def __init__(self, figure_id: str, size: str) -> None:
        self._path = ROOT / f"build/pieces/{figure_id}-{size}-{_version()}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        self.found: dict[str, Any] = {piece["name"]: piece["value"] for piece in map(json.loads, lines)}

    def keep(self, name: str, value: Any) -> None:
        """Keep a piece, once it is whole."""
        self.found[name] = value
        with self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"name": name, "value": value}) + "\n")

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return a piece, measured now if it was not."""
        if name not in self.found:
            self.keep(name, measure())
        return self.found[name]

    def done(self) -> None:
        """Forget the pieces: the figure is whole."""
        self._path.unlink(missing_ok=True)


def _version() -> str:
    """Return a name for the code that is measured: what its files hold."""
    found = hashlib.sha256()
    for path in sorted(Path(farshore.__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:8]


def many_machines(shop: Workshop, size: str) -> Figure:
    """One plan of up to 1,000 machines in 50 groups: what the control plane takes for each."""
    figure, scale, pieces = Figure("rec-1000"), SCALES[size], _Pieces("rec-1000", size)
    rows = [pieces.get(str(count), partial(_run_of, shop, count, scale.groups)) for count in scale.counts]
    pieces.done()
    wrong = [text for row in rows for text in row["wrong"]]
    first = rows[0]["cpu_ms_per_machine"]
    worst = max(row["cpu_ms_per_machine"] for row in rows[1:]) / first
    figure.checks += [
        Check("CPU per machine", worst, "<=", 1.2, f"times that of {scale.counts[0]}"),
        Check("limits, order or machines violated", float(len(wrong)), "<=", 0, "times"),
    ]
    figure.details["runs"] = rows
    return figure


def _run_of(shop: Workshop, count: int, groups: int) -> dict[str, Any]:
    """Fail so many machines over; return what it took, and what was wrong."""
    with House(_folder(shop), Fleet(count, groups)) as house:
        house.fill()
        house.node("beta-1", limits={"machine": 64})
        until(partial(house.online, "beta-1"), "the node answers")
        before, began = house.control.cpu_s(), time.monotonic()
        run = house.ended(house.failover(), _PATIENCE_S)
        cpu_s, seconds = house.control.cpu_s() - before, time.monotonic() - began
        verdict = house.verdict()
        wrong = [f"{count}: {text}" for text in (*verdict.wrong, *house.wrong(run))]
        if run["state"] != "succeeded":
            wrong.append(f"{count}: the run ended {run['state']}")
        row = {
            "machines": count,
            "control_cpu_s": round(cpu_s, 2),
            "cpu_ms_per_machine": round(1000 * cpu_s / count, 2),
            "seconds": round(seconds, 1),
            "calls": verdict.calls,
            "peak_at_once": verdict.peaks,
            "peak_calls_per_s": verdict.peak_calls_per_s,
            "limits": house.limits,
            "wrong": wrong[:50],
        }
    shop.say(f"{count} machines: {row['cpu_ms_per_machine']} ms each, {seconds:.0f} s, {len(wrong)} wrong")
    return row


def killed(shop: Workshop, size: str) -> Figure:
    """The control plane killed with SIGKILL over the steps of planned failovers."""
    figure, scale, pieces = Figure("rec-kill"), SCALES[size], _Pieces("rec-kill", size)

    def kill(seed: int) -> dict[str, Any]:
        one = kill_through(_folder(shop), scale.kill_machines, 10, scale.kills_each, seed)
        shop.say(f"seed {seed}: killed at {one.points}, {one.state}, {one.seconds:.0f} s, {len(one.wrong)} wrong")
        return asdict(one)

    seeds = range(1, scale.kill_runs + 1)
    runs = [Killed(**pieces.get(f"seed {seed}", partial(kill, seed))) for seed in seeds]
    pieces.done()
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
    figure, scale, pieces = Figure("rec-scale"), SCALES[size], _Pieces("rec-scale", size)

    def recover(nodes: int, copy_mib: int = 0) -> Shared:
        name = f"{nodes} nodes, {copy_mib} MiB beside"
        one = Shared(**pieces.get(name, lambda: asdict(share(_folder(shop), scale.scale_machines, nodes, copy_mib))))
        shop.say(f"{name}: {one.seconds:.1f} s, creates {one.creates}, copy {one.copy_s}")
        return one

    runs = [recover(nodes) for nodes in scale.nodes]
    beside = recover(scale.nodes[-1], scale.copy_mib)
    alone_s = float(pieces.get("copy alone", lambda: copy_alone(_folder(shop), scale.copy_mib)))
    pieces.done()
    shop.say(f"a copy beside it: {beside.copy_s:.1f} s, alone {alone_s:.1f} s")
    growth = (runs[0].seconds / runs[-1].seconds) / (runs[-1].nodes / runs[0].nodes)
    wrong = [text for one in (*runs, beside) for text in one.wrong]
    slows = beside.copy_s / alone_s - 1.0 if beside.copy_s else None
    figure.checks += [
        Check("recovery grows", growth, ">=", 0.9, "of linear"),
        Check("replication slows", slows, "<=", 0.05, "of its time alone"),
        # The copy is ordered right after the run: one that lasts longer went on without it.
        Check("the run beside it lasts", beside.seconds / (beside.copy_s or 1.0), ">=", 1.0, "times the copy"),
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
    figure, scale, pieces = Figure("rec-faults"), SCALES[size], _Pieces("rec-faults", size)
    folder = _folder(shop)
    chunks = [range(first, min(first + 10, scale.schedules + 1)) for first in range(1, scale.schedules + 1, 10)]
    missing = [chunk for chunk in chunks if str(chunk[0]) not in pieces.found]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for future in as_completed(pool.submit(run_seeds, folder, chunk) for chunk in missing):
            found = future.result()
            pieces.keep(str(found[0].seed), [asdict(one) for one in found])
            shop.say(f"{len(pieces.found)} of {len(chunks)} pieces, {sum(bool(one.wrong) for one in found)} wrong")
    outcomes = [Outcome(**one) for chunk in chunks for one in pieces.found[str(chunk[0])]]
    pieces.done()
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


def _folder(shop: Workshop) -> Path:
    folder = shop.run / "house"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
