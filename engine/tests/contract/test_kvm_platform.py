"""The platform ``kvm`` keeps the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doubles.kvm_machines import Machine, wait_for
from farshore.platforms.kvm.connection import Hypervisor
from farshore.platforms.kvm.source import KvmSource
from farshore.platforms.kvm.target import KvmTarget
from farshore.platforms.nbd.launcher import Launcher
from farshore.testing.contracts import DISK_SIZE, SourceStand, SourceSuite, TargetStand, TargetSuite, checks
from farshore.testing.lab import Lab


class Pool(TargetStand):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def target(self) -> KvmTarget:
        return KvmTarget(self._folder / "pool", Launcher(self._folder / "d"))


class Domains(SourceStand):
    """A running domain; what its guest would write is written by its QEMU."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab = lab
        self._folder = folder
        self.machine = Machine(lab.alpha, folder, "contract", size_bytes=DISK_SIZE)
        self.machine_id = self.machine.machine_id
        self.disk_keys = (self.machine.key("vda"), self.machine.key("vdb"))
        self.machine.start()

    def source(self) -> KvmSource:
        scratch = self._folder / "s"
        return KvmSource(Hypervisor(self._lab.alpha.uri), scratch, Launcher(scratch / "d"))

    def write(self, disk_key: str, offset: int, data: bytes) -> None:
        self.machine.put(disk_key.partition("/")[2], offset, data)

    def forget_changes(self) -> None:
        self.machine.kill()
        self.machine.start()

    def destroy_point(self, point_id: str) -> None:
        assert f"farshore-{point_id}" in self.machine.checkpoints()
        self.machine.handle.abortJob()
        wait_for(lambda: self.machine.handle.jobInfo()[0] == 0)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    yield Pool(tmp_path)
    launcher = Launcher(tmp_path / "d")
    for key in list(launcher.keys()):
        launcher.stop(key)


@pytest.mark.parametrize("check", checks(TargetSuite))
def test_kvm_target(check: str, pool: Pool) -> None:
    getattr(TargetSuite(pool), check)()


@pytest.fixture
def domains(lab: Lab, tmp_path: Path) -> Iterator[Domains]:
    stand = Domains(lab, tmp_path)
    yield stand
    stand.source().sweep([])
    stand.machine.remove()


@pytest.mark.lab
@pytest.mark.parametrize("check", checks(SourceSuite))
def test_kvm_source(check: str, domains: Domains) -> None:
    run: Callable[[], None] = getattr(SourceSuite(domains), check)
    run()
