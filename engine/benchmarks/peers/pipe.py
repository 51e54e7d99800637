"""The bare pipe of :mod:`benchmarks.bare` as a peer: the runtime's own ceiling."""

from __future__ import annotations

import json

from benchmarks.links import ENDS, Place
from benchmarks.peers.base import PORT, Job, Outcome, log, python, serve_and_pull
from benchmarks.peers.keys import node_keys


class Pipe:
    """Read, TLS, write, nothing else; with as many connections as the others."""

    name = "python tls pipe"
    incremental = False

    def missing(self) -> str | None:
        """Nothing is missing where this runs."""
        return None

    def copy(self, place: Place, job: Job) -> Outcome:
        """Pull through it."""
        disk, host = job.disks[0], place.address("source")
        words = (host, str(PORT), str(node_keys(job.folder)), str(job.connections))
        outcome = serve_and_pull(
            self.name,
            place,
            job,
            python("benchmarks.bare", "serve", *words, str(disk.source)),
            python("benchmarks.bare", "pull", *words, str(job.target(disk))),
            ends=True,
        )
        source, target = (json.loads(log(job, self.name, end).read_text()) for end in ENDS)
        outcome.own_seconds = target["seconds"]
        outcome.own_cpu_s = (source["cpu_s"], target["cpu_s"])
        with job.target(disk).open("r+b") as image:
            image.truncate(disk.source.stat().st_size)
        return outcome
