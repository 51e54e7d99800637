"""The source's end."""

from __future__ import annotations

import json
import signal
from operator import index
from pathlib import Path
from typing import Final

from farshore.cli.local.linktest.keys import SOURCE, read
from farshore.cli.output import Output
from farshore.errors import Invalid
from farshore.node.process import Ending
from farshore.platforms.file.attached import AttachedDisk, AttachedSource
from farshore.replication.serve import SourceService
from farshore.replication.usage import settle
from farshore.transport.dialing import Dialer
from farshore.units import format_size

#: The source's only point.
POINT: Final = "linktest"


def run(out: Output, keys_folder: Path, disks: list[Path], maps: list[Path], address: str, listens: bool) -> None:
    """Serve ``disks`` until SIGTERM or Ctrl-C."""
    keys = read(keys_folder, SOURCE)
    attached = [AttachedDisk(path, changed) for path, changed in zip(disks, _changes(maps, len(disks)), strict=True)]
    service = SourceService(AttachedSource(attached, POINT), keys.tls, keys.grant_key)
    settle()
    end = Ending()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: end.ask())
    dialer = Dialer(lambda: keys.tls, service.serve_connection)
    try:
        if listens:
            host, port = service.start(address)
            where = f"listening on {host}:{port}"
        else:
            dialer.keep(address, keys.peer)
            where = f"connecting to {address}"
        size = format_size(sum(disk.size() for disk in attached))
        out.say(f"Serving {len(attached)} disk(s) of {size}, {where}; end with Ctrl-C.")
        end.wait()
    finally:
        dialer.close()
        service.stop()


def _changes(maps: list[Path], disks: int) -> list[tuple[tuple[int, int], ...] | None]:
    """Return the changed ranges of each disk."""
    if not maps:
        return [None] * disks
    if len(maps) not in {1, disks}:
        raise Invalid(
            f"there are {len(maps)} change maps for {disks} disks",
            code="linktest-map",
            field="changed",
            hint="Give one map for all disks, or one for each in the order of the disks.",
        )
    read_maps: list[tuple[tuple[int, int], ...] | None] = [_read_map(path) for path in maps]
    return read_maps if len(maps) == disks else read_maps * disks


def _read_map(path: Path) -> tuple[tuple[int, int], ...]:
    try:
        rows = [(index(row[0]), index(row[1])) for row in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise Invalid(
            f"{path} is no change map: {error}",
            code="linktest-map",
            field="changed",
            hint="Write a JSON list of [offset, length], both in bytes.",
        ) from error
    if any(number < 0 for row in rows for number in row):
        raise Invalid(f"{path} names a place or a length below 0", code="linktest-map", field="changed")
    joined: list[tuple[int, int]] = []
    for offset, length in sorted(rows):
        if joined and offset <= joined[-1][0] + joined[-1][1]:
            start = joined[-1][0]
            joined[-1] = (start, max(joined[-1][1], offset + length - start))
        elif length:
            joined.append((offset, length))
    return tuple(joined)
