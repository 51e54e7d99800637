"""The data path beside other tools: one run, one machine, the same images, all copies compared.

Rounds are interleaved: each tool runs once before any runs again, so that what else the machine does falls on all. What
is told is the median. A tool that is not installed is reported as not measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.ceiling import payload_rate
from benchmarks.images import Changed, Disk, Full
from benchmarks.links import Loopback, Place, Shape, Wan
from benchmarks.peers.base import Outcome, Peer
from benchmarks.peers.farshore import Farshore
from benchmarks.peers.iperf import Iperf, LinkRate
from benchmarks.peers.nbd import Nbdcopy, QemuImg
from benchmarks.peers.pipe import Pipe
from benchmarks.peers.rsync import RsyncDaemon, RsyncSsh
from benchmarks.workshop import Workshop

MIB: Final = 1 << 20
GBIT: Final = 1e9
RTTS_MS: Final = (20, 80, 200)
EXTENTS: Final = (4096, 16384, 65536, 262144, 1048576)
DISKS: Final = (1, 8, 40, 80)
#: What all others are compared with in the tables.
OURS: Final = "farshore"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is moved in each copy, and how often."""

    full_mib: int
    fragments_mib: int
    disks_mib: int
    rounds: int


#: ``standard`` has pieces of some two minutes each; ``quick`` is for trying.
SIZES: Final = {
    "full": Size(512, 2048, 960, 3),
    "standard": Size(256, 1024, 480, 2),
    "quick": Size(128, 512, 160, 1),
}


@dataclass(slots=True)
class Bench:
    """All that a run measured."""

    copies: dict[str, dict[str, list[Outcome]]] = field(default_factory=dict)
    links: dict[str, list[LinkRate]] = field(default_factory=dict)
    fragments: dict[int, list[Outcome]] = field(default_factory=dict)
    disks: dict[int, list[Outcome]] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    def load_average(self) -> tuple[float, float]:
        """Return the least and the greatest load average before a copy."""
        runs = [one for peers in self.copies.values() for found in peers.values() for one in found]
        runs += [one for table in (self.fragments, self.disks) for found in table.values() for one in found]
        loads = [one.load_average for one in runs]
        return min(loads), max(loads)

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "copies": {
                place: {peer: summary(found) for peer, found in peers.items()} for place, peers in self.copies.items()
            },
            "iperf3": {place: [one.row() for one in found] for place, found in self.links.items()},
            "fragments": {str(extent): summary(found) for extent, found in self.fragments.items()},
            "disks": {str(count): summary(found) for count, found in self.disks.items()},
            "not_measured": self.not_measured,
        }


def peers() -> list[Peer]:
    """Return the tools, ours first."""
    return [
        Farshore(OURS),
        Farshore(f"{OURS} zstd", compress="auto"),
        Pipe(),
        Nbdcopy(tls=False),
        Nbdcopy(tls=True),
        QemuImg(),
        RsyncDaemon(),
        RsyncSsh(),
    ]


#: The links that the tools run over, by the name of the piece that is measured there; None is loopback.
_LINKS: Final = {"loopback": None, **{f"wan-{rtt}": Shape(rtt, GBIT) for rtt in RTTS_MS}}
#: What can be measured by itself; all of them make a bench.
PIECES: Final = (*_LINKS, "fragments", "disks")


def ceiling() -> float:
    """Return the payload ceiling of the links, in bytes per second."""
    return payload_rate(GBIT)


def measure(shop: Workshop, size: Size, piece: str) -> Bench:
    """Run one of :data:`PIECES`."""
    bench = Bench()
    if piece in _LINKS:
        able = list(_able(bench, [*peers(), Iperf()], shop))
        rivals = [peer for peer in able if not isinstance(peer, Iperf)]
        disk = shop.disk(Full(size.full_mib * MIB))
        link = _LINKS[piece]
        with Wan(link, shop.run) if link else Loopback() as place:
            inside = disk if link else shop.in_memory(disk)
            _compare(bench, shop, place, rivals, inside, size.rounds)
            if len(rivals) < len(able):
                bench.links[place.name] = [
                    Iperf().measure(place, shop.run, flows=8, seconds=10, control=name) for name in Iperf.controls()
                ]
        return bench
    with Loopback() as place:
        (_fragments if piece == "fragments" else _disks)(bench, shop, place, size)
    return bench


def _able(bench: Bench, tools: Iterable[Peer | Iperf], shop: Workshop) -> Iterable[Peer | Iperf]:
    for tool in tools:
        reason = tool.missing()
        if reason is None:
            yield tool
        else:
            bench.not_measured[tool.name] = reason
            shop.say(f"{tool.name} is not measured: {reason}")


def _compare(bench: Bench, shop: Workshop, place: Place, rivals: Sequence[Peer], disk: Disk, rounds: int) -> None:
    found = bench.copies.setdefault(place.name, {peer.name: [] for peer in rivals})
    for _ in range(rounds):
        for peer in rivals:
            found[peer.name].append(shop.copy(peer, place, [disk]))


def _fragments(bench: Bench, shop: Workshop, place: Place, size: Size) -> None:
    base = Full(size.fragments_mib * MIB, whole=True)
    disks = {extent: shop.disk(Changed(base, extent, 0.05)) for extent in EXTENTS}
    for _ in range(size.rounds):
        for extent, disk in disks.items():
            bench.fragments.setdefault(extent, []).append(shop.copy(Farshore(), place, [disk]))


def _disks(bench: Bench, shop: Workshop, place: Place, size: Size) -> None:
    for _ in range(size.rounds):
        for count in DISKS:
            each = size.disks_mib // count * MIB
            disks = [shop.disk(Full(each, seed=200 + number)) for number in range(count)]
            bench.disks.setdefault(count, []).append(shop.copy(Farshore(), place, disks))


def joined(known: Mapping[str, Any], piece: str, found: Bench, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document ``known`` with a piece that was measured anew; ``facts`` are told of that piece."""
    document: dict[str, Any] = dict(known)
    for part, value in found.document().items():
        document[part] = document.get(part, {}) | value
    document["pieces"] = document.get("pieces", {}) | {piece: {**facts, "load_average": found.load_average()}}
    loads = [load for one in document["pieces"].values() for load in one["load_average"]]
    document["load_average"] = [min(loads), max(loads)]
    order = [link.name if link else Loopback.name for link in _LINKS.values()]
    for part in ("copies", "iperf3"):
        document[part] = dict(sorted(document[part].items(), key=lambda item: order.index(item[0])))
    return document


def summary(found: Sequence[Outcome]) -> dict[str, Any]:
    """Return the medians of some runs of one tool, with the runs."""

    def middle(values: Iterable[float], digits: int) -> float:
        return round(statistics.median(values), digits)

    return {
        "mib_per_s": middle((one.own_rate / MIB for one in found), 1),
        "seconds": middle((one.own_seconds or one.seconds for one in found), 3),
        "source_cpu_s_per_gib": middle((one.cpu_per_gib(own=True)[0] for one in found), 3),
        "target_cpu_s_per_gib": middle((one.cpu_per_gib(own=True)[1] for one in found), 3),
        "source_peak_rss_mib": middle((one.source.peak_rss_bytes / MIB for one in found), 1),
        "target_peak_rss_mib": middle((one.target.peak_rss_bytes / MIB for one in found), 1),
        "runs": [
            {key: value for key, value in one.row().items() if key != "detail"}
            | ({"wire_bytes": one.detail["wire_bytes"]} if "wire_bytes" in one.detail else {})
            for one in found
        ],
    }
