"""Farshore itself: ``farshore linktest`` in two processes, which is the code that nodes run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.links import Place
from benchmarks.peers.base import PORT, Job, Outcome, log, serve_and_pull
from benchmarks.peers.keys import farshore, node_keys
from benchmarks.processes import ask


class Farshore:
    """The production data path: mutual TLS 1.3, digests, flush, manifest, all inside the time."""

    incremental = True

    def __init__(self, name: str = "farshore", *, compress: str = "off", options: tuple[str, ...] = ()) -> None:
        self.name = name
        self._options = ("--compress", compress, *options)

    def missing(self) -> str | None:
        """It is what this is part of."""
        return None

    def copy(self, place: Place, job: Job) -> Outcome:
        """Pull with as many connections as the job says (0: as it sees fit)."""
        keys, address = str(node_keys(job.folder)), f"{place.address('source')}:{PORT}"
        serve = [farshore(), "linktest", "serve", "--keys", keys, "--listen", address]
        pull = [farshore(), "linktest", "pull", "--keys", keys, "--connect", address, *self._options, "--json"]
        if job.connections:
            pull += ["--connections", str(job.connections)]
        for disk in job.disks:
            changed = ["--changed", str(disk.changes)] if disk.changes else []
            serve += ["--disk", str(self.path(disk.source)), *changed]
            pull += ["--disk", str(self.path(job.target(disk)))]
        outcome = serve_and_pull(self.name, place, job, serve, pull)
        report: dict[str, Any] = json.loads(log(job, self.name, "target").read_text())
        outcome.detail = report
        outcome.own_seconds = report["seconds"]
        cpu = report["cpu_s"]
        outcome.own_cpu_s = (cpu["source"], cpu["target"])
        return outcome

    def path(self, image: Path) -> Path:
        """Return the path by which an end knows an image."""
        return image


def warm_up() -> None:
    """Let the interpreter cache its byte code, as an installed program has it."""
    ask([farshore(), "linktest", "--help"])
