"""Platform ``file``: machines are folders of raw images, the pool is a folder of raw images; no compute."""

from __future__ import annotations

from pathlib import Path

from farshore import durable
from farshore.platforms.contract import Platform
from farshore.platforms.directory import DirectoryManifests
from farshore.platforms.file.machine import FileMachine
from farshore.platforms.file.source import FileSource
from farshore.platforms.file.target import FileTarget

__all__ = ["FileMachine", "FileSource", "FileTarget", "open_file"]


def open_file(root: Path) -> Platform:
    """Return the platform whose machines, points and pool lie below ``root``."""
    pool = root / "pool"
    durable.make_dir(pool)
    source, target = FileSource(root), FileTarget(pool)
    return Platform(
        type="file",
        source=source,
        target=target,
        manifests=DirectoryManifests(pool / "manifests"),
        inventory=source.inventory,
        adopt=target.adopt,
        traces=source.traces,
    )
