"""What a node tells of its equipment: what is missing, what hooks would meet, and names of secrets alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from farshore.node.kit import LOOK_EVERY_S, Kits
from farshore.recovery.guest import tools
from farshore.recovery.hooks.player import Player
from farshore.recovery.hooks.run import Settings
from farshore.recovery.secrets import Secrets


def kits(tmp_path: Path, clock: list[float], user: str | None = None, *, guests: bool = True) -> Kits:
    player = Player(
        Settings(tmp_path / "work", user), Secrets(tmp_path / "secrets"), lambda _: b"", tmp_path / "kept", 1
    )
    return Kits(player, guests=guests, clock=lambda: clock[0])


def secret(tmp_path: Path, name: str, mode: int = 0o600) -> None:
    path = tmp_path / "secrets" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("swordfish")
    path.chmod(mode)


def test_what_is_missing_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for name in tools.PACKAGES:
        if name != "ntfs-3g":
            (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
            (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = tools.missing(fuse=tmp_path / "none")
    assert "ntfs-3g (package ntfs-3g)" in found
    assert f"{tmp_path / 'none'} (kernel module fuse)" in found
    assert not any("mtools" in one or "e2fsprogs" in one for one in found)


def test_names_of_secrets_are_told_and_only_of_those_that_can_be_read(tmp_path: Path) -> None:
    secret(tmp_path, "dns_key")
    secret(tmp_path, "open_to_all", 0o644)
    kit = kits(tmp_path, [0.0]).now()
    assert (kit.secrets, kit.no_hooks) == (("dns_key",), "")
    assert "swordfish" not in kit.model_dump_json()
    assert kit.host


def test_a_user_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    assert "no user 'nobody-here'" in kits(tmp_path, [0.0], "nobody-here").now().no_hooks


def test_it_looks_again_after_a_while_and_no_sooner(tmp_path: Path) -> None:
    clock = [0.0]
    looks = kits(tmp_path, clock, guests=False)
    assert looks.now().lacks == ()
    secret(tmp_path, "late")
    clock[0] = LOOK_EVERY_S - 1
    assert looks.now().secrets == ()
    clock[0] = LOOK_EVERY_S
    assert looks.now().secrets == ("late",)


def test_a_node_that_recovers_nothing_tells_its_host_alone() -> None:
    kit = Kits(None, guests=True, clock=lambda: 0.0).now()
    assert (bool(kit.host), kit.lacks, kit.no_hooks, kit.secrets) == (True, (), "", ())
