"""The engine's own data path with platform kvm at its ends: published is what the source's point was, bit for bit."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.datapath import Sites, sites
from doubles.kvm_machines import Machine
from farshore.checkpoints.publish import withdraw
from farshore.errors import Permanent, Retry
from farshore.journal.state import DraftState
from farshore.model.checkpoint import CycleStats, Manifest
from farshore.model.task import Progress
from farshore.platforms.contract import Platform, Snapshot
from farshore.platforms.kvm import open_kvm
from farshore.platforms.nbd.launcher import Launcher
from farshore.replication.admission import read_grant, subjects
from farshore.replication.group import replicate
from farshore.replication.resume import inherit
from farshore.replication.serve import SourceService
from farshore.testing.faults import FailingTarget, Plan
from farshore.testing.lab import Lab
from farshore.transport.links import Links
from farshore.units import KIB, MIB


@contextlib.contextmanager
def opened(folder: Path, uri: str = "test:///default") -> Iterator[Platform]:
    folder.mkdir()
    try:
        yield open_kvm({"uri": uri, "pool": str(folder / "pool"), "scratch": str(folder / "s")})
    finally:
        launcher = Launcher(folder / "s" / "daemons")
        for key in list(launcher.keys()):
            launcher.stop(key)


def pull(
    both: Sites, links: Links, snapshot: Snapshot, on_progress: Any = lambda _progress: None
) -> tuple[Manifest, CycleStats]:
    result = replicate(
        both.params(snapshot),
        target=both.beta.target,
        manifests=both.beta.manifests,
        links=links,
        journal_dir=both.journals,
        on_progress=on_progress,
    )
    return result.manifest, result.stats


@contextlib.contextmanager
def linked(both: Sites) -> Iterator[Links]:
    links = Links(both.beta_tls, give_up_s=30.0)
    yield links
    links.close()


def test_cycles_retention_and_a_lost_daemon(tmp_path: Path) -> None:
    disks = {"db": {"vda": 24 * MIB, "vdb": 9 * MIB + 512}}
    with opened(tmp_path / "kvm") as platform, sites(tmp_path, disks) as both, linked(both) as links:
        both.beta = platform
        both.start_source()
        both.fill("db", "vda", 1, 60)
        both.fill("db", "vdb", 2, 10)
        published: list[tuple[Manifest, dict[str, bytes]]] = []
        for cycle in range(4):
            snapshot = both.point()
            expected = both.frozen(snapshot)
            manifest, stats = pull(both, links, snapshot)
            assert both.published(manifest) == expected
            assert stats.mode == ("full" if cycle == 0 else "incremental")
            both.release(snapshot, applied=True)
            published.append((manifest, expected))
            both.fill("db", "vda", 10 + cycle, 10, size=4096)
            both.machine("db").write("vdb", 9 * MIB + 505, b"the end")
            both.machine("db").discard("vda", 5 * MIB, 3 * MIB)
            if cycle > 1:
                oldest, _ = published.pop(0)
                withdraw(both.beta.manifests, both.beta.target, "grp-test", oldest.checkpoint_id)
            for kept, content in published:
                assert both.published(kept) == content
        assert len(platform.target.points()) == 2 * len(published)

        # The draft's daemon is killed in the middle of a cycle: the next attempt goes on.
        both.fill("db", "vda", 99, 200, size=128 * KIB)
        snapshot = both.point()
        expected = both.frozen(snapshot)
        killer = Killer(tmp_path / "kvm" / "s" / "daemons")
        with pytest.raises(Retry) as caught:
            pull(both, links, snapshot, killer)
        assert caught.value.code in {"draft-lost", "daemon-killed"}  # the second disk's may only just have begun
        manifest, _ = pull(both, links, snapshot)
        assert both.published(manifest) == expected
        platform.target.close()  # type: ignore[attr-defined]


def broken_off(both: Sites, links: Links, snapshot: Snapshot, faults: str) -> list[DraftState]:
    """Copy until a write fails; return the journals of the drafts."""
    drafts: list[DraftState] = []
    with pytest.raises(Permanent):
        replicate(
            both.params(snapshot),
            target=FailingTarget(both.beta.target, Plan(faults)),
            manifests=both.beta.manifests,
            links=links,
            journal_dir=both.journals,
            on_drafts=drafts.extend,
        )
    return drafts


def test_layers_pass_to_the_next_point(tmp_path: Path) -> None:
    """A full copy and an incremental one lose their points when they are half done, and go on with the next."""
    with (
        opened(tmp_path / "kvm") as platform,
        sites(tmp_path, {"db": {"vda": 24 * MIB}}) as both,
        linked(both) as links,
    ):
        both.beta = platform
        both.start_source()
        for cycle in range(2):
            both.fill("db", "vda", cycle, 200, size=128 * KIB)
            broken_off(both, links, both.point(), "write#9+:io")
            [draft] = [point for point in platform.target.points() if point.startswith("draft:")]
            both.release(both.point(), applied=False)
            both.fill("db", "vda", 10 + cycle, 8, size=64 * KIB)
            both.machine("db").discard("vda", 2 * MIB, 3 * MIB)
            snapshot = both.point()
            expected = both.frozen(snapshot)
            manifest, stats = pull(both, links, snapshot)
            assert both.published(manifest) == expected
            assert stats.mode == ("full" if cycle == 0 else "incremental")
            assert draft not in platform.target.points()
            both.release(snapshot, applied=True)
        assert len(platform.target.points()) == 2
        platform.target.close()  # type: ignore[attr-defined]


def test_another_node_takes_a_layer_over_once_nobody_has_it_open(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with (
        opened(tmp_path / "kvm") as platform,
        sites(tmp_path, {"db": {"vda": 24 * MIB}}) as both,
        linked(both) as links,
    ):
        both.beta = platform
        both.start_source()
        both.fill("db", "vda", 1, 400, size=128 * KIB)
        snapshot = both.point()
        [state] = broken_off(both, links, snapshot, "write#12+:io")
        durable = state.cover()
        assert durable
        params = both.params(snapshot, term=2)
        disk = params.disks[0].model_copy(update={"draft_key": state.draft_key, "durable": tuple(durable)})
        pool = str(tmp_path / "kvm" / "pool")
        second = open_kvm({"uri": "test:///default", "pool": pool, "scratch": str(tmp_path / "other" / "s")})
        subject = next(iter(subjects(params, read_grant(params.grant, None))))

        writer = platform.target.open(disk.disk_key, disk.size_bytes, None, state.draft_key)
        left = inherit(second.target, disk, subject, "own")
        assert (left.draft_key, left.lost_bytes > 0) == ("own", True), left
        writer.close()
        result = replicate(
            params.model_copy(update={"disks": (disk,)}),
            target=second.target,
            manifests=second.manifests,
            links=links,
            journal_dir=tmp_path / "other" / "journal",
        )
        assert both.published(result.manifest) == both.frozen(snapshot)
        assert result.stats.resent_bytes == 0
        second.target.close()  # type: ignore[attr-defined]
        platform.target.close()  # type: ignore[attr-defined]


class Killer:
    """Kills a draft's daemon as soon as it runs."""

    def __init__(self, folder: Path) -> None:
        self.launcher = Launcher(folder)

    def __call__(self, _progress: Progress) -> None:
        for key in list(self.launcher.keys()):
            daemon = self.launcher.find(key)
            pid = daemon.pid() if daemon and key.startswith("draft:") else None
            if pid:
                os.kill(pid, signal.SIGKILL)


@pytest.mark.lab
def test_domain_to_layers(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    lab = Lab(tmp_path_factory.mktemp("lab"), Path(".cache/lab"))
    lab.up(sites_only=True)
    with contextlib.ExitStack() as stack:
        stack.callback(lab.down)
        both = stack.enter_context(sites(tmp_path, {}))
        both.alpha = stack.enter_context(opened(tmp_path / "a", lab.alpha.uri))
        both.beta = stack.enter_context(opened(tmp_path / "b", lab.beta.uri))
        links = stack.enter_context(linked(both))
        machine = Machine(lab.alpha, tmp_path, "db")
        stack.callback(machine.remove)
        both.machine_ids = (machine.machine_id,)
        service = SourceService(both.alpha.source, both.alpha_tls, both.grant_key)
        _, both.port = service.start("127.0.0.1:0")
        stack.callback(service.stop)

        def cycle(mode: str) -> int:
            snapshot = both.point()
            expected = {machine.key(target): machine.image(target).read_bytes() for target in machine.disks}
            manifest, stats = pull(both, links, snapshot)
            assert both.published(manifest) == expected
            assert stats.mode == mode
            both.release(snapshot, applied=True)
            return stats.moved_bytes

        machine.write("vda", MIB, 300 * KIB, 1)
        machine.start()
        cycle("full")
        machine.write("vdb", 3 * MIB, 64 * KIB, 2)
        assert 0 < cycle("incremental") <= 64 * KIB
        machine.write("vda", 5 * MIB, 64 * KIB, 3)
        machine.kill()  # bitmaps are lost: only what differs crosses the link
        assert 0 < cycle("verify") <= 64 * KIB
        machine.zero("vda", MIB, 128 * KIB)
        assert cycle("incremental") == 0
        both.beta.target.close()  # type: ignore[attr-defined]
