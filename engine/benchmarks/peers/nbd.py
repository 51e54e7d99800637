"""nbdcopy and qemu-img, reading from an nbdkit that serves the image, in clear text or over TLS with a shared key."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from benchmarks.links import Place
from benchmarks.peers.base import PORT, Job, Outcome, lacking, serve_and_pull

_USER: Final = "farshore"
#: Requests in flight and bytes of each, per connection of nbdcopy: the best found for long paths.
_REQUESTS: Final = ("--requests=64", "--request-size=1048576")


def _server(place: Place, job: Job, *options: str) -> list[str]:
    source = job.disks[0].source
    return ["nbdkit", "-f", "-r", "-i", place.address("source"), "-p", str(PORT), *options, "file", str(source)]


class Nbdcopy:
    """libnbd's nbdcopy."""

    incremental = False

    def __init__(self, *, tls: bool) -> None:
        self.name = "nbdcopy tls" if tls else "nbdcopy"
        self._tls = tls

    def missing(self) -> str | None:
        """Tell whether both ends are there."""
        return lacking("nbdkit", "nbdcopy")

    def copy(self, place: Place, job: Job) -> Outcome:
        """Pull from nbdkit."""
        uri = f"nbd://{place.address('source')}:{PORT}"
        options: tuple[str, ...] = ()
        if self._tls:
            shared = _shared_key(job.folder / "nbd.psk")
            uri = f"nbds://{_USER}@{place.address('source')}:{PORT}/?tls-psk-file={shared}"
            options = ("--tls=require", f"--tls-psk={shared}")
        pull = ["nbdcopy", "--flush", "--destination-is-zero", f"--connections={job.connections}", *_REQUESTS]
        return serve_and_pull(
            self.name, place, job, _server(place, job, *options), [*pull, uri, str(job.target(job.disks[0]))]
        )


class QemuImg:
    """``qemu-img convert``, which has one connection."""

    name = "qemu-img"
    incremental = False

    def missing(self) -> str | None:
        """Tell whether both ends are there."""
        return lacking("nbdkit", "qemu-img")

    def copy(self, place: Place, job: Job) -> Outcome:
        """Pull from nbdkit."""
        uri, target = f"nbd://{place.address('source')}:{PORT}", str(job.target(job.disks[0]))
        # Write-back instead of the default "unsafe", which flushes nothing.
        pull = ["qemu-img", "convert", "-f", "raw", "-O", "raw", "-m", "16", "-W", "-t", "writeback", uri, target]
        return serve_and_pull(self.name, place, job, _server(place, job), pull)


def _shared_key(path: Path) -> Path:
    if not path.exists():
        path.touch(0o600)
        path.write_text(f"{_USER}:{secrets.token_hex(32)}\n", encoding="ascii")
    return path
