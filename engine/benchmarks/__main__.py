"""The measurements' own command line: ``python -m benchmarks figures|bench``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks import bench, report
from benchmarks.figures import FIGURES, SIZES, Size
from benchmarks.links import ROOT
from benchmarks.peers.farshore import warm_up
from benchmarks.processes import ProgramFailed
from benchmarks.results import Figure, machine, merge, versions, write
from benchmarks.workshop import Workshop

_FIGURES_FILE: Final = ROOT / "build/figures.json"
_BENCH_FILE: Final = ROOT / "build/bench.json"
_DOCS: Final = ROOT / "docs/benchmarks"


def figures(console: Console, shop: Workshop, size: Size, only: list[str]) -> bool:
    """Measure figures and put them into the file; tell whether all are reached."""
    good = True
    for figure_id in only:
        console.rule(figure_id, align="left")
        try:
            figure = FIGURES[figure_id](shop, size)
        except (ProgramFailed, AssertionError) as error:
            figure = Figure(figure_id, error=str(error))
        figure.details["machine"] = machine()
        row = figure.row(size.name)
        merge(_FIGURES_FILE, {figure_id: row})
        console.print(_checks(figure_id, row))
        good = good and row["ok"]
    console.print(f"written to {_FIGURES_FILE.relative_to(ROOT)}")
    return good


def compare(console: Console, shop: Workshop, size: str, rounds: int | None, only: list[str]) -> None:
    """Run the bench, or pieces of it: tables, build/bench.json, plots. A quick one is not for the documentation.

    Pieces are put beside those that were measured before with the same sizes on the same machine.
    """
    chosen = bench.SIZES[size]
    chosen = dataclasses.replace(chosen, rounds=rounds or chosen.rounds)
    belongs = {"machine": machine(), "versions": versions(), "size": size, "sizes": dataclasses.asdict(chosen)}
    known: dict[str, Any] = json.loads(_BENCH_FILE.read_text(encoding="utf-8")) if _BENCH_FILE.exists() else {}
    document = known if all(known.get(name) == value for name, value in belongs.items()) else {}
    for piece in only:
        console.rule(piece, align="left")
        began = time.monotonic()
        found = bench.measure(shop, chosen, piece)
        facts = {"measured_at": report.now(), "seconds": round(time.monotonic() - began)}
        document = bench.joined(document, piece, found, facts)
        document |= belongs | {"measured_at": report.now(), "rounds": chosen.rounds}
        write(_BENCH_FILE, document)
    console.print(f"written to {_BENCH_FILE.relative_to(ROOT)}")
    missing = [piece for piece in bench.PIECES if piece not in document["pieces"]]
    if missing:
        console.print(f"tables and plots come when these are measured too: {', '.join(missing)}")
        return
    for table in report.tables(document):
        console.print(table)
    folder = _BENCH_FILE.with_name("bench") if size == "quick" else _DOCS
    report.draw(document, folder)
    (folder / "results.md").write_text(report.markdown(document), encoding="utf-8")
    console.print(f"written to {folder.relative_to(ROOT)}/")


def _checks(figure_id: str, row: dict[str, Any]) -> Table | str:
    if "error" in row:
        return f"{figure_id}: {row['error']}"
    table = Table("figure", "what", "value", "reach", "")
    for check in row["checks"]:
        value = "not measured" if check["value"] is None else f"{check['value']:.3f}"
        table.add_row(figure_id, check["name"], value, check["reach"], "ok" if check["ok"] else "short")
    return table


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=("figures", "bench"))
    parser.add_argument("--only", default="", help="ids of figures or pieces, with commas; all if not given")
    parser.add_argument("--size", choices=sorted(bench.SIZES), default="full")
    parser.add_argument("--rounds", type=int, help="how often each is measured; by the size if not given")
    parser.add_argument("--scratch", type=Path, default=ROOT / ".cache/bench", help="folder for images and copies")
    given = parser.parse_args()
    all_of_them = list(FIGURES) if given.what == "figures" else list(bench.PIECES)
    only = [word for word in given.only.split(",") if word] or all_of_them
    unknown = [word for word in only if word not in all_of_them]
    if unknown:
        parser.error(f"nothing is called {', '.join(unknown)}; there are: {', '.join(all_of_them)}")
    if given.what == "figures" and given.size not in SIZES:
        parser.error(f"figures have no size {given.size}; there are: {', '.join(SIZES)}")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    try:
        with Workshop(given.scratch, lambda text: console.print(text, markup=False)) as shop:
            warm_up()
            if given.what == "bench":
                compare(console, shop, given.size, given.rounds, only)
            else:
                size = SIZES[given.size]
                rounds = given.rounds
                chosen = dataclasses.replace(size, rounds=rounds, loopback_rounds=rounds) if rounds else size
                figures(console, shop, chosen, only)
    except ProgramFailed as error:
        console.print(f"failed: {error}", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
