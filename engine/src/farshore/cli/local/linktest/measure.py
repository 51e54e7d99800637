"""What a pull took: clocks, bytes and memory, at both ends."""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

from farshore.cli.output import Output, facts
from farshore.model.checkpoint import DiskPoint, DiskStats
from farshore.replication.usage import peak_rss_bytes
from farshore.units import MIB, format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from rich.console import RenderableType

    from farshore.model.task import Progress, ReplicateResult
    from farshore.replication.flow import NodeWindow
    from farshore.transport.links import LinkStats

#: People are told how far it is this often.
_TOLD_EVERY_S: Final = 5.0


class Measure:
    """Runs from its making, or from :meth:`begin`, until :meth:`end`."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self.seconds = 0.0
        self.cpu_s = 0.0
        self._samples: list[tuple[float, int]] = []
        self.begin()

    def begin(self) -> None:
        """Start the clocks anew."""
        self._began = self._told = time.monotonic()
        self._cpu = time.process_time()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clocks for a while."""
        began, cpu = time.monotonic(), time.process_time()
        yield
        self._began += time.monotonic() - began
        self._cpu += time.process_time() - cpu

    def progress(self, progress: Progress) -> None:
        """Take a sample, and tell people now and then."""
        now = time.monotonic()
        self._samples.append((round(now - self._began, 3), int(progress.detail.get("moved_bytes", 0))))
        if now - self._told >= _TOLD_EVERY_S:
            self._told = now
            self._out.say(progress.note)

    def end(self) -> None:
        """Stop the clocks."""
        self.seconds = time.monotonic() - self._began
        self.cpu_s = time.process_time() - self._cpu

    def report(
        self,
        result: ReplicateResult,
        link: LinkStats,
        window: NodeWindow,
        disks: Mapping[str, Path],
        hints: Iterable[str],
    ) -> dict[str, Any]:
        """Return the figures as a JSON document. ``bytes`` is what this call copied, before compression."""
        stats = result.stats
        copied = sum(one.read_back_bytes for one in stats.disks)  # all that this call wrote, and no earlier one
        source = stats.source
        return {
            "bytes": copied,
            "earlier_bytes": stats.moved_bytes - copied,
            "zero_bytes": stats.zero_bytes,
            "changed_bytes": stats.changed_bytes,
            "disk_bytes": stats.disk_bytes,
            "mode": stats.mode,
            "wire_bytes": link.wire_sent + link.wire_received,
            "source_read_bytes": source.read_bytes if source else None,
            "seconds": round(self.seconds, 3),
            "mib_per_s": round(copied / MIB / self.seconds, 2),
            "cpu_s": {"source": source.cpu_s if source else None, "target": round(self.cpu_s, 3)},
            "peak_rss_mib": {
                "source": round(source.peak_rss_bytes / MIB, 1) if source else None,
                "target": round(peak_rss_bytes() / MIB, 1),
            },
            "peak_in_flight_bytes": window.peak_bytes,
            "connections": link.connections,
            "rtt_ms": round(link.rtt_s * 1000, 2) if link.rtt_s is not None else None,
            "reconnects": link.reconnects,
            "retries": stats.retries,
            "resent_bytes": stats.resent_bytes,
            "disks": [
                {
                    "disk": str(path),
                    "bytes": one.read_back_bytes,
                    "seconds": one.seconds,
                    "level_bytes": one.level_bytes,
                    "level_changes": [change.model_dump() for change in one.level_changes],
                    "root": point.tree_root,
                }
                for path, one, point in _disks(result, disks)
            ],
            "level_changes": sum(len(one.level_changes) for one in stats.disks),
            "samples": self._samples,
            "verified": True,
            "hints": list(hints),
        }

    def render(self, report: Mapping[str, Any]) -> RenderableType:
        """Return the figures for people."""
        seconds = [one["seconds"] for one in report["disks"]]
        cpu, rss = report["cpu_s"], report["peak_rss_mib"]
        gib = report["bytes"] / (1 << 30) or 1.0
        rows = [
            ("copied", f"{format_size(report['bytes'])} in {format_duration(report['seconds'])}, {report['mode']}"),
            ("copied before", format_size(report["earlier_bytes"]) if report["earlier_bytes"] else None),
            ("rate", f"{report['mib_per_s']:.1f} MiB/s"),
            ("on the wire", f"{format_size(report['wire_bytes'])}, both directions"),
            ("round trip", f"{report['rtt_ms']} ms over {report['connections']} connections"),
            ("processor", f"source {cpu['source']} s, target {cpu['target']} s ({cpu['target'] / gib:.2f} s per GiB)"),
            ("memory", f"source {rss['source']} MiB, target {rss['target']} MiB at most"),
            ("in flight", f"{format_size(report['peak_in_flight_bytes'])} at most"),
            ("trouble", f"{report['retries']} retries, {report['reconnects']} reconnects"),
        ]
        if len(seconds) > 1:
            rows.append(
                ("disks", f"{len(seconds)}, median {statistics.median(seconds):.1f} s, last {max(seconds):.1f} s")
            )
        rows.extend(("hint", hint) for hint in report["hints"])
        return facts(rows)


def _disks(result: ReplicateResult, paths: Mapping[str, Path]) -> Iterator[tuple[Path, DiskStats, DiskPoint]]:
    """Yield each disk with what it took; nothing where an interrupted call had copied all of it."""
    took = {one.disk_key: one for one in result.stats.disks}
    for point in result.manifest.disks:
        nothing = DiskStats(disk_key=point.disk_key, mode=result.stats.mode, moved_bytes=0, seconds=0.0)
        yield paths[point.disk_key], took.get(point.disk_key, nothing), point
