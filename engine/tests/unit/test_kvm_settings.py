"""Opening the platform: wrong settings are named, libvirt need not be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from farshore.errors import Invalid, Unavailable
from farshore.platforms.registry import open_platform


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "type": "kvm",
        "uri": f"qemu+unix:///system?socket={tmp_path}/none",
        "pool": str(tmp_path / "pool"),
        "scratch": str(tmp_path / "s"),
    }


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pool": "relative"}, "platform.pool"),
        ({"scratch": None}, "platform.scratch"),
        ({"scratch": "/" + "x" * 90}, "platform.scratch"),
        ({"uri": 3}, "platform.uri"),
        ({"accelerator": "fast"}, "platform.accelerator"),
    ],
)
def test_names_the_wrong_setting(settings: dict[str, Any], changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        open_platform({**settings, **changes})
    assert caught.value.field == field


def test_opens_without_libvirt_and_says_so_when_it_is_needed(settings: dict[str, Any], tmp_path: Path) -> None:
    platform = open_platform(settings)
    assert platform.type == "kvm"
    assert platform.target.points() == []
    assert platform.manifests.put_if_absent("groups/g/1.json", b"{}")
    assert (tmp_path / "pool" / "manifests" / "groups" / "g" / "1.json").is_file()
    assert platform.target.points() == [], "manifests are no layers"
    with pytest.raises(Unavailable):
        platform.inventory()
    assert platform.compute
    assert "libvirt-unreachable" in {finding.code for finding in platform.compute.check()}
