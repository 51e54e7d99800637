"""Storage daemons outlive us and are found again."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from farshore.errors import Conflict, Invalid, Permanent, Retry
from farshore.platforms.nbd.launcher import Export, Launcher
from farshore.units import MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(MIB)], check=True)
    return path


def node(image: Path) -> dict[str, object]:
    return {"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": str(image)}}


EXPORT = Export("disk", "d", writable=True)


def test_a_later_life_finds_the_daemon_and_ends_it(tmp_path: Path, image: Path) -> None:
    daemon = Launcher(tmp_path / "d").start("a/b", [node(image)], [EXPORT])
    later = Launcher(tmp_path / "d")
    assert list(later.keys()) == ["a/b"]
    found = later.find("a/b")
    assert found
    assert found.pid() == daemon.pid()
    assert found.connect("d").size_bytes == MIB
    assert found.monitor().execute("query-block-exports")[0]["id"] == "export-d"
    later.stop("a/b")
    later.stop("a/b")
    assert list(later.keys()) == []
    assert daemon.pid() is None


def test_a_second_start_replaces_the_first(tmp_path: Path, image: Path) -> None:
    launcher = Launcher(tmp_path / "d")
    first = launcher.start("k", [node(image)], [EXPORT]).pid()
    second = launcher.start("k", [node(image)], [EXPORT]).pid()
    assert first != second
    launcher.stop("k")


def test_a_killed_daemon_leaves_a_key_and_nothing_that_lives(tmp_path: Path, image: Path) -> None:
    launcher = Launcher(tmp_path / "d")
    pid = launcher.start("k", [node(image)], [EXPORT]).pid()
    assert pid
    os.kill(pid, signal.SIGKILL)
    launcher.stop("k")
    assert launcher.find("k") is None


def test_says_why_a_daemon_did_not_start(tmp_path: Path, image: Path) -> None:
    launcher = Launcher(tmp_path / "d")
    launcher.start("holder", [node(image)], [EXPORT])
    with pytest.raises(Conflict) as caught:
        launcher.start("second", [node(image)], [EXPORT])
    assert caught.value.code == "image-in-use"
    with pytest.raises(Permanent) as missing:
        launcher.start("third", [node(tmp_path / "none.qcow2")], [EXPORT])
    assert missing.value.code == "image-missing"
    assert list(launcher.keys()) == ["holder"]
    launcher.stop("holder")


def test_a_daemon_that_is_killed_while_it_starts_may_be_tried_again(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "qemu-storage-daemon"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nkill -KILL $$\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(Retry, match="SIGKILL") as caught:
        Launcher(tmp_path / "d").start("k", [node(image)], [EXPORT])
    assert caught.value.code == "daemon-killed"


def test_refuses_a_folder_whose_sockets_would_have_too_long_names(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        Launcher(tmp_path / ("x" * 100))
    assert caught.value.field == "platform.scratch"
