"""The platform ``file`` keeps the contract."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from farshore.platforms.directory import DirectoryManifests
from farshore.platforms.file import FileMachine, FileSource, FileTarget
from farshore.testing.contracts import (
    DISK_SIZE,
    ManifestStoreSuite,
    SeedStand,
    SeedSuite,
    SourceStand,
    SourceSuite,
    TargetStand,
    TargetSuite,
    checks,
)


class Pool(TargetStand):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def target(self) -> FileTarget:
        return FileTarget(self._folder / "pool")


class Images(SeedStand, Pool):
    def disk(self, content: bytes) -> str:
        path = self._folder / "pool" / "old.raw"
        path.write_bytes(content.ljust(DISK_SIZE, b"\0"))
        return path.name

    def content(self, image: str, length: int) -> bytes:
        return (self._folder / "pool" / image).read_bytes()[:length]

    def adopt(self, disk_key: str, size_bytes: int, image: str, key: str) -> str:
        return self.target().adopt(disk_key, size_bytes, image, key)


class Machines(SourceStand):
    machine_id = "db-1"
    disk_keys = ("db-1/vda", "db-1/vdb")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._machine = FileMachine.create(folder, "db-1", {"vda": DISK_SIZE, "vdb": DISK_SIZE})

    def source(self) -> FileSource:
        return FileSource(self._folder)

    def write(self, disk_key: str, offset: int, data: bytes) -> None:
        self._machine.write(disk_key.partition("/")[2], offset, data)

    def forget_changes(self) -> None:
        shutil.rmtree(self._machine.changes)

    def destroy_point(self, point_id: str) -> None:
        shutil.rmtree(self._folder / "points" / point_id)


@pytest.mark.parametrize("check", checks(ManifestStoreSuite))
def test_directory_manifests(check: str, tmp_path: Path) -> None:
    getattr(ManifestStoreSuite(lambda: DirectoryManifests(tmp_path / "manifests")), check)()


@pytest.mark.parametrize("check", checks(TargetSuite))
def test_file_target(check: str, tmp_path: Path) -> None:
    getattr(TargetSuite(Pool(tmp_path)), check)()


@pytest.mark.parametrize("check", checks(SeedSuite))
def test_file_seeds(check: str, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    getattr(SeedSuite(Images(tmp_path)), check)()


@pytest.mark.parametrize("check", checks(SourceSuite))
def test_file_source(check: str, tmp_path: Path) -> None:
    getattr(SourceSuite(Machines(tmp_path)), check)()
