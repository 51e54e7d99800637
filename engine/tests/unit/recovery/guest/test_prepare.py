"""The step around the looking: a process for each guest, converters, and what a node cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from doubles import guest_disks
from doubles.guest_disks import VERSION, codes, job, linux
from farshore.errors import Conflict, Permanent
from farshore.model.guest import GuestPolicy
from farshore.platforms.contract import Compute, OpenDisk
from farshore.recovery.steps import prepare

#: A converter that leaves its argument where the test finds it.
CONVERTER = '#!/bin/sh\ncp "$3" "$(dirname "$0")/asked.xml"\nexit {status}\n'


class Disks:
    """A platform that opens these files."""

    def __init__(self, *paths: Path, error: Permanent | None = None, late: Permanent | None = None) -> None:
        self.paths = paths
        self.error = error
        self.late = late

    @contextmanager
    def open_disks(self, _machine_id: str) -> Iterator[tuple[OpenDisk, ...]]:
        if self.error:
            raise self.error
        yield tuple(OpenDisk("vda", path, path.stat().st_size, boot=True) for path in self.paths)
        if self.late:
            raise self.late


def run(disks: Disks, **policy: Any) -> Any:
    return prepare.machine(cast("Compute", disks), job(policy=GuestPolicy(**policy)), lambda: None)


@pytest.fixture
def lacking(tmp_path: Path) -> Path:
    """A guest without a driver for its disk."""
    files = linux(**{f"/boot/initrd.img-{VERSION}": guest_disks.initramfs(())})
    return guest_disks.ext4_disk(tmp_path / "disk.raw", files)


def test_a_guest_is_looked_into_by_a_process_of_its_own(lacking: Path) -> None:
    result = run(Disks(lacking))
    assert codes(result) == {"driver-disk-missing": "error"}
    assert result.stopped
    assert result.seconds > 0


def test_what_a_node_cannot_do_is_a_finding_and_stops_where_the_plan_says() -> None:
    cannot = Disks(error=Permanent("no FUSE", code="fuse-missing", hint="load it"))
    result = run(cannot)
    assert codes(result) == {"fuse-missing": "warning"}
    assert not result.stopped
    assert run(cannot, stop_on="warning").stopped


@pytest.mark.parametrize(("table", "severity"), [("UUID=none", "warning"), ("/dev/vda1", "error")])
def test_a_platform_that_does_not_keep_what_was_changed_has_changed_nothing(
    tmp_path: Path, table: str, severity: str
) -> None:
    disk = guest_disks.ext4_disk(tmp_path / "disk.raw", linux(**{"/etc/fstab": f"{table} / ext4 defaults 0 1\n"}))
    params = job(bus="nvme", policy=GuestPolicy())
    disks = Disks(disk, late=Permanent("the key is disabled", code="kms-key-unusable", hint="enable it"))
    result = prepare.machine(cast("Compute", disks), params, lambda: None)
    assert result.changes == ()
    assert codes(result)["kms-key-unusable"] == severity
    assert bool(result.stopped) == (severity == "error")


def test_a_machine_that_is_on_is_not_touched() -> None:
    with pytest.raises(Conflict):
        run(Disks(error=Conflict("it is on", code="machine-on")))


def test_a_platform_without_guests_has_nothing_to_prepare() -> None:
    assert run(Disks()).findings == ()


def test_a_parser_that_fails_is_a_finding(tmp_path: Path) -> None:
    assert codes(run(Disks(tmp_path))) == {"guest-unreadable": "warning"}  # a folder is no disk


@pytest.mark.parametrize(("status", "code"), [(None, "converter-missing"), (1, "converter-failed"), (0, None)])
def test_a_converter_is_asked_where_a_driver_is_missing(
    lacking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, code: str | None
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    if status is not None:
        tool = tools / "virt-v2v-in-place"
        tool.write_text(CONVERTER.format(status=status))
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin")
    result = run(Disks(lacking), convert="virt-v2v")
    assert (code in codes(result)) == (code is not None)
    assert [change.what for change in result.changes] == (["converted"] if status == 0 else [])
    if status is not None:
        assert str(lacking) in (tools / "asked.xml").read_text()
    assert [change.what for change in run(Disks(lacking)).changes] == []
