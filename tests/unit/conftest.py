"""Makes the repository importable as farshore.dr, and runs modules against a double of the control plane."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COLLECTIONS = ROOT / ".cache" / "collections"


def _link():
    place = COLLECTIONS / "ansible_collections" / "farshore" / "dr"
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(ROOT)
    except FileExistsError:  # from an earlier run, or another worker
        assert place.resolve() == ROOT
    sys.path.insert(0, str(COLLECTIONS))
    sys.path.insert(0, str(Path(__file__).parent))


_link()

import double as control_plane  # the path is made above


@pytest.fixture
def double(monkeypatch):
    for name in ("FARSHORE_URL", "FARSHORE_TOKEN", "FARSHORE_CA_PATH", "FARSHORE_VALIDATE_CERTS"):
        monkeypatch.delenv(name, raising=False)
    client = importlib.import_module("ansible_collections.farshore.dr.plugins.module_utils.client")
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.001)
    with control_plane.Double() as running:
        yield running


class Result(dict):
    """What a module returned; ``failed`` is in it."""


@pytest.fixture
def run_module(double, capsys):
    """Run a module in this process: ``run_module("site", check=True, name=...)``."""
    from ansible.module_utils.testing import patch_module_args

    def run(name, /, check=False, diff=False, connected=True, **params):
        module = importlib.import_module(f"ansible_collections.farshore.dr.plugins.modules.{name}")
        if connected:
            params = {"url": double.url, "token": control_plane.TOKEN, **params}
        arguments = {**params, "_ansible_check_mode": check, "_ansible_diff": diff}
        capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        result = Result(json.loads(capsys.readouterr().out.strip().splitlines()[-1]))
        result.setdefault("failed", False)
        return result

    return run


@pytest.fixture
def ok(run_module):
    """Run a module that has to succeed."""

    def run(name, /, **params):
        result = run_module(name, **params)
        assert not result["failed"], result
        return result

    return run


@pytest.fixture
def bad(run_module):
    """Run a module that has to fail."""

    def run(name, /, **params):
        result = run_module(name, **params)
        assert result["failed"], result
        return result

    return run
