"""A control plane for each test, or one for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.control_process import Control


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    plane = Control(tmp_path / "home")
    plane.start()
    yield plane
    if plane.process is not None and plane.process.poll() is None:
        assert plane.stop() == 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    plane = Control(tmp_path_factory.mktemp("control") / "home")
    plane.start()
    yield plane
    assert plane.process is not None
    if plane.process.poll() is None:
        assert plane.stop() == 0
