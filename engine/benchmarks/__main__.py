"""The measurements' own command line: ``python -m benchmarks figures|bench``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks import bench, report
from benchmarks.figures import FIGURES, SIZES, Size
from benchmarks.links import ROOT
from benchmarks.peers.farshore import warm_up
from benchmarks.processes import ProgramFailed
from benchmarks.results import Figure, machine, merge, write
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


def compare(console: Console, shop: Workshop, size: str, rounds: int | None) -> None:
    """Run the bench: tables, build/bench.json, plots. Only a full one goes into the documentation."""
    chosen = bench.SIZES[size]
    chosen = dataclasses.replace(chosen, rounds=rounds or chosen.rounds)
    found = bench.measure(shop, chosen)
    document = found.document() | {
        "machine": machine(),
        "measured_at": report.now(),
        "size": size,
        "rounds": chosen.rounds,
        "load_average": found.load_average(),
    }
    write(_BENCH_FILE, document)
    for table in report.tables(document):
        console.print(table)
    folder = _DOCS if size == "full" else _BENCH_FILE.with_name("bench")
    report.draw(document, folder)
    (folder / "results.md").write_text(report.markdown(document), encoding="utf-8")
    console.print(f"written to {_BENCH_FILE.relative_to(ROOT)} and {folder.relative_to(ROOT)}/")


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
    parser.add_argument("--only", default="", help="ids of figures, with commas; all of them if not given")
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--rounds", type=int, help="how often each is measured; by the size if not given")
    parser.add_argument("--scratch", type=Path, default=ROOT / ".cache/bench", help="folder for images and copies")
    given = parser.parse_args()
    only = [word for word in given.only.split(",") if word] or list(FIGURES)
    unknown = [word for word in only if word not in FIGURES]
    if unknown:
        parser.error(f"no figure is called {', '.join(unknown)}; there are: {', '.join(FIGURES)}")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    try:
        with Workshop(given.scratch, lambda text: console.print(text, markup=False)) as shop:
            warm_up()
            if given.what == "bench":
                compare(console, shop, given.size, given.rounds)
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
