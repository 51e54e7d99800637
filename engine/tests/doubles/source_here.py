"""A source service in this process, and copies from it: for tests that break one thing in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from doubles.datapath import DEADLINE_S, Sites
from farshore.model.task import ReplicateParams, ReplicateResult
from farshore.replication import group
from farshore.replication.serve import SourceService
from farshore.transport.links import Links
from farshore.units import MIB

T = TypeVar("T")


class SourceHere:
    """Two sites of files with one machine ``db`` whose disk ``vda`` has 1 MiB by default; nothing but threads."""

    def __init__(self, folder: Path, disks: Mapping[str, Mapping[str, int]] | None = None) -> None:
        self.sites = Sites(folder, disks or {"db": {"vda": MIB}})
        self.sites.fill("db", "vda", 1, 5)
        self.service = SourceService(self.sites.alpha.source, self.sites.alpha_tls, self.sites.grant_key)
        _, self.sites.port = self.service.start("127.0.0.1:0")
        self.links = Links(self.sites.beta_tls, give_up_s=0.5)

    def replicate(self, params: ReplicateParams, journal_dir: Path | None = None) -> ReplicateResult:
        """Copy and publish; give up when it takes for ever."""
        cancel = threading.Event()
        timer = threading.Timer(DEADLINE_S, cancel.set)
        timer.start()
        try:
            return group.replicate(
                params,
                target=self.sites.beta.target,
                manifests=self.sites.beta.manifests,
                links=self.links,
                journal_dir=journal_dir or self.sites.journals,
                cancel=cancel,
            )
        finally:
            timer.cancel()

    def applied(self) -> ReplicateResult:
        """Take a point, copy it, check the copy and release the point as the next one's base."""
        snapshot = self.sites.point()
        result = self.replicate(self.sites.params(snapshot))
        assert self.sites.published(result.manifest) == self.sites.frozen(snapshot)
        self.sites.release(snapshot, applied=True)
        return result

    def close(self) -> None:
        self.links.close()
        self.service.stop()


def raising(error: BaseException, times: int = 1, then: Callable[..., T] | None = None) -> Callable[..., T]:
    """Return a function that raises ``error`` so many times and calls ``then`` from then on."""
    left = [times]

    def call(*args: object, **kwargs: object) -> T:
        if left[0]:
            left[0] -= 1
            raise error
        assert then is not None
        return then(*args, **kwargs)

    return call
