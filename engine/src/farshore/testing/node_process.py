"""One node of the data path as a process: ``python -m farshore.testing.node_process source|target SETTINGS.json``.

The source prints ``port N`` and serves until it is ended. The target runs one ``replicate`` and prints its progress and
its result, or the error, as JSON. ``faults`` is a plan of :mod:`farshore.testing.faults` for the target; ``counts`` a
file in which the source counts the bytes that are read of each disk. ``platform`` is that of a node's settings; else it
is one of files below ``root``.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_public_key

from farshore.errors import FarshoreError
from farshore.model.task import Progress, ReplicateParams
from farshore.platforms.contract import Snapshot, Source
from farshore.platforms.registry import open_platform
from farshore.replication.group import replicate
from farshore.replication.serve import SourceService
from farshore.testing.faults import FailingManifests, FailingTarget, Plan
from farshore.transport.dialing import Dialer
from farshore.transport.links import Links
from farshore.transport.listener import DataListener
from farshore.transport.tls import Peer, load


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class CountingSource:
    """A source that counts, in a file that a killed process leaves behind, what is read of each disk.

    In a full copy whatever is asked for is read once, so this is what was sent. 8 bytes per disk, by the disks' order.
    """

    def __init__(self, source: Source, path: Path) -> None:
        self._source = source
        self._lock = threading.Lock()
        with path.open("r+b") as counts:
            self._counts = mmap.mmap(counts.fileno(), 0)

    def reader(self, snapshot: Snapshot, disk_key: str) -> Any:
        """Return a reader that counts."""
        reader = self._source.reader(snapshot, disk_key)
        place = [disk.disk_key for disk in snapshot.disks].index(disk_key) * 8
        read_into = reader.read_into

        def counting(offset: int, buffer: memoryview) -> None:
            with self._lock:
                self._counts[place : place + 8] = (self._count(place) + len(buffer)).to_bytes(8, "big")
            read_into(offset, buffer)

        def held(offset: int, buffer: memoryview) -> bool:  # noqa: ARG001 - so that all is counted
            return False

        reader.read_into = counting  # type: ignore[method-assign]
        reader.read_held = held  # type: ignore[method-assign]
        return reader

    def _count(self, place: int) -> int:
        return int.from_bytes(self._counts[place : place + 8], "big")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def serve(settings: dict[str, Any]) -> None:
    """Serve points until the parent closes the pipe; tell what was sent when it asks."""
    platform = open_platform(settings.get("platform") or {"type": "file", "root": settings["root"]})
    tls = load(Path(settings["cert"]), Path(settings["key"]), Path(settings["ca"]))
    key = load_pem_public_key(settings["grant_key"].encode())
    source = CountingSource(platform.source, Path(settings["counts"])) if "counts" in settings else platform.source
    service = SourceService(source, tls, key)  # type: ignore[arg-type]
    dialer = Dialer(lambda: tls, service.serve_connection)
    if "dial" in settings:
        dialer.keep(settings["dial"], Peer(**settings["peer"]), 4)
        say("port 0")
    else:
        _host, port = service.start(f"{settings.get('host', '127.0.0.1')}:{settings.get('port', 0)}")
        say(f"port {port}")
    for line in sys.stdin:  # the parent asks, and ends us by closing the pipe
        if line.strip() == "sent":
            say(str(service.sent_bytes))
    dialer.close()
    service.stop()


def pull(settings: dict[str, Any]) -> None:
    """Run one copy."""
    platform = open_platform(settings.get("platform") or {"type": "file", "root": settings["root"]})
    tls = load(Path(settings["cert"]), Path(settings["key"]), Path(settings["ca"]))
    links = Links(tls, give_up_s=settings.get("give_up_s", 30.0))
    listener = DataListener(lambda: tls, adopt=links.adopt)
    if "listen" in settings:
        listener.start(settings["listen"])
    plan = Plan(settings.get("faults", ""))
    limit = settings.get("kill_after_bytes")

    def on_progress(progress: Progress) -> None:
        say(json.dumps({"progress": progress.model_dump()}))
        if limit is not None and progress.detail["moved_bytes"] >= limit:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        result = replicate(
            ReplicateParams.model_validate(settings["params"]),
            target=FailingTarget(platform.target, plan),
            manifests=FailingManifests(platform.manifests, plan),
            links=links,
            journal_dir=Path(settings["journal_dir"]),
            on_progress=on_progress,
            cancel=threading.Event(),
            adopt=platform.adopt,
        )
        say(json.dumps({"result": result.model_dump(mode="json")}))
    except FarshoreError as error:
        say(json.dumps({"error": error.to_dict()}))
    listener.stop()
    links.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(name)s %(message)s")
    role, settings_path = sys.argv[1:]
    {"source": serve, "target": pull}[role](json.loads(Path(settings_path).read_text(encoding="utf-8")))
