"""What the collection says of itself agrees with what it holds."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
GALAXY = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))


def test_one_version():
    engine = (ROOT / "engine" / "src" / "farshore" / "__init__.py").read_text(encoding="utf-8")
    project = (ROOT / "engine" / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^__version__ = "(.+)"$', engine, re.MULTILINE).group(1) == GALAXY["version"]
    assert re.search(r'^version = "(.+)"$', project, re.MULTILINE).group(1) == GALAXY["version"]


def test_every_module_is_in_the_action_group():
    runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text(encoding="utf-8"))
    modules = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
    assert sorted(runtime["action_groups"]["dr"]) == modules


def test_ignore_files_of_sanity_are_empty():
    for path in (ROOT / "tests" / "sanity").glob("ignore-*.txt"):
        assert path.read_text(encoding="utf-8") == "", path


def test_licences_are_stated():
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        wanted = "BSD-2-Clause" if path.parent.name == "module_utils" else "GPL-3.0-or-later"
        assert f"# SPDX-License-Identifier: {wanted}\n" in path.read_text(encoding="utf-8"), path
