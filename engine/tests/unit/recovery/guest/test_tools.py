"""What is run on a node is what the role installs there, and what the lab and CI have."""

from __future__ import annotations

from pathlib import Path

import yaml
from farshore.recovery.guest import tools

ROOT = Path(__file__).parents[5]


def test_the_role_installs_what_guests_need() -> None:
    defaults = yaml.safe_load((ROOT / "roles/replication_node/defaults/main.yml").read_text())
    installed = sorted(defaults["replication_node_guest_packages"])
    assert installed == sorted({*tools.PACKAGES.values(), tools.HIVEX_PACKAGE})


def test_nothing_is_missing_where_tests_of_guests_run() -> None:
    assert tools.missing() == ()
