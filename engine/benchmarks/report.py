"""What a run of the bench is turned into: tables for people, Markdown and plots for the documentation."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from benchmarks import plots
from benchmarks.bench import OURS, RTTS_MS, ceiling
from benchmarks.images import MIB
from benchmarks.links import Shape

_HEAD: Final = ("tool", "MiB/s", "farshore is", "seconds", "CPU s/GiB source", "target", "RSS MiB source", "target")


def tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """Return a table for each place, and those of the costs."""
    for title, head, rows in _parts(document):
        table = Table(*(head[:1]), title=title, title_justify="left")
        for name in head[1:]:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*row)
        yield table


def markdown(document: Mapping[str, Any]) -> str:
    """Return the same as a page."""
    machine = document["machine"]
    lines = [
        "# Results of a run",
        "",
        (
            f"Written by `make bench` on {document['measured_at'][:10]}; do not edit. "
            f"{machine['processors']} processors ({machine['model']}), {machine['memory_gib']} GiB, "
            f"Linux {machine['kernel']}, Python {machine['python']}. "
            f"Load average before the copies: {document['load_average'][0]} to {document['load_average'][1]}. "
            f"Medians of {document['rounds']} interleaved round(s). [README.md](README.md) says what and how."
        ),
        "",
        _amounts(document),
        "",
    ]
    for name in ("rate-over-rtt", "cpu-per-gib", "cost-per-fragment", "cost-over-disks", "memory-over-disks"):
        lines += [f"![{name.replace('-', ' ')}]({name}.svg)", ""]
    for title, head, rows in _parts(document):
        lines += [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines.append("")
    if document["not_measured"]:
        lines += ["## Not measured", ""]
        lines += [f"- {name}: {reason}" for name, reason in document["not_measured"].items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _amounts(document: Mapping[str, Any]) -> str:
    """Say how much was moved, with what, and when each piece was."""
    sizes, versions, pieces = (document.get(name, {}) for name in ("sizes", "versions", "pieces"))
    said = []
    if sizes:
        said.append(
            f"Size `{document['size']}`: {sizes['full_mib']} MiB of data in each full copy, a disk of "
            f"{sizes['fragments_mib']} MiB for the changes, {sizes['disks_mib']} MiB on one or many disks."
        )
    if versions:
        said.append(f"Beside {', '.join(versions.values())}.")
    if pieces:
        each = [
            f"{name} {one['measured_at'][11:16]} ({one['load_average'][0]} to {one['load_average'][1]})"
            for name, one in pieces.items()
        ]
        said.append(f"Pieces with their time (UTC) and load average: {', '.join(each)}.")
    return " ".join(said)


def _parts(document: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Yield title, head and rows of each table."""
    for place, peers in document["copies"].items():
        ours = peers[OURS]["mib_per_s"]
        rows = [
            [name, f"{one['mib_per_s']:.1f}", f"{ours / one['mib_per_s']:.2f} x", *_costs(one)]
            for name, one in peers.items()
        ]
        for rate in document["iperf3"].get(place, []):
            flows = f"iperf3, {rate['flows']} flows, {rate['congestion_control']}"
            rows.append([flows, f"{rate['mib_per_s']:.1f}", f"{ours / rate['mib_per_s']:.2f} x", *[""] * 5])
        yield f"Full copy, {place}", _HEAD, rows
    head = ("MiB/s", "seconds", *_HEAD[4:])
    rows = [
        [f"{int(extent) // 1024} KiB", f"{one['mib_per_s']:.1f}", *_costs(one)]
        for extent, one in document["fragments"].items()
    ]
    yield "5 % of a disk changed, by the size of the changes, loopback", ("changes of", *head), rows
    rows = [[count, f"{one['mib_per_s']:.1f}", *_costs(one)] for count, one in document["disks"].items()]
    yield "The same amount of data on one or many disks, loopback", ("disks", *head), rows


def _costs(one: Mapping[str, Any]) -> list[str]:
    return [
        f"{one['seconds']:.2f}",
        *(f"{one[f'{end}_cpu_s_per_gib']:.2f}" for end in ("source", "target")),
        *(f"{one[f'{end}_peak_rss_mib']:.0f}" for end in ("source", "target")),
    ]


def draw(document: Mapping[str, Any], folder: Path) -> None:
    """Write the plots into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = document["copies"]
    names = list(next(iter(copies.values())))
    wide = [Shape(rtt, 1e9).name for rtt in RTTS_MS]
    made = {
        "rate-over-rtt": plots.lines(
            "Rate of a full copy over the round-trip time",
            "MiB of data per second, link of 1 Gbit/s",
            [f"{rtt} ms" for rtt in RTTS_MS],
            {name: [copies[place][name]["mib_per_s"] for place in wide] for name in names},
            reference=("payload ceiling", ceiling() / MIB),
        ),
        "cpu-per-gib": plots.bars(
            "Processor time of a full copy",
            "CPU seconds per GiB of data, loopback",
            ("source", "target"),
            {
                name: [one["source_cpu_s_per_gib"], one["target_cpu_s_per_gib"]]
                for name, one in copies["loopback"].items()
            },
        ),
        "cost-per-fragment": _over(
            "Processor time by the size of the changes",
            "CPU seconds per GiB of changes, loopback, 5 % of the disk changed",
            {f"{int(extent) // 1024} KiB": one for extent, one in document["fragments"].items()},
            "cpu_s_per_gib",
        ),
        "cost-over-disks": _over(
            "Processor time by the number of disks",
            "CPU seconds per GiB of data, loopback, the same amount of data on so many disks",
            document["disks"],
            "cpu_s_per_gib",
        ),
        "memory-over-disks": _over(
            "Memory by the number of disks",
            "MiB resident at most, loopback, the same amount of data on so many disks",
            document["disks"],
            "peak_rss_mib",
        ),
    }
    for name, text in made.items():
        (folder / f"{name}.svg").write_text(text, encoding="utf-8")


def _over(title: str, note: str, rows: Mapping[str, Mapping[str, Any]], what: str) -> str:
    series = {end: [one[f"{end}_{what}"] for one in rows.values()] for end in ("source", "target")}
    return plots.lines(title, note, list(rows), series)


def now() -> str:
    """Return the time for the document."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
